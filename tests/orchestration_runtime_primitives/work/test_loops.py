"""Control loops: they go on, whatever a pass meets."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from kernel import metrics
from kernel.commands.aftermath import Aftermath
from kernel.domain.errors import DatabaseUnavailableError
from kernel.reconcilers.expire_leases import ExpiredLeases, expire_leases
from kernel.reconcilers.loop import Loop
from kernel.reconcilers.setting_aside import SetAside
from kernel.reconcilers.sweep import Sweep, SweepCounts
from kernel.store import trees
from kernel.store.engine import Database, WriteSession
from kernel.store.trees import LockedTree
from tests.faults.patience import impatient
from tests.kit import Kit, done
from tests.orchestration_runtime_primitives.work.crew import PLENTY, WELL_BEFORE_S, audit, claim, let_expire, row


@dataclass
class Passes:
    """A body that does as it is told, pass by pass, and then has nothing to do."""

    plan: list[int | Exception] = field(default_factory=list)
    done: asyncio.Condition = field(default_factory=asyncio.Condition)
    count: int = 0

    async def run_once(self) -> SweepCounts:
        async with self.done:
            self.count += 1
            self.done.notify_all()
        step = self.plan.pop(0) if self.plan else 0
        if isinstance(step, Exception):
            raise step
        return SweepCounts(step)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5), self.done:
            await self.done.wait_for(lambda: self.count >= count)


async def test_a_loop_goes_on_at_once_while_there_is_more_to_do_and_then_rests() -> None:
    body = Passes([3, 2, 1])
    loop = Loop("test_more", body, interval_s=60)
    await loop.start()
    await body.until(4)
    await loop.stop()
    assert body.count == 4
    assert metrics.RECONCILER_LAST_RUN_SECONDS.labels("test_more")._value.get() > 0


async def test_a_loop_is_woken_early() -> None:
    body, wake = Passes(), asyncio.Event()
    loop = Loop("test_wake", body, interval_s=60, wake=wake)
    await loop.start()
    await body.until(1)
    wake.set()
    await body.until(2)
    await loop.stop()


async def test_a_loop_survives_what_a_pass_raises_and_only_success_counts() -> None:
    body, wake = Passes([DatabaseUnavailableError("gone"), ValueError("odd")]), asyncio.Event()
    loop = Loop("test_fail", body, interval_s=0.01, wake=wake)
    await loop.start()
    await body.until(2)
    assert metrics.RECONCILER_LAST_RUN_SECONDS.labels("test_fail")._value.get() == 0
    await body.until(3)
    await loop.stop()
    assert metrics.RECONCILER_LAST_RUN_SECONDS.labels("test_fail")._value.get() > 0


async def test_a_loop_that_fails_waits_longer_each_time() -> None:
    body = Passes([DatabaseUnavailableError("gone")] * 100)
    loop = Loop("test_backoff", body, interval_s=0.02)
    await loop.start()
    await asyncio.sleep(0.5)
    await loop.stop()
    # At even intervals there would have been some 25.
    assert 2 <= body.count <= 6


class Poisoned(ExpiredLeases):
    """Fails on one row."""

    name = "test_poisoned"

    def __init__(self, poison: UUID) -> None:
        self.poison = poison

    async def settle(self, session: WriteSession, tree: LockedTree, row_ids: Sequence[UUID]) -> tuple[int, Aftermath]:
        if self.poison in row_ids:
            raise ValueError("poison")
        return await super().settle(session, tree, row_ids)


async def test_a_row_that_cannot_be_settled_is_set_aside_and_holds_up_no_other(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn_group(root, "g", 5))
    runs = await claim(kit, max_runs=5)
    await let_expire(database, *(run["run_id"] for run in runs))
    poison = runs[2]["run_id"]
    sweep = Sweep(database, Poisoned(UUID(poison)))
    counts = await sweep.run_once()
    assert counts.set_aside == 1
    assert metrics.RECONCILER_ROWS_SET_ASIDE.labels("test_poisoned")._value.get() == 1
    statuses = [(await row(database, run["run_id"]))["status"] for run in runs]
    assert statuses == ["queued", "queued", "running", "queued", "queued"]
    assert (await sweep.run_once()).total == 0
    await audit(database, kit)


async def test_a_tree_that_is_held_for_too_long_is_set_aside(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    beside = await kit.root(root.agent_id)
    for one in (root, beside):
        done(await kit.spawn(one, "a"))
    runs = {run["context"]["root_run_id"]: run for run in await claim(kit, max_runs=2)}
    await let_expire(database, *(run["run_id"] for run in runs.values()))
    async with impatient(database) as impatiently, database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        counts = await expire_leases(impatiently).run_once()
    assert counts.set_aside == 1
    statuses = [(await row(database, runs[one.run_id]["run_id"]))["status"] for one in (root, beside)]
    assert statuses == ["running", "queued"]
    await audit(database, kit)


async def test_a_tree_that_is_held_holds_up_no_other(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    roots = [root, *[await kit.root(root.agent_id) for _ in range(6)]]
    for one in roots:
        done(await kit.spawn(one, "a"))
    runs = {run["context"]["root_run_id"]: run for run in await claim(kit, max_runs=7)}
    *held, before, later = [runs[one.run_id] for one in roots]
    await let_expire(database, *(run["run_id"] for run in (*held, before)))
    sweep = expire_leases(database)

    async def until_queued(run: dict[str, Any]) -> None:
        async with asyncio.timeout(WELL_BEFORE_S):
            while (await row(database, run["run_id"]))["status"] != "queued":  # noqa: ASYNC110 - a pass under way tells nobody
                await asyncio.sleep(0.02)

    async with database.write() as session:
        await trees.lock(session, [(UUID(kit.tenant_id), UUID(one.run_id)) for one in roots[:-2]])
        passing = asyncio.create_task(sweep.run_once())
        await until_queued(before)
        # What becomes due while the pass waits is not left to the next one.
        await let_expire(database, later["run_id"])
        await until_queued(later)
        assert not passing.done()
    assert (await asyncio.wait_for(passing, WELL_BEFORE_S)).settled >= len(roots)
    assert {(await row(database, run["run_id"]))["status"] for run in held} == {"queued"}
    await audit(database, kit)


def test_what_was_set_aside_is_tried_again_later() -> None:
    now = 0.0
    aside, row_id = SetAside("test_aside", aside_s=10, clock=lambda: now), uuid4()
    aside.add([row_id], ValueError("odd"))
    assert aside.row_ids == [row_id]
    now = 11.0
    assert aside.row_ids == []
