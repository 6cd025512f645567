"""Cancelling while others spawn, claim, complete, cancel and die: nothing escapes, and every count comes out right."""

import asyncio
import gc
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest

from kernel import metrics
from kernel.commands.cancel_subtree import CancelSubtree, CancelSubtreeCommand
from kernel.commands.draining import Drain
from kernel.domain.errors import DatabaseUnavailableError
from kernel.domain.principal import Principal
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.store import drains, trees
from kernel.store.drains import OpenFence
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.wakeups import Wakeups
from load.audit import audit
from service.dependencies import Services
from tests.faults.patience import impatient
from tests.kit import Kit, Run, done
from tests.orchestration_runtime_primitives.trees.forest import Forest
from tests.orchestration_runtime_primitives.work.crew import PLENTY

# A process that drains, slowly enough to be killed in the middle of it.
DRAINING = """
import asyncio, os, signal, sys
from uuid import UUID
from kernel import metrics
from kernel.commands.draining import Drain
from kernel.store import drains, engine
from kernel.store.engine import Database

drains.CHUNK_RUNS = 5
# Only what stands still is idle for so long.
drains.IDLE_TIMEOUT = engine.IDLE_IN_TRANSACTION_TIMEOUT = "1s"
cancel, chunk = drains.cancel, drains.chunk

def stand_still(*, here):
    if here:
        print("still", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

async def main(url, tenant_id, cancellation_id, stops=""):
    async def telling(*args, **more):
        print("chunk", flush=True)
        stand_still(here=stops == "in a chunk")
        return await cancel(*args, **more)

    def between(listed, after):
        stand_still(here=stops == "between chunks" and after)
        return chunk(listed, after)

    drains.cancel, drains.chunk = telling, between
    database = Database(url)
    async with database.read() as session:
        target = await drains.open_fence(session, UUID(tenant_id), UUID(cancellation_id))
    await Drain(database).execute(target)

asyncio.run(main(*sys.argv[1:]))
"""

CANCEL = "/internal/orchestration/cancel-subtree"


async def findings(database: Database, kit: Kit) -> list[str]:
    async with database.read() as session:
        return await audit(session.driver, tenant_id=kit.tenant_id)


async def lineage_findings(database: Database, kit: Kit) -> list[str]:
    """Without what asks for the decisions of spawns, which grown trees do not have."""
    about_spawns = ("allowed", "decision_told", "payload")
    return [finding for finding in await findings(database, kit) if not finding.startswith(about_spawns)]


async def open_fence(database: Database, cancellation_id: UUID, kit: Kit) -> OpenFence:
    async with database.read() as session:
        target = await drains.open_fence(session, UUID(kit.tenant_id), cancellation_id)
    assert target is not None
    return target


async def state_of(database: Database, kit: Kit, cancellation_id: UUID) -> drains.Cancellation:
    async with database.read() as session:
        cancellation = await drains.read(session, UUID(kit.tenant_id), cancellation_id)
    assert cancellation is not None
    return cancellation


class Storm:
    """Callers that get in each other's way; whatever they are refused for must be for a reason they can see."""

    EXPECTED = frozenset({"run_cancelled", "caller_not_active", "policy_denied", "illegal_transition", "lease_lost"})

    def __init__(self, kit: Kit, root: Run, seed: int) -> None:
        self._kit = kit
        self._root = root
        self._rng = random.Random(seed)
        self._parents = [root.run_id]
        self.refusals: Counter[str] = Counter()

    def _met(self, response: httpx2.Response) -> dict[str, Any]:
        answer: dict[str, Any] = response.json()
        if response.is_success:
            return answer
        self.refusals[answer["code"]] += 1
        assert answer["code"] in self.EXPECTED, answer
        return {}

    async def spawn(self, number: int) -> None:
        for turn in range(12):
            parent = self._rng.choice(self._parents)
            if turn % 4 == 3:
                self._met(await self._kit.spawn_group(parent, f"g{number}-{turn}", 3, join_mode="fail_fast"))
                continue
            target = self._rng.choice(["worker", "orchestrator"])
            made = self._met(await self._kit.spawn(parent, f"s{number}-{turn}", target))
            self._parents.extend(made.get("spawned_run_ids", ()))

    async def work(self) -> None:
        for _ in range(8):
            claimed = self._met(await self._kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 3}))
            for work in claimed.get("runs", ()):
                status = self._rng.choice(["completed", "failed"])
                body = {"run_id": work["run_id"], "lease": work["lease"], "status": status}
                self._met(await self._kit.api.post("/work/complete", body))

    async def cancel(self) -> None:
        for turn in range(6):
            target = self._root.run_id if turn == 3 else self._rng.choice(self._parents)
            body = {
                "caller_run_id": self._root.run_id,
                "run_id": target,
                "include_root": target != self._root.run_id,
            }
            self._met(await self._kit.api.post(CANCEL, body))


