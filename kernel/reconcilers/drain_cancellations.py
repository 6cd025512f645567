"""Drains the fences that are open, whoever set them; several processes may do so at once."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

from kernel import metrics
from kernel.commands.draining import MAX_WATCHED, SMALL, Drain, Progress
from kernel.domain.errors import DatabaseUnavailableError, LockTimeoutError
from kernel.reconcilers.setting_aside import SetAside
from kernel.store import drains
from kernel.store.drains import OpenFence
from kernel.store.engine import Database, ReadSession
from kernel.store.trees import TreeKey
from kernel.wakeups import Wakeups

NAME = "drain_cancellations"
MAX_FENCES = 64
# So many may wait for their first look, at most: more would be no sooner done.
MAX_AHEAD = 256
PARALLEL_DRAINS = 3
PARALLEL_LARGE_DRAINS = 2
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
        self._failed: dict[UUID, _Work] = {}

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
                self._measure(works)
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
                    # One that waits for the end of a grace is taken up when that has come, and not later.
                    if not work.progress.drained and cancellation_id not in self._waiting:
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
            found = await drains.open_fences(session, limit=limit, passing_over=[*self._waiting, *aside, *known])
        self._failed = {row_id: self._failed[row_id] for row_id in aside if row_id in self._failed}
        return found

    async def _one(self, work: _Work) -> None:
        target, cancellation_id = work.target, work.target.fence.cancellation_id
        try:
            # What is small goes ahead of what is large.
            async with self._turns:
                await self._drain.execute(target, at_most=SMALL, progress=work.progress)
            if not (work.progress.drained or work.progress.busy or work.progress.waiting or self._stopping):
                work.is_large = True
                async with self._large_turns:
                    await self._drain.execute(target, progress=work.progress)
        except Exception as error:
            if isinstance(error, DatabaseUnavailableError) and not isinstance(error, LockTimeoutError):
                raise
            # Whatever is wrong with a fence, or with who holds its tree, the others are drained.
            self._aside.add([cancellation_id], error)
            self._failed[cancellation_id] = work
        finally:
            work.done = True
        if work.progress.waiting:
            self._waiting[cancellation_id] = _Waiting(target, work.progress.waiting, work.progress.waiting[0])

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

    def _measure(self, works: dict[UUID, _Work]) -> None:
        """Runs under the fences of one tree overlap, so a tree counts no more of them than it has active.

        What was set aside is no less undrained for that.
        """
        by_tree: dict[TreeKey, list[_Work]] = defaultdict(list)
        for work in (self._failed | works).values():
            by_tree[work.target.tenant_id, work.target.root_run_id].append(work)
        backlog = sum(
            min(sum(work.progress.remaining for work in here), here[0].target.active_runs) for here in by_tree.values()
        )
        metrics.CANCEL_BACKLOG_RUNS.set(backlog + sum(len(wait.run_ids) for wait in self._waiting.values()))
