"""The schema's version: bringing it up, taking it down, and telling whether it is current."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from asyncpg import exceptions as pg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from kernel.domain.errors import DatabaseUnavailableError
from kernel.store import planning
from kernel.store.engine import cause_of

VERSION_TABLE = "remit_schema_version"
# `RETURNING old.…` is 18's.
MINIMUM_SERVER_VERSION = 180_000
# Two processes that start at once migrate one after the other.
ADVISORY_LOCK = 0x52454D4954


class UnsupportedServerError(Exception):
    """The database is older than what Remit's statements need."""


async def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema up to a revision, and tell the planner what it cannot count.

    Raises:
        UnsupportedServerError: when the server is too old.
        DatabaseUnavailableError: when it cannot be reached, or does not let us in.
    """
    await _run(url, lambda config: command.upgrade(config, revision), then=planning.SAY_OF_ALL)


async def downgrade(url: str, revision: str) -> None:
    """Take the schema down to a revision (`base` for none)."""
    await _run(url, lambda config: command.downgrade(config, revision))


async def current_revision(url: str) -> str | None:
    """The revision of the database's schema; None for an empty database."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(
                lambda sync: MigrationContext.configure(
                    sync, opts={"version_table": VERSION_TABLE}
                ).get_current_revision()
            )
    finally:
        await engine.dispose()


@cache
def head_revision() -> str:
    """The revision that this code needs."""
    with as_file(files("kernel.store") / "migrations") as directory:
        return str(ScriptDirectory(str(directory)).get_current_head())


@cache
def known_revisions() -> frozenset[str]:
    """The revisions that this code has migrations for. Any other is of a later version."""
    with as_file(files("kernel.store") / "migrations") as directory:
        return frozenset(script.revision for script in ScriptDirectory(str(directory)).walk_revisions())


async def _run(url: str, action: Callable[[Config], None], *, then: str | None = None) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with _connection(engine) as connection:
            await connection.run_sync(_migrate, action, then)
            await connection.commit()
    finally:
        await engine.dispose()


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    try:
        connection = await engine.connect()
    except (OSError, TimeoutError, DBAPIError, pg.PostgresError, pg.InterfaceError) as error:
        where = engine.url.render_as_string(hide_password=True)
        raise DatabaseUnavailableError(
            f"the database {where} cannot be used: {cause_of(error)}; REMIT_DATABASE_URL says where it is"
        ) from error
    try:
        yield connection
    finally:
        await connection.close()


def _migrate(connection: Connection, action: Callable[[Config], None], then: str | None) -> None:
    version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    if version < MINIMUM_SERVER_VERSION:
        raise UnsupportedServerError(
            f"PostgreSQL {version // 10_000} is too old: Remit needs {MINIMUM_SERVER_VERSION // 10_000} or later"
        )
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    connection.commit()
    try:
        with as_file(files("kernel.store") / "migrations") as directory:
            config = Config()
            config.set_main_option("script_location", str(directory))
            config.attributes["connection"] = connection
            action(config)
        if then is not None:
            connection.exec_driver_sql(then)
            connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
