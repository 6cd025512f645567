"""Drains the fences that are open, whoever set them; several processes may do so at once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

from kernel import metrics
from kernel.commands.draining import MAX_WATCHED, SMALL, Drain, Progress
from kernel.domain.errors import DatabaseUnavailableError, LockTimeoutError
from kernel.reconcilers.setting_aside import SetAside
from kernel.store import drains, trees
from kernel.store.drains import OpenFence
from kernel.store.engine import Database, ReadSession
from kernel.store.trees import TreeHeldError, TreeKey
from kernel.wakeups import Wakeups

NAME = "drain_cancellations"
MAX_FENCES = 64
# So many may wait for their first look, at most: more would be no sooner done.
MAX_AHEAD = 256
PARALLEL_DRAINS = 3
PARALLEL_LARGE_DRAINS = 2
# A drain that does not get the lock of its tree soon gives up its turn, and waits among so many for its tree alone.
PARALLEL_WAITS = 2
# How soon fences that are set during a long drain are taken up beside it.
LOOK_S = 0.25
# How soon a fence that another process was draining is taken up here: that process may have died since, or given up.
AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class DrainCounts:
    """What a pass has done: fences drained to their end, and runs cancelled."""

    fences: int = 0
    runs: int = 0

    @property
    def total(self) -> int:
        """How much there was to do."""
        return self.fences + self.runs


@dataclass(slots=True)
class _Work:
    """A fence that is being drained. `is_large`: it has been looked at, and leaves the small ones their turns."""

    target: OpenFence
    progress: Progress = field(default_factory=Progress)
    is_large: bool = False
    done: bool = False

    def __post_init__(self) -> None:
        # Until it has been looked at, it may be as many as the whole tree has.
        self.progress.remaining = self.target.active_runs


@dataclass(slots=True)
class _Waiting:
    """A fence of which only runs are left whose workers have a grace. While `probe` is active, not all have ended."""

    target: OpenFence
    run_ids: list[UUID]
    probe: UUID


class DrainCancellations:
    """A control loop's body: drains what is open, and returns.

    Args:
        database: the pool; each drain holds one connection.
        wakeups: woken for the groups that close; when it stops, drains end with their chunk.
    """

    def __init__(self, database: Database, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._wakeups = wakeups
        self._drain = Drain(database, wakeups)
        self._turns = asyncio.Semaphore(PARALLEL_DRAINS)
        self._large_turns = asyncio.Semaphore(PARALLEL_LARGE_DRAINS)
        self._waiting: dict[UUID, _Waiting] = {}
        self._aside = SetAside(NAME)
        self._waits = asyncio.Semaphore(PARALLEL_WAITS)
        # The trees of what is set aside, and what is active in them: it is no less undrained for that.
        self._aside_trees: dict[UUID, TreeKey] = {}
        self._aside_runs: dict[TreeKey, int] = {}

    async def run_once(self) -> DrainCounts:
        """Drain the fences that are open, and those that are set meanwhile."""
        works: dict[UUID, _Work] = {}
        # What could not be finished, such as a fence that another process drains, and when it is tried again: a pass
        # may last as long as the drain of a million runs.
        left: dict[UUID, float] = {}
        running: set[asyncio.Task[None]] = set()
        fences = runs = 0
        try:
            while True:
                if not self._stopping:
                    left = {cancellation_id: again for cancellation_id, again in left.items() if again > monotonic()}
                    ahead = sum(not work.is_large for work in works.values())
                    for target in await self._open([*works, *left], limit=min(MAX_FENCES, MAX_AHEAD - ahead)):
                        work = works[target.fence.cancellation_id] = _Work(target)
                        running.add(asyncio.create_task(self._one(work)))
                self._measure(works.values())
                if not running:
                    return DrainCounts(fences, runs)
                done, running = await asyncio.wait(running, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                # Each is asked: of several that fail together, those that nobody asked would be reported as lost.
                failures = [error for task in done if (error := task.exception()) is not None]
                if failures:
                    raise failures[0]
                for cancellation_id, work in [item for item in works.items() if item[1].done]:
                    del works[cancellation_id]
                    fences += work.progress.drained
                    runs += work.progress.cancelled
                    # One that waits for the end of a grace is taken up when that has come, and not later; so is one
                    # whose tree is waited for, when that is free.
                    known = {*self._waiting, *self._aside.row_ids}
                    if not (work.progress.drained or known & {cancellation_id, work.target.root_run_id}):
                        left[cancellation_id] = monotonic() + AGAIN_S
                # A long drain is no standstill.
                metrics.RECONCILER_LAST_RUN_SECONDS.labels(NAME).set(time.time())
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    @property
    def _stopping(self) -> bool:
        return self._wakeups is not None and self._wakeups.stopping

    async def _open(self, known: Sequence[UUID], *, limit: int) -> list[OpenFence]:
        """Fences to be taken up now."""
        if not limit:
            return []
        async with self._database.read() as session:
            await self._end_waits(session)
            aside = self._aside.row_ids
            found = await drains.open_fences(
                session, limit=limit, passing_over=[*self._waiting, *aside, *known], elsewhere_than=aside
            )
            # Asked last: what fails from here on counts among the works until the next look.
            aside = self._aside.row_ids
            self._aside_trees = {row_id: self._aside_trees[row_id] for row_id in aside if row_id in self._aside_trees}
            held = set(self._aside_trees.values())
            self._aside_runs = await drains.active_under_open(session, held) if held else {}
        return found

    async def _one(self, work: _Work) -> None:
        target, cancellation_id = work.target, work.target.fence.cancellation_id
        tree = (target.tenant_id, target.root_run_id)
        try:
            while await self._is_held(work) and await self._wait_for(target):
                pass
            if work.progress.waiting:
                self._waiting[cancellation_id] = _Waiting(target, work.progress.waiting, work.progress.waiting[0])
        except LockTimeoutError as error:
            self._aside.add_tree(target.root_run_id, error)
            self._aside_trees[target.root_run_id] = tree
        except DatabaseUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a fence, the others are drained
            self._aside.add([cancellation_id], error)
            self._aside_trees[cancellation_id] = tree
        finally:
            work.done = True

    async def _is_held(self, work: _Work) -> bool:
        """Drain a fence in its turn; whether nothing could be done because somebody holds its tree."""
        try:
            await self._drain_in_turn(work)
        except TreeHeldError:
            return True
        return False

    async def _drain_in_turn(self, work: _Work) -> None:
        """Drain a fence, what is small ahead of what is large.

        Raises:
            TreeHeldError: when somebody holds its tree; nothing was done.
        """
        async with self._turns:
            if work.target.root_run_id in self._aside.row_ids:
                return
            await self._drain.execute(work.target, at_most=SMALL, progress=work.progress, patience_ms=trees.PATIENCE_MS)
        if not (work.progress.drained or work.progress.busy or work.progress.waiting or self._stopping):
            work.is_large = True
            async with self._large_turns:
                if work.target.root_run_id not in self._aside.row_ids:
                    await self._drain.execute(work.target, progress=work.progress, patience_ms=trees.PATIENCE_MS)

    async def _wait_for(self, target: OpenFence) -> bool:
        """Wait until nobody holds a tree, one for all of its fences; whether this one did, and it is free.

        Raises:
            LockTimeoutError: when it was waited for in vain.
        """
        if target.root_run_id in self._aside.row_ids:
            return False
        with self._aside.waiting_for(target.root_run_id):
            async with self._waits, self._database.write() as session:
                await trees.lock_one(session, target.tenant_id, target.root_run_id)
        return True

    async def _end_waits(self, session: ReadSession) -> None:
        """Take up again the fences whose grace has ended, or whose last workers have acknowledged."""
        if not self._waiting:
            return
        ended = await drains.grace_ended(
            session, {cancellation_id: wait.target.tenant_id for cancellation_id, wait in self._waiting.items()}
        )
        # One run of each is asked after, however many wait, and the others only when that has ended.
        probes = [(wait.target.tenant_id, wait.probe) for wait in self._waiting.values()]
        active = await drains.active_among(session, probes)
        for cancellation_id, wait in list(self._waiting.items()):
            if cancellation_id in ended or not await self._is_active(session, wait, active):
                del self._waiting[cancellation_id]

    async def _is_active(self, session: ReadSession, wait: _Waiting, active: Collection[UUID]) -> bool:
        """Whether a fence may still wait for one of its runs, some of which are known to be active."""
        if wait.probe in active or len(wait.run_ids) > MAX_WATCHED:
            return True
        probe = await drains.first_active(session, wait.target.tenant_id, wait.run_ids)
        wait.probe = probe or wait.probe
        return probe is not None

    def _measure(self, works: Iterable[_Work]) -> None:
        """Runs under the fences of one tree overlap, so a tree counts no more of them than it has active.

        Of a tree whose fences are set aside nobody knows how many of its runs they cover, so all that are active count.
        """
        by_tree: dict[TreeKey, list[_Work]] = defaultdict(list)
        for work in works:
            by_tree[work.target.tenant_id, work.target.root_run_id].append(work)
        backlog = sum(active for tree, active in self._aside_runs.items() if tree not in by_tree)
        for here in by_tree.values():
            active = max(work.target.active_runs for work in here)
            backlog += min(sum(work.progress.remaining for work in here), active)
        metrics.CANCEL_BACKLOG_RUNS.set(backlog + sum(len(wait.run_ids) for wait in self._waiting.values()))