@pytest.mark.parametrize("seed", [7, 8, 9])
async def test_of_spawns_claims_and_completions_that_race_with_cancels_nothing_escapes(
    kit: Kit, database: Database, seed: int
) -> None:
    root, _ = await kit.team(max_depth=6, max_fanout=1000, max_children_total=2000)
    storm = Storm(kit, root, seed)
    await asyncio.gather(
        *(storm.spawn(number) for number in range(6)), storm.work(), storm.work(), storm.cancel(), storm.cancel()
    )
    done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id}))
    await DrainCancellations(database).run_once()
    assert await findings(database, kit) == []
    statuses = await Forest(database, kit).stored_statuses(root.run_id)
    assert set(statuses) <= {"completed", "failed", "cancelled"}
    assert statuses["cancelled"] > 0
    assert storm.refusals["run_cancelled"] > 0


async def test_overlapping_cancels_count_each_run_once(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    # Ten trunks with thirty branches each.
    trunks = [-1] * 10
    made = await forest.grow(root.run_id, worker, parents=trunks + [number % 10 for number in range(300)])
    targets = [str(run_id) for run_id in made[:10]] + [root.run_id] + [str(run_id) for run_id in made[10:20]]

    async def cancel(run_id: str) -> httpx2.Response:
        return await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": run_id, "wait_s": 10})

    answers = await asyncio.gather(*(cancel(run_id) for run_id in random.Random(3).sample(targets, len(targets))))
    # Those that came after the root's own were refused: their caller was cancelled.
    counted = [answer.json()["cancelled_count"] for answer in answers if answer.is_success]
    await DrainCancellations(database).run_once()
    assert sum(counted) == 311
    assert await lineage_findings(database, kit) == []
    assert (await forest.stored_statuses(root.run_id)) == {"cancelled": 311}


async def test_two_drains_at_once_have_one_winner_and_right_counters(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the lock that spares work, so that nothing but the tree's lock and the rows keep them right.
    async def always(*_: object) -> bool:
        return True

    monkeypatch.setattr(drains, "claim", always)
    monkeypatch.setattr(drains, "CHUNK_RUNS", 17)
    root, worker = await kit.team()
    forest = Forest(database, kit)
    await forest.grow(root.run_id, worker, parents=[-1] * 20 + [number % 20 for number in range(380)])
    fence = await forest.fence(root.run_id, "run")
    target = await open_fence(database, fence.cancellation_id, kit)
    works = await asyncio.gather(*(Drain(database).execute(target) for _ in range(3)))
    assert sum(work.cancelled for work in works) == 401
    assert [work.drained for work in works] == [True, True, True]
    assert (await state_of(database, kit, fence.cancellation_id)).cancelled_count == 401
    assert await lineage_findings(database, kit) == []


@pytest.mark.parametrize("small", [True, False])
async def test_a_drain_that_dies_is_taken_up_by_another(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    monkeypatch.setattr(drains, "CHUNK_RUNS", 10)
    if not small:
        monkeypatch.setattr("kernel.commands.draining.SMALL", 5)
    root, worker = await kit.team()
    forest = Forest(database, kit)
    await forest.grow(root.run_id, worker, parents=[-1] * 200)
    fence = await forest.fence(root.run_id, "children")
    target = await open_fence(database, fence.cancellation_id, kit)
    rng = random.Random(11)
    for _ in range(8):
        # Cut off wherever it is: between two chunks, or within one.
        dying = asyncio.create_task(Drain(database).execute(target))
        await asyncio.wait([dying], timeout=rng.uniform(0, 0.03))
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        assert await lineage_findings(database, kit) == []
    async with asyncio.timeout(10):
        # The server may still be busy with the end of the last one's connection.
        while (await Drain(database).execute(target)).busy:  # noqa: ASYNC110 - what is awaited is another process
            await asyncio.sleep(0.01)
    cancellation = await state_of(database, kit, fence.cancellation_id)
    assert (cancellation.state, cancellation.cancelled_count, cancellation.scanned_count) == ("drained", 200, 200)
    assert await forest.stored_statuses(root.run_id) == {"running": 1, "cancelled": 200}
    assert await lineage_findings(database, kit) == []
    async with database.read() as session:
        assert await session.driver.fetchval("SELECT count(*) FROM pg_class WHERE relname LIKE 'drain_%'") == 0


async def test_a_drain_whose_process_is_killed_is_taken_up_by_another(
    kit: Kit, database: Database, database_url: str
) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    await forest.grow(root.run_id, worker, parents=[-1] * 600)
    fence = await forest.fence(root.run_id, "run")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRAINING, database_url, kit.tenant_id, str(fence.cancellation_id),
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(5):
        assert await process.stdout.readline() == b"chunk\n"
    process.kill()
    await process.wait()
    assert await lineage_findings(database, kit) == []
    before = (await state_of(database, kit, fence.cancellation_id)).cancelled_count
    assert 0 < before < 601
    reconciler = DrainCancellations(database)
    async with asyncio.timeout(10):
        while (await state_of(database, kit, fence.cancellation_id)).state == "draining":
            await reconciler.run_once()
    assert (await state_of(database, kit, fence.cancellation_id)).cancelled_count == 601
    assert await lineage_findings(database, kit) == []


@pytest.mark.parametrize("stops", ["in a chunk", "between chunks"])
async def test_a_drain_whose_process_stands_still_holds_up_neither_its_fence_nor_its_tree(
    kit: Kit, database: Database, database_url: str, stops: str
) -> None:
    root, worker = await kit.team(max_fanout=10_000, max_children_total=10_000)
    forest = Forest(database, kit)
    made = await forest.grow(root.run_id, worker, parents=[-1] * 100 + [0] * 500)
    fence = await forest.fence(str(made[0]), "run")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRAINING, database_url, kit.tenant_id, str(fence.cancellation_id), stops,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while await process.stdout.readline() != b"still\n":
            assert not process.stdout.at_eof()
        done(await kit.spawn(root, "meanwhile"))
        reconciler = DrainCancellations(database)
        async with asyncio.timeout(20):
            while (await state_of(database, kit, fence.cancellation_id)).state == "draining":
                await reconciler.run_once()
    finally:
        # It goes on, and finds its connection gone.
        process.send_signal(signal.SIGCONT)
        await process.wait()
    assert (await state_of(database, kit, fence.cancellation_id)).cancelled_count == 501
    assert await lineage_findings(database, kit) == []


async def test_a_fence_on_a_large_tree_is_answered_before_it_is_drained(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    made = await forest.grow(root.run_id, worker, parents=[-1] * 3 + [number % 3 for number in range(4500)])
    answer = done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": str(made[0])}))
    assert (answer["state"], answer["cancelled_count"], answer["cancelled_run_ids"]) == ("draining", 0, [])
    page = done(
        await kit.api.post("/internal/orchestration/query-tree", {"run_id": str(made[0]), "limit": 1, "rollup": True})
    )
    assert page["rollup"]["by_status"] == {"cancelled": 1501}
    counts = await DrainCancellations(database).run_once()
    assert counts.runs >= 1501
    shown = done(await kit.api.get(f"/internal/orchestration/cancellations/{answer['cancellation_id']}"))
    assert (shown["state"], shown["cancelled_count"], shown["scanned_count"]) == ("drained", 1501, 1501)
    waited = done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id, "wait_s": 30}))
    assert (waited["state"], waited["cancelled_count"]) == ("drained", 3003)
    assert len(waited["cancelled_run_ids"]) == 1000
    assert waited["scanned_count"] == 4504
    assert await lineage_findings(database, kit) == []


async def test_a_reconciler_ends_a_grace_when_its_time_is_up(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    done(await kit.spawn(root, "leased"))
    done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 300}))
    reconciler = DrainCancellations(database)
    answer = done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id, "grace_s": 1}))
    assert (answer["state"], answer["cancelled_count"]) == ("draining", 1)
    await reconciler.run_once()
    assert (await state_of(database, kit, UUID(answer["cancellation_id"]))).state == "draining"
    async with asyncio.timeout(10):
        while (await state_of(database, kit, UUID(answer["cancellation_id"]))).state == "draining":
            await asyncio.sleep(0.1)
            await reconciler.run_once()
    assert await findings(database, kit) == []


