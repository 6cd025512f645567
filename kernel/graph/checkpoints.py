"""Where running graphs are kept: LangGraph's checkpointer, its tables in a schema of their own.

The tables are LangGraph's, not ours: they have no `tenant_id`, so the thread of a run is named `tenant:run`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, conninfo, sql
from psycopg.rows import DictRow, TupleRow, dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import make_url

SCHEMA = "langgraph"
ADVISORY_LOCK = 0x4C414E47
LOCK_POLL_S = 0.1
CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 10.0

# The checkpointer names its tables without a schema. What is looked up goes by keys: see kernel/store/engine.py.
OPTIONS = f"-c search_path={SCHEMA} -c enable_seqscan=off -c jit=off"


async def make_checkpoint_tables(database_url: str) -> None:
    """Make the checkpointer's tables, or bring them up to date; of several processes, one after the other."""
    connection = await AsyncConnection.connect(conninfo_of(database_url), autocommit=True, row_factory=dict_row)
    async with connection, await AsyncConnection.connect(conninfo_of(database_url), autocommit=True) as guard:
        # An index that is built concurrently waits for every older transaction, also for one that waits for this lock:
        # so the lock is tried, not waited for.
        while not await _try_lock(guard):  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(LOCK_POLL_S)
        await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
        await AsyncPostgresSaver(connection).setup()


async def _try_lock(guard: AsyncConnection[TupleRow]) -> bool:
    row = await (await guard.execute("SELECT pg_try_advisory_lock(%s)", (ADVISORY_LOCK,))).fetchone()
    return row is not None and row[0] is True


def conninfo_of(database_url: str) -> str:
    """What libpq calls the database that SQLAlchemy knows by a URL of `postgresql+asyncpg`."""
    url = make_url(database_url).set(drivername="postgresql")
    mode = url.query.get("ssl")
    if mode is not None:
        url = url.difference_update_query(["ssl"]).update_query_dict({"sslmode": mode})
    return conninfo.make_conninfo(
        url.render_as_string(hide_password=False),
        options=OPTIONS,
        application_name="remit-graphs",
        connect_timeout=CONNECT_TIMEOUT_S,
    )


def thread_of(tenant_id: UUID, run_id: UUID) -> str:
    """The name under which a run's checkpoints are kept."""
    return f"{tenant_id}:{run_id}"


class Checkpoints:
    """The checkpoints of a process's graphs, over a pool of connections."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[DictRow]]) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, database_url: str, *, pool_size: int = 4) -> "AsyncIterator[Checkpoints]":
        """Open the pool for as long as the block lasts."""
        pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            conninfo_of(database_url),
            min_size=1,
            max_size=pool_size,
            timeout=POOL_TIMEOUT_S,
            open=False,
            kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
            name="checkpoints",
        )
        async with pool:
            yield cls(pool)

    def saver(self) -> AsyncPostgresSaver:
        """A checkpointer for one run: each has a lock of its own, so that runs do not queue for one another."""
        return AsyncPostgresSaver(self._pool)

    async def forget(self, tenant_id: UUID, run_id: UUID) -> None:
        """Delete what is kept of a run that has ended."""
        await self.saver().adelete_thread(thread_of(tenant_id, run_id))
