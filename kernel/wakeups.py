"""Who waits in this process, and what wakes them.

The kernel never issues NOTIFY, which would serialise the commits of all trees. What this process commits wakes its own
waiters at once; for what other processes commit there is one poller per process, however many wait. Nobody holds a
connection while waiting.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar
from uuid import UUID

import structlog

from kernel.domain.errors import DatabaseUnavailableError
from kernel.store import fences
from kernel.store.engine import Database, ReadSession

POLL_S = 0.5

# Fences that are set within so short a time share a look at the groups that are waited for.
SHARED_S = 0.05

# No more waiters are woken for one agent at a time than could be served by what was seen.
MAX_SEEN = 200

QUEUED = """
SELECT q.tenant_id, q.agent_id, w.seen
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, agent_id)
CROSS JOIN LATERAL (
  SELECT count(*)::int AS seen FROM (
    SELECT 1 FROM agent_runs r
    WHERE r.tenant_id = q.tenant_id AND r.agent_id = q.agent_id AND r.status = 'queued' LIMIT $3) r) w
WHERE w.seen > 0
"""

# Those that are closed, and those that may read so because a fence covers their orchestrator.
CLOSED = """
SELECT q.tenant_id, q.group_id, g.root_run_id, g.orchestrator_run_id, g.status <> 'running' AS is_closed
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, group_id)
JOIN orchestration_groups g ON g.tenant_id = q.tenant_id AND g.group_id = q.group_id
JOIN run_trees t ON t.tenant_id = g.tenant_id AND t.root_run_id = g.root_run_id
WHERE g.status <> 'running' OR t.open_fences > 0
"""

ENDED = """
SELECT q.tenant_id, q.run_id
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, run_id)
JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.run_id = q.run_id
WHERE r.finalized_seq IS NOT NULL
"""

Key = tuple[UUID, UUID]
K = TypeVar("K")

log = structlog.get_logger()


class Waiter:
    """One who waits. What happens between two looks at the database is not missed."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self.ended = False

    @property
    def woken(self) -> bool:
        return self._woken.is_set()

    def wake(self) -> None:
        """Wake it; it looks again."""
        self._woken.set()

    def dismiss(self) -> None:
        """Wake it for good: the service is stopping."""
        self.ended = True
        self._woken.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until woken; False when the time is up or the service stops, so that looking again is no use."""
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)):
                await self._woken.wait()
        except TimeoutError:
            return False
        if not self.ended:
            self._woken.clear()
        return not self.ended


class _Room(Generic[K]):
    """The waiters by what they wait for, first come first."""

    def __init__(self) -> None:
        self._by_key: dict[K, dict[Waiter, None]] = {}

    def enter(self, keys: Iterable[K], waiter: Waiter) -> None:
        for key in keys:
            self._by_key.setdefault(key, {})[waiter] = None

    def leave(self, keys: Iterable[K], waiter: Waiter) -> None:
        for key in keys:
            waiting = self._by_key.get(key, {})
            waiting.pop(waiter, None)
            if not waiting:
                self._by_key.pop(key, None)

    def wake(self, key: K, at_most: int | None = None) -> None:
        sleeping = [waiter for waiter in self._by_key.get(key, ()) if not waiter.woken]
        for waiter in sleeping[:at_most]:
            waiter.wake()

    def __contains__(self, key: K) -> bool:
        return key in self._by_key

    def dismiss(self) -> None:
        for waiting in self._by_key.values():
            for waiter in waiting:
                waiter.dismiss()

    @property
    def keys(self) -> list[K]:
        return list(self._by_key)


class Wakeups:
    """The waiting room of a process.

    Args:
        stopping: set when the service shuts down: every wait ends at once, and none begins.
        poll_s: how long a commit of another process may go unnoticed, in seconds.
    """

    def __init__(self, database: Database, stopping: asyncio.Event, *, poll_s: float = POLL_S) -> None:
        self._database = database
        self._stopping = stopping
        self._poll_s = poll_s
        self._for_work: _Room[Key] = _Room()
        self._for_groups: _Room[Key] = _Room()
        self._for_runs: _Room[Key] = _Room()
        self._rooms = (self._for_work, self._for_groups, self._for_runs)
        self._poller: asyncio.Task[None] | None = None
        self._below_fences: asyncio.Task[None] | None = None
        self._unseen_fences = False
        self.fences = asyncio.Event()
        self.work = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Whether the service is shutting down: whatever takes long is left to others."""
        return self._stopping.is_set()

    def work_arrived(self, tenant_id: UUID, agent_ids: Iterable[UUID] | None = None) -> None:
        """Runs were queued. Sets `work`, which the graph worker clears.

        Args:
            agent_ids: the agent of each; without them whoever waits for this tenant's work looks.
        """
        self.work.set()
        if agent_ids is None:
            for key in self._for_work.keys:
                if key[0] == tenant_id:
                    self._for_work.wake(key)
            return
        for agent_id, count in Counter(agent_ids).items():
            self._for_work.wake((tenant_id, agent_id), count)

    def group_closed(self, tenant_id: UUID, group_id: UUID) -> None:
        """A group was decided, or closed with its orchestrator."""
        self._for_groups.wake((tenant_id, group_id))

    def run_ended(self, tenant_id: UUID, run_id: UUID) -> None:
        """A run has reached a terminal status."""
        self._for_runs.wake((tenant_id, run_id))

    def fence_set(self) -> None:
        """There is something to drain: sets `fences`, which the drain clears.

        Whoever waits for a group that reads as cancelled by it hears of that before it is drained.
        """
        self.fences.set()
        self._unseen_fences = bool(self._for_groups.keys)
        if self._unseen_fences and not self.stopping and (self._below_fences is None or self._below_fences.done()):
            self._below_fences = asyncio.create_task(self._look_below_fences())

    @contextmanager
    def awaiting_work(self, tenant_id: UUID, agent_ids: Iterable[UUID]) -> Iterator[Waiter]:
        """Wait for queued runs of agents; enter before the first look, so that nothing is missed after it."""
        with self._waiting(self._for_work, [(tenant_id, agent_id) for agent_id in agent_ids]) as waiter:
            yield waiter

    @contextmanager
    def awaiting_group(self, tenant_id: UUID, group_id: UUID) -> Iterator[Waiter]:
        """Wait for the decision on a group; enter before the first look."""
        with self._waiting(self._for_groups, [(tenant_id, group_id)]) as waiter:
            yield waiter

    @contextmanager
    def awaiting_run(self, tenant_id: UUID, run_id: UUID) -> Iterator[Waiter]:
        """Wait for the end of a run; enter before the first look."""
        with self._waiting(self._for_runs, [(tenant_id, run_id)]) as waiter:
            yield waiter

    def is_run_awaited(self, tenant_id: UUID, run_id: UUID) -> bool:
        """Whether anybody in this process waits for the end of a run."""
        return (tenant_id, run_id) in self._for_runs

    async def stop(self) -> None:
        """End every wait, and the poller."""
        self._stopping.set()
        self._dismiss()
        for looking in (self._poller, self._below_fences):
            if looking is not None:
                await looking

    @contextmanager
    def _waiting(self, room: _Room[Key], keys: list[Key]) -> Iterator[Waiter]:
        waiter = Waiter()
        if self._stopping.is_set():
            waiter.dismiss()
        room.enter(keys, waiter)
        if self._poller is None and not waiter.ended:
            self._poller = asyncio.create_task(self._poll())
        try:
            yield waiter
        finally:
            room.leave(keys, waiter)
            if waiter.woken and not waiter.ended:
                # It leaves with what it came for, or for good; whatever woke it since is news to the next in line.
                for key in keys:
                    room.wake(key, 1)

    async def _poll(self) -> None:
        """Look for as long as somebody waits."""
        try:
            while any(room.keys for room in self._rooms):
                try:
                    async with asyncio.timeout(self._poll_s):
                        await self._stopping.wait()
                except TimeoutError:
                    pass
                else:
                    self._dismiss()
                    return
                await self._look()
        finally:
            self._poller = None

    def _dismiss(self) -> None:
        for room in self._rooms:
            room.dismiss()

    async def _look_below_fences(self) -> None:
        while self._unseen_fences and not self.stopping:
            await asyncio.sleep(SHARED_S)
            self._unseen_fences = False
            await self._look(groups_only=True)

    async def _look(self, *, groups_only: bool = False) -> None:
        work, groups, runs = ([] if groups_only and room is not self._for_groups else room.keys for room in self._rooms)
        try:
            async with self._database.read() as session:
                if work:
                    rows = await session.driver.fetch(QUEUED, [k[0] for k in work], [k[1] for k in work], MAX_SEEN)
                    for row in rows:
                        self._for_work.wake((row["tenant_id"], row["agent_id"]), row["seen"])
                if groups:
                    for key in await _closed(session, groups):
                        self._for_groups.wake(key)
                if runs:
                    for row in await session.driver.fetch(ENDED, [k[0] for k in runs], [k[1] for k in runs]):
                        self._for_runs.wake((row["tenant_id"], row["run_id"]))
        except DatabaseUnavailableError:
            # Whoever waits looks for itself when its time is up, and hears it then.
            return
        except Exception:
            # A poller that has ended wakes nobody any more, whatever it was that it met.
            log.exception("a look at what others wait for failed")


async def _closed(session: ReadSession, groups: Sequence[Key]) -> list[Key]:
    """Which of some groups are decided or closed, or read as closed because a fence covers their orchestrator."""
    rows = await session.driver.fetch(CLOSED, [key[0] for key in groups], [key[1] for key in groups])
    doubtful = [row for row in rows if not row["is_closed"]]
    covered = await fences.covered(
        session, {(row["tenant_id"], row["root_run_id"], row["orchestrator_run_id"]) for row in doubtful}
    )
    return [
        (row["tenant_id"], row["group_id"])
        for row in rows
        if row["is_closed"] or (row["tenant_id"], row["orchestrator_run_id"]) in covered
    ]