async def test_a_grace_that_all_workers_acknowledge_ends_early(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    done(await kit.spawn(root, "leased"))
    (work,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))["runs"]
    reconciler = DrainCancellations(database)
    answer = done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id, "grace_s": 3600}))
    await reconciler.run_once()
    done(
        await kit.api.post("/work/complete", {"run_id": work["run_id"], "lease": work["lease"], "status": "cancelled"})
    )
    await reconciler.run_once()
    cancellation = await state_of(database, kit, UUID(answer["cancellation_id"]))
    assert (cancellation.state, cancellation.cancelled_count) == ("drained", 2)
    assert await findings(database, kit) == []


@asynccontextmanager
async def long_pass(kit: Kit, database: Database, agent_id: str) -> AsyncIterator[None]:
    """A pass that lasts as long as the block: it has a fence to drain in a tree whose lock is held."""
    root = await kit.root(agent_id)
    async with database.write() as session:
        await Forest(database, kit).fence(root.run_id, "run")
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        drain = asyncio.create_task(DrainCancellations(database).run_once())
        yield
        assert not drain.done()
    await drain


async def until_drained(database: Database, kit: Kit, cancellation_id: UUID) -> None:
    # Less than a transaction that holds a lock may stand idle.
    async with asyncio.timeout(8):
        while (await state_of(database, kit, cancellation_id)).state == "draining":  # noqa: ASYNC110 - a row says so
            await asyncio.sleep(0.05)


