"""A pass over rows that are due, tree by tree: found without a lock, and settled under the lock of their tree."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from kernel.commands.aftermath import Aftermath
from kernel.domain.errors import DatabaseUnavailableError
from kernel.reconcilers.setting_aside import SetAside
from kernel.store import trees
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.trees import LockedTree, TreeKey
from kernel.wakeups import Wakeups

# Rows found at once, and rows settled under one lock, which stays short by it.
MAX_FOUND = 1_000
MAX_PER_LOCK = 200
PARALLEL_TREES = 4


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """What a pass has settled, and what it has set aside."""

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
        self, session: ReadSession, *, limit: int, passing_over: Sequence[UUID]
    ) -> list[tuple[TreeKey, UUID]]:
        """Rows that seem due, the longest overdue first, each with its tree."""
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

    async def run_once(self) -> SweepCounts:
        """Settle what is due now."""
        async with self._database.read() as session:
            found = await self._due.find(session, limit=MAX_FOUND, passing_over=self._aside.row_ids)
        by_tree: dict[TreeKey, list[UUID]] = {}
        for key, row_id in found:
            by_tree.setdefault(key, []).append(row_id)
        done = await asyncio.gather(*(self._tree(key, row_ids) for key, row_ids in by_tree.items()))
        return SweepCounts(sum(counts.settled for counts in done), sum(counts.set_aside for counts in done))

    async def _tree(self, key: TreeKey, row_ids: Sequence[UUID]) -> SweepCounts:
        settled = set_aside = 0
        async with self._turns:
            for start in range(0, len(row_ids), MAX_PER_LOCK):
                counts = await self._part(key, row_ids[start : start + MAX_PER_LOCK])
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
        async with self._database.write() as session:
            tree = await trees.lock_one(session, *key)
            count, aftermath = await self._due.settle(session, tree, row_ids)
            if count:
                await trees.advance(session, tree)
        aftermath.tell(self._wakeups)
        return count
