"""Where running graphs are kept: LangGraph's checkpointer, its tables in a schema of their own.

The tables are LangGraph's, not ours: they have no `tenant_id`, so the thread of a run is named `tenant:run`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import orjson
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg import AsyncConnection, conninfo, sql
from psycopg.rows import DictRow, TupleRow, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import make_url

SCHEMA = "langgraph"
ADVISORY_LOCK = 0x4C414E47
LOCK_POLL_S = 0.1
CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 10.0

# The checkpointer names its tables without a schema. What is looked up goes by keys: see kernel/store/engine.py.
OPTIONS = f"-c search_path={SCHEMA} -c enable_seqscan=off -c jit=off -c plan_cache_mode=force_generic_plan"

# How LangGraph names the channel by which a node is come to.
TRIGGER = "branch:to:"

PLAIN = (str, int, float, bool)

# What LangGraph writes in two statements and as many commits, in one.
PUT = """
WITH kept AS (
  INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
  SELECT %(thread)s, %(ns)s, b.channel, b.version, b.type, b.blob
  FROM unnest(%(channels)s::text[], %(versions)s::text[], %(types)s::text[], %(blobs)s::bytea[])
    AS b (channel, version, type, blob)
  ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING)
INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
VALUES (%(thread)s, %(ns)s, %(id)s, %(parent)s, %(checkpoint)s, %(metadata)s)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
  DO UPDATE SET checkpoint = excluded.checkpoint, metadata = excluded.metadata
"""


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


class RunSaver(AsyncPostgresSaver):
    """The checkpointer of one run: LangGraph's, but that a step costs one statement and one commit.

    Args:
        fresh: whether nothing is kept of the run yet, so that nothing needs to be looked up.
    """

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[DictRow]], *, fresh: bool) -> None:
        super().__init__(pool)
        self._pool = pool
        self._fresh = fresh
        self._under_way = 0

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The latest checkpoint."""
        return None if self._fresh else await super().aget_tuple(config)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint."""
        configurable = config["configurable"]
        thread, ns = configurable["thread_id"], configurable["checkpoint_ns"]
        values = checkpoint["channel_values"]
        # These the tables' reader expects in the checkpoint itself.
        plain = {name: value for name, value in values.items() if value is None or isinstance(value, PLAIN)}
        new = {name: version for name, version in new_versions.items() if name in values and name not in plain}
        rows = self._dump_blobs(thread, ns, values, new)
        given = {
            "thread": thread,
            "ns": ns,
            "id": checkpoint["id"],
            "parent": configurable.get("checkpoint_id"),
            "channels": [row[2] for row in rows],
            "versions": [row[3] for row in rows],
            "types": [row[4] for row in rows],
            "blobs": [row[5] for row in rows],
            "checkpoint": Jsonb({**checkpoint, "channel_values": plain}, dumps=orjson.dumps),
            "metadata": Jsonb(get_serializable_checkpoint_metadata(config, metadata), dumps=orjson.dumps),
        }
        async with self._pool.connection() as connection:
            await connection.execute(PUT, given, prepare=True, binary=True)
        self._fresh, self._under_way = False, sum(name.startswith(TRIGGER) for name in plain)
        return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint["id"]}}

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep what a node gave while others of its step are at work; alone, the checkpoint of the step has it all."""
        if self._under_way > 1:
            await super().aput_writes(config, writes, task_id, task_path)


class Checkpoints:
    """The checkpoints of a process's graphs, over a pool of connections."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[DictRow]]) -> None:
        self.pool = pool

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

    def saver(self, *, fresh: bool = False) -> RunSaver:
        """A checkpointer for one run: each has a lock of its own, so that runs do not queue for one another."""
        return RunSaver(self.pool, fresh=fresh)

    async def forget(self, tenant_id: UUID, run_id: UUID) -> None:
        """Delete what is kept of a run that has ended."""
        await self.saver().adelete_thread(thread_of(tenant_id, run_id))
