"""Drains the fences that are open, whoever set them; several processes may do so at once."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from uuid import UUID

from kernel import metrics
from kernel.commands.draining import MAX_WATCHED, Drain, Progress
from kernel.store import drains
from kernel.store.drains import OpenFence
from kernel.store.engine import Database, ReadSession
from kernel.wakeups import Wakeups

MAX_FENCES = 64
PARALLEL_DRAINS = 3


@dataclass(frozen=True, slots=True)
class DrainCounts:
    """What a pass has done: fences drained to their end, and runs cancelled."""

    fences: int = 0
    runs: int = 0

    @property
    def total(self) -> int:
        """Whether there was anything to do, as a number."""
        return self.fences + self.runs


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A fence of which only runs are left whose workers have a grace."""

    target: OpenFence
    run_ids: list[UUID]


class DrainCancellations:
    """A control loop's body: drains what is open, and returns.

    Args:
        database: the pool; a drain holds one connection.
        wakeups: woken for the groups that close.
        parallel: how many fences are drained at once, so that a small one does not wait for a large one.
    """

    def __init__(self, database: Database, wakeups: Wakeups | None = None, *, parallel: int = PARALLEL_DRAINS) -> None:
        self._database = database
        self._drain = Drain(database, wakeups)
        self._turns = asyncio.Semaphore(parallel)
        self._waiting: dict[UUID, _Waiting] = {}

    async def run_once(self) -> DrainCounts:
        """Drain the fences that are open now."""
        async with self._database.read() as session:
            await self._end_waits(session)
            targets = await drains.open_fences(session, limit=MAX_FENCES, passing_over=list(self._waiting))
        works = {target.fence.cancellation_id: Progress(remaining=target.active_runs) for target in targets}
        gauge = asyncio.create_task(self._measure(targets, works))
        try:
            async with asyncio.TaskGroup() as group:
                for target in targets:
                    group.create_task(self._one(target, works[target.fence.cancellation_id]))
        finally:
            gauge.cancel()
            await asyncio.gather(gauge, return_exceptions=True)
            self._set_backlog(targets, works)
        return DrainCounts(
            fences=sum(work.drained for work in works.values()), runs=sum(work.cancelled for work in works.values())
        )

    async def _one(self, target: OpenFence, work: Progress) -> None:
        async with self._turns:
            await self._drain.execute(target, progress=work)
        if work.waiting:
            self._waiting[target.fence.cancellation_id] = _Waiting(target, work.waiting)

    async def _end_waits(self, session: ReadSession) -> None:
        """Take up again the fences whose grace has ended, or whose last workers have acknowledged."""
        if not self._waiting:
            return
        ended = await drains.grace_ended(
            session, {cancellation_id: wait.target.tenant_id for cancellation_id, wait in self._waiting.items()}
        )
        for cancellation_id, wait in list(self._waiting.items()):
            if cancellation_id in ended or (
                len(wait.run_ids) <= MAX_WATCHED
                and not await drains.any_active(session, wait.target.tenant_id, wait.run_ids)
            ):
                del self._waiting[cancellation_id]

    async def _measure(self, targets: list[OpenFence], works: dict[UUID, Progress]) -> None:
        while True:
            self._set_backlog(targets, works)
            await asyncio.sleep(1.0)

    def _set_backlog(self, targets: list[OpenFence], works: dict[UUID, Progress]) -> None:
        """Runs under fences of a tree overlap, so a tree counts no more of them than it has active."""
        by_tree: dict[tuple[UUID, UUID], list[OpenFence]] = defaultdict(list)
        for target in targets:
            by_tree[target.tenant_id, target.root_run_id].append(target)
        backlog = 0
        for fences in by_tree.values():
            left = sum(
                0 if (work := works[target.fence.cancellation_id]).drained else work.remaining for target in fences
            )
            backlog += min(left, fences[0].active_runs)
        metrics.CANCEL_BACKLOG_RUNS.set(backlog + sum(len(wait.run_ids) for wait in self._waiting.values()))
