"""A pass over rows that are due, tree by tree: found without a lock, and settled under the lock of their tree."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from kernel import metrics
from kernel.commands.aftermath import Aftermath
from kernel.domain.errors import DatabaseUnavailableError, LockTimeoutError
from kernel.reconcilers.setting_aside import SetAside
from kernel.store import trees
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.trees import LockedTree, TreeKey
from kernel.wakeups import Wakeups

# Rows found at once, and rows settled under one lock, which stays short by it.
MAX_FOUND = 1_000
MAX_PER_LOCK = 200
PARALLEL_TREES = 4
# So many of the trees that somebody holds are waited for at a time; the others are settled beside them.
PARALLEL_WAITS = 2
# How soon what becomes due while trees are waited for is taken up beside them.
LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """What a pass has settled, and what it has set aside: rows, and trees."""

    settled: int = 0
    set_aside: int = 0

    @property
    def total(self) -> int:
        """How much there was to do. What was set aside does not count: looking again at once is no use."""
        return self.settled


class Due(Protocol):
    """Rows that are due, and what becomes of them."""

    name: str

    async def find(
        self, session: ReadSession, *, limit: int, passing_over: Sequence[UUID], elsewhere_than: Sequence[UUID]
    ) -> list[tuple[TreeKey, UUID]]:
        """Rows that seem due, the longest overdue first, each with its tree.

        Args:
            passing_over: rows that are left alone.
            elsewhere_than: the roots of trees that are left alone.
        """
        ...

    async def settle(self, session: WriteSession, tree: LockedTree, row_ids: Sequence[UUID]) -> tuple[int, Aftermath]:
        """Settle those rows of a locked tree that still are due: how many, and what is to be told after the commit."""
        ...


class Sweep:
    """Settles what is due. Several processes may do so at once: each looks again under the lock."""

    def __init__(self, database: Database, due: Due, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._due = due
        self._wakeups = wakeups
        self._aside = SetAside(due.name)
        self._turns = asyncio.Semaphore(PARALLEL_TREES)
        self._waits = asyncio.Semaphore(PARALLEL_WAITS)

    async def run_once(self) -> SweepCounts:
        """Settle what is due now, and what becomes due meanwhile elsewhere than in the trees that are under way."""
        under_way: dict[TreeKey, asyncio.Task[SweepCounts]] = {}
        done: list[SweepCounts] = []
        try:
            while True:
                if not self._stopping and len(under_way) < MAX_FOUND:
                    for key, row_ids in (await self._find(under_way)).items():
                        under_way[key] = asyncio.create_task(self._tree(key, row_ids))
                if under_way:
                    await asyncio.wait(under_way.values(), timeout=LOOK_S)
                for key, task in list(under_way.items()):
                    if task.done():
                        del under_way[key]
                        done.append(task.result())
                if not under_way:
                    return SweepCounts(sum(counts.settled for counts in done), sum(counts.set_aside for counts in done))
                # A tree that is held for long is no standstill.
                metrics.RECONCILER_LAST_RUN_SECONDS.labels(self._due.name).set(time.time())
        finally:
            for task in under_way.values():
                task.cancel()
            await asyncio.gather(*under_way.values(), return_exceptions=True)

    @property
    def _stopping(self) -> bool:
        return self._wakeups is not None and self._wakeups.stopping

    async def _find(self, under_way: Iterable[TreeKey]) -> dict[TreeKey, list[UUID]]:
        """What is due, tree by tree."""
        async with self._database.read() as session:
            aside = self._aside.row_ids
            found = await self._due.find(
                session,
                limit=MAX_FOUND,
                passing_over=aside,
                elsewhere_than=[*(root_run_id for _, root_run_id in under_way), *aside],
            )
        by_tree: dict[TreeKey, list[UUID]] = {}
        for key, row_id in found:
            by_tree.setdefault(key, []).append(row_id)
        return by_tree

    async def _tree(self, key: TreeKey, row_ids: Sequence[UUID]) -> SweepCounts:
        settled = set_aside = 0
        for start in range(0, len(row_ids), MAX_PER_LOCK):
            try:
                counts = await self._part(key, row_ids[start : start + MAX_PER_LOCK])
            except LockTimeoutError as error:
                # The rest of its rows would wait in vain, too.
                self._aside.add_tree(key[1], error)
                return SweepCounts(settled, set_aside + 1)
            settled += counts.settled
            set_aside += counts.set_aside
        return SweepCounts(settled, set_aside)

    async def _part(self, key: TreeKey, row_ids: Sequence[UUID]) -> SweepCounts:
        try:
            return SweepCounts(await self._settle(key, row_ids))
        except DatabaseUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a row, the others are settled
            if len(row_ids) == 1:
                self._aside.add(row_ids, error)
                return SweepCounts(set_aside=1)
        done = [await self._part(key, [row_id]) for row_id in row_ids]
        return SweepCounts(sum(counts.settled for counts in done), sum(counts.set_aside for counts in done))

    async def _settle(self, key: TreeKey, row_ids: Sequence[UUID]) -> int:
        async with self._turns:
            settled = await self._settle_locked(key, row_ids, wait=False)
        if settled is None:
            # Whoever waits keeps its connection, so few do.
            with self._aside.waiting_for(key[1]):
                async with self._waits:
                    settled = await self._settle_locked(key, row_ids, wait=True)
        return settled or 0

    async def _settle_locked(self, key: TreeKey, row_ids: Sequence[UUID], *, wait: bool) -> int | None:
        """Settle rows under the lock of their tree; None where somebody else holds it, and is not waited for."""
        async with self._database.write() as session:
            locked = await (trees.lock(session, [key]) if wait else trees.lock_available(session, [key], at_most=1))
            if not (locked or wait):
                return None
            tree = locked[key]
            count, aftermath = await self._due.settle(session, tree, row_ids)
            if count:
                await trees.advance(session, tree)
        aftermath.tell(self._wakeups)
        return count