async def test_a_grace_ends_in_its_time_though_a_pass_lasts_longer(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    done(await kit.spawn(root, "leased"))
    done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 300}))
    fence = await Forest(database, kit).fence(root.run_id, "run", grace_s=1)
    async with long_pass(kit, database, root.agent_id):
        await until_drained(database, kit, fence.cancellation_id)
    assert (await state_of(database, kit, fence.cancellation_id)).cancelled_count == 2


async def test_a_fence_in_a_tree_that_is_held_for_too_long_is_set_aside(kit: Kit, database: Database) -> None:
    root, of_others = await four_beside_others(kit, database)
    beside = await kit.root(root.agent_id)
    forest = Forest(database, kit)
    held, free = [(await forest.fence(one.run_id, "run")).cancellation_id for one in (root, beside)]
    async with impatient(database) as impatiently, database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        reconciler = DrainCancellations(impatiently)
        for _ in range(2):
            await reconciler.run_once()
            # What was set aside is counted still.
            assert backlog() == of_others + 4
    assert (await state_of(database, kit, free)).state == "drained"
    assert (await state_of(database, kit, held)).state == "draining"
    await DrainCancellations(database).run_once()
    assert (await state_of(database, kit, held)).state == "drained"
    assert backlog() == of_others


async def four_beside_others(kit: Kit, database: Database) -> tuple[Run, float]:
    """The root of a tree of four active runs, and the backlog that others have left."""
    root, _ = await kit.team()
    done(await kit.spawn_group(root, "many", 3))
    await DrainCancellations(database).run_once()
    return root, backlog()


