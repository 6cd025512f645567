"""Cancels against everything else that happens in a tree: nothing escapes, nothing starts twice, nobody deadlocks."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import httpx2
import pytest

from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.expire_leases import expire_leases
from kernel.reconcilers.time_out_joins import time_out_joins
from kernel.reconcilers.time_out_runs import time_out_runs
from kernel.store import drains
from kernel.store.engine import Database
from load.audit import audit
from tests.faults.scale import TORTURE, scaled
from tests.kit import Api, Kit, done
from tests.orchestration_limits_and_cancellation.torture.storm import CANCEL, Floor, Storm, rage
from tests.orchestration_runtime_primitives.work.crew import PLENTY

pytestmark = [pytest.mark.torture, pytest.mark.timeout(7200 if TORTURE else 300)]

# In parts, which processes share; each part has trees of all sizes.
PARTS, TREES = (4, 1_000) if TORTURE else (1, 6)
SMALLEST, LARGEST = 10, scaled(10_000)
SPAWNERS, CLAIMERS = 8, 4
CONNECTIONS = 400

Step = Callable[[], Coroutine[object, object, object]]


async def findings(database: Database, kit: Kit) -> list[str]:
    async with database.read() as session:
        return await audit(session.driver, tenant_id=kit.tenant_id)


async def until_drained(database: Database, kit: Kit) -> None:
    reconciler = DrainCancellations(database)
    async with asyncio.timeout(120):
        while True:
            await reconciler.run_once()
            async with database.read() as session:
                left = await session.driver.fetchval(
                    "SELECT count(*) FROM cancellations WHERE tenant_id = $1 AND drained_at IS NULL",
                    UUID(kit.tenant_id),
                )
            if not left:
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def over_and_over(steps: Sequence[Step]) -> AsyncIterator[None]:
    """Repeat steps, each beside the others, while the block runs."""
    stopping = asyncio.Event()

    async def repeat(step: Step) -> None:
        while not stopping.is_set():
            await step()
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        for step in steps:
            tasks.create_task(repeat(step))
        try:
            yield
        finally:
            stopping.set()


@pytest.fixture
async def unlimited(kit: Kit) -> str:
    """An orchestrator that may spawn itself and workers, as many as it likes."""
    await kit.agent("worker")
    return await kit.orchestrator(may_spawn=["worker", "orchestrator"], max_depth=100, **PLENTY)


@pytest.mark.parametrize("part", range(PARTS))
async def test_a_cancel_against_spawners_and_claimers_lets_nothing_escape(
    kit: Kit, database: Database, unlimited: str, record_property: Callable[[str, object], None], part: int
) -> None:
    dice = random.Random(20 + part)
    numbers = range(part, TREES, PARTS)
    for number in numbers:
        # From the smallest to the largest, each order of magnitude alike.
        size = int(SMALLEST * (LARGEST / SMALLEST) ** (number / max(1, TREES - 1)))
        storm = Storm(kit, await kit.root(unlimited), random.Random(dice.getrandbits(64)))
        await storm.grow(size)
        await rage(storm, spawners=SPAWNERS, claimers=CLAIMERS)
        assert storm.escapes == []
        assert set(storm.starts.values()) <= {1}
        assert set(storm.ends.values()) <= {1}
        assert storm.refusals["run_cancelled"] >= SPAWNERS
        await until_drained(database, kit)
        # Not often: the audit reads everything, anew each time.
        if number in {numbers[len(numbers) // 2], numbers[-1]}:
            assert await findings(database, kit) == []
    async with database.read() as session:
        active = await session.driver.fetchval(
            "SELECT count(*) FROM agent_runs WHERE tenant_id = $1 AND status IN ('queued', 'running', 'paused')",
            UUID(kit.tenant_id),
        )
    assert active == 0
    record_property("trees", len(numbers))


async def test_claims_heartbeats_expiry_and_completions_against_drains_neither_start_twice_nor_deadlock(
    kit: Kit, database: Database, unlimited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many short chunks, between which all the others come in.
    monkeypatch.setattr(drains, "CHUNK_RUNS", 20)
    deadlocks = await deadlocks_of(database)
    root = await kit.root(unlimited)
    dice = random.Random(4)
    branches = [done(await kit.spawn(root, f"b{n}", "orchestrator"))["spawned_run_ids"][0] for n in range(12)]
    for branch in branches:
        done(await kit.spawn_group(branch, "g", max(100, scaled(2_000)), timeout_s=600))
    floor = Floor(kit, database, dice)
    sweeps = [expire_leases(database), expire_leases(database), time_out_runs(database), time_out_joins(database)]
    reconcilers = [DrainCancellations(database), DrainCancellations(database)]
    steps: list[Step] = [floor.claim] * 4
    steps += [floor.renew, floor.complete, floor.let_one_expire] * 2
    steps += [sweep.run_once for sweep in sweeps]
    steps += [reconciler.run_once for reconciler in reconcilers]
    async with over_and_over(steps):
        for branch in branches[:10]:
            await asyncio.sleep(dice.uniform(0.1, 0.4))
            body = {"caller_run_id": root.run_id, "run_id": branch, "grace_s": dice.choice([0, 0, 1])}
            done(await kit.api.post(CANCEL, body))
    assert set(floor.starts.values()) == {1}
    assert set(floor.ends.values()) == {1}
    attempts = Counter(run_id for run_id, _ in floor.starts)
    assert max(attempts.values()) > 1
    assert await started_in_the_log(database, root.run_id) == attempts
    await until_drained(database, kit)
    assert await findings(database, kit) == []
    assert await deadlocks_of(database) == deadlocks


async def test_cancels_by_the_thousand_at_once_overlapping_and_nested_are_all_answered_and_count_each_run_once(
    kit: Kit, database: Database, unlimited: str, api_url: str, record_property: Callable[[str, object], None]
) -> None:
    cancels = 10_000 if TORTURE else 400
    root = await kit.root(unlimited)
    dice = random.Random(5)
    runs = [root.run_id]
    for number in range(cancels // 20):
        # Nested as chance has it, some tens of levels deep.
        parent = runs[-1] if number % 20 else root.run_id
        runs.append(done(await kit.spawn(parent, f"b{number}", "orchestrator"))["spawned_run_ids"][0])
    for number, branch in enumerate(runs[1:]):
        runs += done(await kit.spawn_group(branch, f"g{number}", 10))["spawned_run_ids"]
    targets = [dice.choice(runs[1:]) for _ in range(cancels)]
    # Both ends of each connection are in this process, which may open so many files and no more.
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=api_url, timeout=3600.0, limits=limits) as client:
        api = Api(client, kit.api.token)
        waits = [{"wait_s": 60} if number % 4 == 0 else {} for number in range(cancels)]
        answers = await asyncio.gather(
            *(
                api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": target, **wait})
                for target, wait in zip(targets, waits, strict=True)
            )
        )
    assert Counter(answer.status_code for answer in answers) == {200: cancels}
    told = [answer.json() for answer in answers]
    assert {answer["state"] for answer in told[::4]} == {"drained"}
    assert len({answer["cancellation_id"] for answer in told}) > 10
    await until_drained(database, kit)
    async with database.read() as session:
        cancelled, counted = await session.driver.fetchrow(
            "SELECT (SELECT count(*) FROM agent_runs WHERE root_run_id = $1 AND status = 'cancelled'),"
            " (SELECT sum(cancelled_count) FROM cancellations WHERE root_run_id = $1)",
            UUID(root.run_id),
        )
    assert cancelled == counted
    assert await findings(database, kit) == []
    record_property("cancels at once", cancels)


async def started_in_the_log(database: Database, root_run_id: str) -> dict[str, int]:
    """How often each run below a root was started, by the events of its tree."""
    async with database.read() as session:
        rows = await session.driver.fetch(
            "SELECT s.run_id::text, count(*) AS n FROM run_events e CROSS JOIN unnest(e.subjects) AS s (run_id)"
            " WHERE e.root_run_id = $1 AND s.run_id <> $1 AND e.type = 'orchestration.child_lifecycle'"
            " AND e.data ->> 'status' = 'running' GROUP BY 1",
            UUID(root_run_id),
        )
    return {row["run_id"]: row["n"] for row in rows}


async def deadlocks_of(database: Database) -> int:
    async with database.read() as session:
        found: int = await session.driver.fetchval(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
    return found
