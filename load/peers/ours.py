"""The service itself: single spawns and dry runs through `wrk`, groups and cancels through its API."""

import time
import uuid
from datetime import datetime

import asyncpg

from load.bench_cancel import CLIENTS, Tree, cancel, drained, plant
from load.bench_spawn import groups_and_inserts
from load.generator import wrk_answers
from load.peers.comparison import Contender, Measurements, Work
from load.peers.processor_time import milliseconds_each, spent
from load.peers.verification import Verified, durable, expect
from load.subject import Subject

GROUP = 1_000
LARGE = 100_000
GROUPS = 10
CANCELS = 5
DECIDING_S = 3
WARM_UP_S = 2


async def measure(
    subject: Subject, callers: list[str], measurements: Measurements, verified: Verified, seconds: int
) -> None:
    """Take one run's figures, and hold what it claims against the rows in its database."""
    await measure_spawning(subject, callers, measurements, verified, seconds)
    await measure_cancelling(subject, measurements, verified)
    await measure_dry_runs(subject, callers, measurements)


async def measure_spawning(
    subject: Subject, callers: list[str], measurements: Measurements, verified: Verified, seconds: int
) -> None:
    """Single spawns over many trees; and groups, in turn with the plain INSERT of such rows."""
    await wrk_answers(subject, callers, connections=CLIENTS, seconds=WARM_UP_S)
    connection = await subject.database()
    try:
        await durable(connection, "Remit", verified)
        salt = uuid.uuid4().hex
        idle = spent(subject.pid)
        spawned = await wrk_answers(subject, callers, connections=CLIENTS, seconds=seconds, LOAD_SALT=salt)
        cost = milliseconds_each(idle, spent(subject.pid), spawned.count)
        measurements.add(Work.SINGLES, Contender.REMIT, spawned.rate)
        measurements.add(Work.SINGLE_COST, Contender.REMIT, cost)
        made = await connection.fetchval(
            "SELECT count(*) FROM agent_runs WHERE tenant_id = $1 AND starts_with(spawn_key, $2)",
            subject.tenant_id,
            salt,
        )
        # When its time is up, wrk does not wait for what it has sent: those may be there as well.
        unread = min(max(made - spawned.count, 0), CLIENTS)
        expect("Remit children spawned singly", made, spawned.count + unread, verified)

        before = await _members(subject, connection)
        rate, inserted = await groups_and_inserts(subject, callers, GROUPS)
        measurements.add(Work.GROUPS, Contender.REMIT, rate)
        measurements.add(Work.GROUPS, Contender.PLAIN_INSERT, inserted)
        there = await _members(subject, connection) - before
        expect("Remit children spawned in groups", there, GROUP * GROUPS, verified)
    finally:
        await connection.close()


async def _members(subject: Subject, connection: asyncpg.Connection) -> int:
    """Runs that belong to a group."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM agent_runs WHERE tenant_id = $1 AND orchestration_group_id IS NOT NULL", subject.tenant_id
    )
    return count


async def measure_cancelling(subject: Subject, measurements: Measurements, verified: Verified) -> None:
    """A parent with its children, a few times over; and once one with very many."""
    trees = [await plant(subject, GROUP) for _ in range(CANCELS)]
    await settle(subject)
    ended = [await _cancel(subject, tree) for tree in trees]
    for runs, _, _ in ended:
        expect("Remit runs cancelled, the parent among them", runs, GROUP + 1, verified)
    measurements.add(Work.ACKNOWLEDGED, Contender.REMIT, *(acknowledged for _, acknowledged, _ in ended))
    measurements.add(Work.CANCELLED, Contender.REMIT, *(seconds * 1000 for _, _, seconds in ended))
    measurements.add(Work.DRAIN, Contender.REMIT, *(runs / seconds for runs, _, seconds in ended))
    large = await plant(subject, LARGE)
    await settle(subject)
    runs, _, seconds = await _cancel(subject, large)
    expect("Remit runs cancelled below one parent", runs, LARGE + 1, verified)
    measurements.add(Work.LARGE_DRAIN, Contender.REMIT, runs / seconds)


async def settle(subject: Subject) -> None:
    """Have autovacuum's work done before something is measured rather than meanwhile."""
    connection = await subject.database()
    try:
        await connection.execute("VACUUM ANALYZE agent_runs, run_trees, orchestration_groups")
    finally:
        await connection.close()


async def _cancel(subject: Subject, tree: Tree) -> tuple[int, float, float]:
    """Runs cancelled, milliseconds until it was acknowledged, seconds until all of them were."""
    sent = time.time()
    milliseconds, cancellation_id = await cancel(subject, tree.root, tree.branch)
    await drained(subject, cancellation_id)
    shown = await subject.client.get(f"/internal/orchestration/cancellations/{cancellation_id}")
    # By the database's clock, which is this machine's: how often we ask does not count.
    ended = datetime.fromisoformat(shown.raise_for_status().json()["drained_at"]).timestamp()
    connection = await subject.database()
    try:
        runs: int = await connection.fetchval(
            "SELECT count(*) FROM agent_runs WHERE tenant_id = $1 AND root_run_id = $2 AND status = 'cancelled'",
            subject.tenant_id,
            tree.root,
        )
    finally:
        await connection.close()
    return runs, milliseconds, ended - sent


async def measure_dry_runs(subject: Subject, callers: list[str], measurements: Measurements) -> None:
    """Decisions as a client gets them: facts read, policy asked, nothing written."""
    await wrk_answers(subject, callers, connections=CLIENTS, seconds=WARM_UP_S, LOAD_DRY_RUN="1")
    alone = await wrk_answers(subject, callers, connections=1, seconds=DECIDING_S, LOAD_DRY_RUN="1")
    measurements.add(Work.DRY_RUN, Contender.REMIT, alone.median_ms)
    many = await wrk_answers(subject, callers, connections=CLIENTS, seconds=DECIDING_S, LOAD_DRY_RUN="1")
    measurements.add(Work.DRY_RUNS, Contender.REMIT, many.rate)
