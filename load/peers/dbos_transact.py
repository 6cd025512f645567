"""DBOS Transact, in a database of its own on the PostgreSQL server that serves us."""

import asyncio
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg

from load.peers import worker_process
from load.peers.comparison import Contender, Measurements, Work
from load.peers.processor_time import milliseconds_each, spent
from load.peers.verification import Verified, durable, expect
from load.subject import Subject

DATABASE = "peers_dbos"
CONCURRENT = 32
GROUP = 1_000
GROUPS = 3
WARM_UP_S = 1.0
WORKER = "load.peers.dbos_worker"


async def prepare(subject: Subject) -> str:
    """Create its database, and return the URL."""
    connection = await subject.database()
    try:
        await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    return f"postgresql+psycopg://remit@/{DATABASE}?host={subject.data_dir / 'postgres'}"


async def measure(
    subject: Subject, url: str, measurements: Measurements, verified: Verified, seconds: float, log: Path
) -> None:
    """Take one run's figures, and hold what it claims against the rows in its database."""
    connection = await asyncpg.connect(host=str(subject.data_dir / "postgres"), user="remit", database=DATABASE)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        await durable(connection, "DBOS Transact", verified)
        first = await stack.enter_async_context(worker_process.started(WORKER, url, log=log))
        await first.ask("singles", parents=CONCURRENT, seconds=WARM_UP_S, timeout_s=60)

        # As we do for ours: autovacuum's work is done before something is measured rather than meanwhile.
        await connection.execute("VACUUM ANALYZE")
        before = await _children(connection)
        idle = spent(subject.pid, first.process.pid)
        one = await first.ask("singles", parents=CONCURRENT, seconds=seconds, timeout_s=seconds + 60)
        cost = milliseconds_each(idle, spent(subject.pid, first.process.pid), one["children"])
        measurements.add(Work.SINGLES, Contender.DBOS, one["children"] / one["seconds"])
        measurements.add(Work.SINGLE_COST, Contender.DBOS, cost)
        expect("DBOS children enqueued singly", await _children(connection) - before, one["children"], verified)

        spawning, cancelling = [], []
        for _ in range(GROUPS):
            parent = uuid.uuid4().hex
            figures = await first.ask("spawn_and_cancel", name=parent, size=GROUP, timeout_s=120)
            spawning.append(GROUP / figures["spawn_seconds"])
            cancelling.append(figures["cancel_seconds"])
            cancelled = await connection.fetchval(
                "SELECT count(*) FROM dbos.workflow_status WHERE parent_workflow_id = $1 AND status = 'CANCELLED'",
                parent,
            )
            expect("DBOS children cancelled with their parent", cancelled, GROUP, verified)
        measurements.add(Work.GROUPS, Contender.DBOS, *spawning)
        # It answers when all are cancelled.
        milliseconds = [took * 1000 for took in cancelling]
        measurements.add(Work.ACKNOWLEDGED, Contender.DBOS, *milliseconds)
        measurements.add(Work.CANCELLED, Contender.DBOS, *milliseconds)
        measurements.add(Work.DRAIN, Contender.DBOS, *((GROUP + 1) / took for took in cancelling))

        before = await _flat(connection)
        flat = [(await first.ask("flat_group", url=url, size=GROUP, timeout_s=120))["seconds"] for _ in range(GROUPS)]
        measurements.add(Work.GROUPS, Contender.DBOS_FLAT, *(GROUP / took for took in flat))
        expect("DBOS workflows of one transaction", await _flat(connection) - before, GROUP * GROUPS, verified)

        second = await stack.enter_async_context(worker_process.started(WORKER, url, log=log))
        await second.ask("singles", parents=CONCURRENT // 2, seconds=WARM_UP_S, timeout_s=60)
        before = await _children(connection)
        both = await asyncio.gather(
            *(
                worker.ask("singles", parents=CONCURRENT // 2, seconds=seconds, timeout_s=seconds + 60)
                for worker in (first, second)
            )
        )
        measurements.add(
            Work.SINGLES, Contender.DBOS_TWO, sum(figures["children"] / figures["seconds"] for figures in both)
        )
        claimed = sum(figures["children"] for figures in both)
        expect(
            "DBOS children enqueued singly by two processes", await _children(connection) - before, claimed, verified
        )


async def _flat(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval(
        "SELECT count(*) FROM dbos.workflow_status WHERE parent_workflow_id IS NULL AND status = 'ENQUEUED'"
    )
    return count


async def _children(connection: asyncpg.Connection) -> int:
    count: int = await connection.fetchval(
        "SELECT count(*) FROM dbos.workflow_status WHERE parent_workflow_id IS NOT NULL AND status = 'ENQUEUED'"
    )
    return count