def backlog() -> float:
    """Runs under fences that are not drained, as the metric has it."""
    value: float = metrics.CANCEL_BACKLOG_RUNS._value.get()
    return value


async def test_a_held_tree_with_many_fences_holds_up_no_other(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    made = done(await kit.spawn_group(root, "many", 30))["spawned_run_ids"]
    beside = await kit.root(root.agent_id)
    forest = Forest(database, kit)
    await DrainCancellations(database).run_once()
    fences = [(await forest.fence(run_id, "run")).cancellation_id for run_id in made]
    free = (await forest.fence(beside.run_id, "run")).cancellation_id
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        draining = asyncio.create_task(DrainCancellations(database).run_once())
        await until_drained(database, kit, free)
        assert not draining.done()
    # One waited for the tree, and its fences are drained as soon as it is free.
    await draining
    assert {(await state_of(database, kit, one)).state for one in fences} == {"drained"}


async def test_what_fails_while_others_are_looked_for_is_counted(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, of_others = await four_beside_others(kit, database)
    await Forest(database, kit).fence(root.run_id, "run")
    open_fences = drains.open_fences

    async def slowly(session: ReadSession, **more: Any) -> list[OpenFence]:
        found = await open_fences(session, **more)
        if not found:
            await asyncio.sleep(0.5)
        return found

    monkeypatch.setattr(drains, "open_fences", slowly)
    async with impatient(database) as impatiently, database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        await DrainCancellations(impatiently).run_once()
        assert backlog() == of_others + 4


async def test_what_was_set_aside_and_drained_by_another_is_not_counted(kit: Kit, database: Database) -> None:
    root, of_others = await four_beside_others(kit, database)
    await Forest(database, kit).fence(root.run_id, "run")
    async with impatient(database) as impatiently:
        first = DrainCancellations(impatiently)
        async with database.write() as session:
            await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
            await first.run_once()
        await DrainCancellations(database).run_once()
        await first.run_once()
        assert backlog() == of_others


async def test_a_drain_that_met_a_held_tree_after_a_grace_goes_on_before_that_ends(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn(root, "leased"))
    done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 900}))
    for key in "abc":
        done(await kit.spawn(root, key, start_background=False))
    monkeypatch.setattr(drains, "CHUNK_RUNS", 1)
    fence = await Forest(database, kit).fence(root.run_id, "children", grace_s=600)
    left_active, begun, let_go = drains.left_active, asyncio.Event(), asyncio.Event()
    pids: list[int] = []

    async def hold() -> None:
        async with database.write() as session:
            pids.append(await session.driver.fetchval("SELECT pg_backend_pid()"))
            begun.set()
            await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
            await let_go.wait()

    holding: list[asyncio.Task[None]] = []

    async def left(session: WriteSession, target: OpenFence, part: drains.Chunk) -> list[UUID]:
        found = await left_active(session, target, part)
        # The pass also drains what other tests have left under a grace.
        if found and not holding and target.root_run_id == UUID(root.run_id):
            holding.append(asyncio.create_task(hold()))
            await begun.wait()
            # It is the next in the queue for the tree.
            async with asyncio.timeout(8):
                while not await session.driver.fetchval("SELECT pg_blocking_pids($1) <> '{}'", pids[0]):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        return found

    monkeypatch.setattr(drains, "left_active", left)
    monkeypatch.setattr("kernel.reconcilers.setting_aside.HELD_ASIDE_S", 0.1)
    async with impatient(database) as impatiently:
        reconciler = DrainCancellations(impatiently)
        await reconciler.run_once()
        counted = (await state_of(database, kit, fence.cancellation_id)).cancelled_count
        let_go.set()
        await asyncio.gather(*holding)
        assert counted == 0
        await asyncio.sleep(0.1)
        await reconciler.run_once()
    assert (await state_of(database, kit, fence.cancellation_id)).cancelled_count == 3


