"""Databases of a test's own, for what would disturb the others: other clocks, other partitions, no schema."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url

from kernel.store import migrate
from kernel.store.engine import Database


@pytest.fixture
async def empty_url(servers: object) -> AsyncIterator[str]:
    """The URL of an empty database."""
    url = make_url(servers.postgres)  # type: ignore[attr-defined]
    name = f"test_store_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(
        host=str(url.query["host"]), port=int(str(url.query["port"])), user=url.username, database=url.database
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        await connection.execute(f"CREATE DATABASE {name}")
        stack.push_async_callback(connection.execute, f"DROP DATABASE {name} WITH (FORCE)")
        yield url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
async def own_database(empty_url: str) -> AsyncIterator[Database]:
    """A migrated database without partitions but the default ones."""
    await migrate.upgrade(empty_url)
    database = Database(empty_url, pool_size=10)
    yield database
    await database.close()
