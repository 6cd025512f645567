"""The fleet, on a database of its own in the session's PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import URL, make_url

from tests.conftest import Servers
from tests.operations.processes.fleet import Fleet, assemble, run


async def connect(url: URL) -> asyncpg.Connection:
    connection: asyncpg.Connection = await asyncpg.connect(
        host=str(url.query["host"]), port=int(str(url.query["port"])), user=url.username, database=url.database
    )
    return connection


@pytest.fixture(scope="session")
async def empty_database(servers: Servers) -> AsyncIterator[URL]:
    url = make_url(servers.postgres)
    name = f"fleet_{uuid.uuid4().hex[:8]}"
    connection = await connect(url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
        yield url.set(database=name)
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture(scope="session")
async def fleet(
    empty_database: URL, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    """Migrated, started and ready."""
    directory = tmp_path_factory.mktemp("fleet")
    fleet = assemble(directory, empty_database.render_as_string(hide_password=False), servers.opa_binary)
    said = await run(fleet.reconciler.environment, "migrate")
    assert said.startswith("the schema is at ")
    try:
        await asyncio.gather(*(part.start() for part in fleet.parts))
        for api in fleet.apis:
            api.probe = "/readyz"
            await api.answers()
        yield fleet
    finally:
        await fleet.stop()


@pytest.fixture
async def auditor(fleet: Fleet) -> AsyncIterator[asyncpg.Connection]:
    """The fleet's database, as an operator reads it."""
    connection = await connect(make_url(fleet.database_url))
    yield connection
    await connection.close()