async def test_graces_cost_one_question_a_look_however_many_they_are(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await kit.team()
    works = []
    for key in "abc":
        child = done(await kit.spawn(root, key))["spawned_run_ids"][0]
        works += done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 300}))["runs"]
        done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": child, "grace_s": 300}))
    asked: list[int] = []
    active_among, first_active = drains.active_among, drains.first_active

    async def among(session: ReadSession, runs: Sequence[tuple[UUID, UUID]]) -> set[UUID]:
        asked.append(len([run for run in runs if str(run[0]) == kit.tenant_id]))
        return await active_among(session, runs)

    async def first(session: ReadSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> UUID | None:
        if str(tenant_id) == kit.tenant_id:
            asked.append(-len(run_ids))
        return await first_active(session, tenant_id, run_ids)

    monkeypatch.setattr(drains, "active_among", among)
    monkeypatch.setattr(drains, "first_active", first)
    reconciler = DrainCancellations(database)
    await reconciler.run_once()
    asked.clear()
    await reconciler.run_once()
    assert set(asked) == {3}
    lease = {"run_id": works[0]["run_id"], "lease": works[0]["lease"]}
    done(await kit.api.post("/work/complete", {**lease, "status": "cancelled"}))
    asked.clear()
    await reconciler.run_once()
    assert asked[:2] == [3, -1]
    assert set(asked[2:]) <= {2}


async def test_what_another_process_has_given_up_is_taken_up_though_a_pass_lasts_longer(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await kit.team()
    fence = await Forest(database, kit).fence(root.run_id, "run")
    claim = drains.claim
    found_busy = asyncio.Event()

    async def claiming(session: ReadSession, cancellation_id: UUID) -> bool:
        claimed = await claim(session, cancellation_id)
        if cancellation_id == fence.cancellation_id and not claimed:
            found_busy.set()
        return claimed

    async with database.read() as elsewhere:
        assert await claim(elsewhere, fence.cancellation_id)
        monkeypatch.setattr(drains, "claim", claiming)
        async with long_pass(kit, database, root.agent_id):
            await asyncio.wait_for(found_busy.wait(), 8)
            await drains.leave(elsewhere, fence.cancellation_id)
            await until_drained(database, kit, fence.cancellation_id)


async def test_a_pass_takes_up_no_more_fences_than_it_can_look_at_soon(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    made = await forest.grow(root.run_id, worker, parents=[-1] * 7)
    fences = {(await forest.fence(str(run_id), "run")).cancellation_id for run_id in made}
    monkeypatch.setattr("kernel.reconcilers.drain_cancellations.MAX_AHEAD", 2)
    open_fences = drains.open_fences
    under_way: list[int] = []

    async def opened(session: ReadSession, *, passing_over: Sequence[UUID], **more: Any) -> list[OpenFence]:
        found = await open_fences(session, passing_over=passing_over, **more)
        under_way.append(len(fences & {*passing_over, *(target.fence.cancellation_id for target in found)}))
        return found

    monkeypatch.setattr(drains, "open_fences", opened)
    await DrainCancellations(database).run_once()
    assert max(under_way) == 2
    for cancellation_id in fences:
        assert (await state_of(database, kit, cancellation_id)).state == "drained"


async def test_a_covered_orchestrator_decides_no_group_whatever_the_order_of_the_drains(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team(max_depth=6)
    branch = done(await kit.spawn(root, "branch", "orchestrator"))["spawned_run_ids"][0]
    group = done(await kit.spawn_group(branch, "g", 4, join_mode="fail_fast"))
    forest = Forest(database, kit)
    inner = await forest.fence(group["spawned_run_ids"][0], "run")
    outer = await forest.fence(branch, "run")
    for fence in (inner, outer):
        await Drain(database).execute(await open_fence(database, fence.cancellation_id, kit))
    joined = done(
        await kit.api.post(
            "/internal/orchestration/join",
            {"caller_run_id": root.run_id, "orchestration_group_id": group["orchestration_group_id"]},
        )
    )
    assert (joined["status"], joined["decided_seq"]) == ("cancelled", None)
    assert await findings(database, kit) == []


async def test_a_fence_that_cannot_be_drained_is_set_aside_and_holds_up_no_other(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    made = await forest.grow(root.run_id, worker, parents=[-1, -1, 0, 1])
    poisoned, other = await forest.fence(str(made[0]), "run"), await forest.fence(str(made[1]), "run")
    look = drains.look

    async def poison(session: ReadSession, target: OpenFence, *, limit: int) -> drains.Listed:
        if target.fence.cancellation_id == poisoned.cancellation_id:
            raise ValueError("poison")
        return await look(session, target, limit=limit)

    with monkeypatch.context() as poisoning:
        poisoning.setattr(drains, "look", poison)
        reconciler = DrainCancellations(database)
        await reconciler.run_once()
        await reconciler.run_once()
    assert (await state_of(database, kit, other.cancellation_id)).state == "drained"
    assert (await state_of(database, kit, poisoned.cancellation_id)).state == "draining"
    assert metrics.RECONCILER_ROWS_SET_ASIDE.labels("drain_cancellations")._value.get() == 1
    # It is left alone for a while by whoever met it; what it covers reads as cancelled all the same.
    assert (await reconciler.run_once()).total == 0
    assert done(await kit.api.get(f"/agents/runs/{made[2]}"))["status"] == "cancelled"
    await DrainCancellations(database).run_once()
    assert (await state_of(database, kit, poisoned.cancellation_id)).state == "drained"
    assert await lineage_findings(database, kit) == []


async def test_drains_that_lose_the_database_together_are_told_once_and_taken_up_again(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    made = await forest.grow(root.run_id, worker, parents=[-1] * 3)
    fences = [await forest.fence(str(run_id), "run") for run_id in made]
    lost: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    together = asyncio.Barrier(len(fences))

    async def gone(*_args: object, **_more: object) -> None:
        await together.wait()
        raise DatabaseUnavailableError("the database does not answer")

    reconciler = DrainCancellations(database)
    loop.set_exception_handler(lambda _loop, context: lost.append(context))
    try:
        with monkeypatch.context() as outage:
            outage.setattr(Drain, "execute", gone)
            with pytest.raises(DatabaseUnavailableError):
                await reconciler.run_once()
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert lost == []
    await reconciler.run_once()
    for fence in fences:
        assert (await state_of(database, kit, fence.cancellation_id)).state == "drained"


async def test_whoever_waited_for_a_drain_is_told_that_it_is_done(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    made = await Forest(database, kit).grow(root.run_id, worker, parents=[-1] + [0] * 400)
    body = {"caller_run_id": root.run_id, "run_id": str(made[0]), "wait_s": 90.5}
    waiting = [asyncio.create_task(kit.api.post(CANCEL, body)) for _ in range(12)]
    reconciler = DrainCancellations(database)
    while not all(task.done() for task in waiting):
        await reconciler.run_once()
        await asyncio.wait(waiting, timeout=0.05)
    answers = [done(task.result()) for task in waiting]
    assert {answer["state"] for answer in answers} == {"drained"}
    assert sorted(answer["cancelled_count"] for answer in answers) == [0] * 11 + [401]
    assert len({answer["cancellation_id"] for answer in answers}) == 1


async def test_a_wait_for_a_drain_ends_when_the_service_stops(kit: Kit, database: Database, services: Services) -> None:
    root, _ = await kit.team()
    done(await kit.spawn(root, "a"))
    done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))
    own = Wakeups(database, asyncio.Event())
    command = CancelSubtreeCommand(database, services.engine, own)
    principal = Principal("tenant", UUID(kit.tenant_id), frozenset({"agents.execute"}))
    run_id = UUID(root.run_id)
    request = CancelSubtree(run_id, run_id, grace_s=600, wait_s=60.0)
    waiting = asyncio.create_task(command.execute(principal, request))
    await asyncio.wait_for(own.fences.wait(), 20)
    await own.stop()
    answer = await asyncio.wait_for(waiting, 20)
    assert (answer.state, answer.cancelled_count, answer.repeated) == ("draining", 1, False)
    # And none begins.
    repeat = await asyncio.wait_for(command.execute(principal, request), 20)
    assert (repeat.state, repeat.repeated) == ("draining", True)
