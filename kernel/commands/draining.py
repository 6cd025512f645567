"""The drain of a fence: writing down, chunk by chunk, what the fence has made true.

Once a fence has committed, nothing new comes under it; so the runs that it covers are listed once, and a drain that
dies is simply started again. Several may drain the same fence at once: each chunk looks again under the lock of the
tree, and each run is counted by the one that changed it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from time import monotonic
from uuid import UUID

from kernel import metrics
from kernel.commands.aftermath import Aftermath
from kernel.commands.joining import count_endings
from kernel.domain.run import RunStatus
from kernel.store import drains, trees
from kernel.store.drains import Changed, Chunk, OpenFence
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.trees import LockedTree
from kernel.wakeups import Wakeups

# Under a fence that covers no more than this, the runs are listed here instead of in a temporary table.
SMALL = 2_000
# So many runs, the ended ones too, are looked at under the lock of the tree that a fence is set under.
SEEN_AT_ONCE = 500
# So many runs may be waiting for a grace to end before it is no longer watched whether they all end sooner.
MAX_WATCHED = 2_000


@dataclass(slots=True)
class Progress:
    """How far a drain has come.

    Attributes:
        cancelled: the runs that this drain has cancelled.
        first_ids: the first of them, as many as were asked for.
        remaining: how many it has listed and not looked at.
        waiting: runs that are left alone until their grace ends; the first of them.
        drained: whether the fence is drained, by whomever.
        busy: another drain of this fence is at work, and nothing was done here.
    """

    cancelled: int = 0
    first_ids: list[UUID] = field(default_factory=list)
    remaining: int = 0
    waiting: list[UUID] = field(default_factory=list)
    drained: bool = False
    busy: bool = False


@dataclass(slots=True)
class _Part:
    """What has become of one chunk, to be told once it has committed. `seconds` is how long its fence was open."""

    changed: Changed
    aftermath: Aftermath
    waiting: list[UUID]
    seconds: float | None


class DrainSize(Enum):
    """What is known of a drain that was not done at once: that it is large, or nothing."""

    LARGE = auto()
    UNKNOWN = auto()


@dataclass(slots=True)
class Drained:
    """A drain of few runs in the transaction that sets their fence, to be told once that has committed."""

    run_ids: Sequence[UUID]
    scanned: int
    _part: _Part

    def tell(self, wakeups: Wakeups | None) -> None:
        """Count it, and wake whoever waits for what it has ended."""
        _tell(self._part, wakeups)


async def drain_at_once(
    session: WriteSession, tree: LockedTree, target: OpenFence, *, at_most: int
) -> Drained | DrainSize:
    """Drain a fence in the transaction that sets it, where no more than so many active runs are under it.

    It saves a small cancellation the second commit and the second wait for the lock. Where more are covered than is
    quickly listed, or where a grace is left, nothing is done: those have a drain of their own.
    """
    if target.fence.grace_until is not None:
        return DrainSize.UNKNOWN
    listed = await drains.look(session, target, limit=SEEN_AT_ONCE)
    if listed.active > at_most:
        return DrainSize.LARGE
    if not listed.is_whole:
        return DrainSize.UNKNOWN
    part = await _cancel_part(session, tree, target, drains.chunk(listed, 0), keep_ids=at_most, is_end=True)
    return Drained(part.changed.first_ids, listed.scanned, part)


class Drain:
    """Drains fences. It holds one connection per drain, and a lock for one chunk at a time."""

    def __init__(self, database: Database, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._wakeups = wakeups

    async def execute(
        self,
        target: OpenFence,
        *,
        at_most: int | None = None,
        timeout_s: float | None = None,
        keep_ids: int = 0,
        progress: Progress | None = None,
        patience_ms: int | None = None,
    ) -> Progress:
        """Drain a fence, or begin to.

        Args:
            target: the fence.
            at_most: do nothing where more active runs than this are under it.
            timeout_s: begin no further chunk after that many seconds.
            keep_ids: how many ids of cancelled runs to hand back.
            progress: kept up to date while the drain is at work, for whoever watches it.
            patience_ms: begin nothing where the tree is not to be had so soon.

        Raises:
            TreeHeldError: when it was not.
        """
        progress = progress if progress is not None else Progress()
        async with self._database.read() as session:
            if not await drains.claim(session, target.fence.cancellation_id):
                progress.busy = True
                return progress
            try:
                await self._drain(
                    session,
                    target,
                    progress,
                    at_most=at_most,
                    timeout_s=timeout_s,
                    keep_ids=keep_ids,
                    patience_ms=patience_ms,
                )
            except BaseException:
                # The connection must not go back to the pool with our lock and our list on it.
                session.driver.terminate()
                raise
            await drains.leave(session, target.fence.cancellation_id)
        return progress

    @property
    def _stopping(self) -> bool:
        return self._wakeups is not None and self._wakeups.stopping

    async def _drain(
        self,
        session: ReadSession,
        target: OpenFence,
        progress: Progress,
        *,
        at_most: int | None,
        timeout_s: float | None,
        keep_ids: int,
        patience_ms: int | None,
    ) -> None:
        if await drains.open_fence(session, target.tenant_id, target.fence.cancellation_id) is None:
            progress.drained = True
            return
        listed = await drains.look(session, target, limit=SMALL)
        if at_most is not None and (not listed.is_whole or listed.active > at_most):
            return
        if not listed.is_whole:
            listed = await drains.list_runs(session, target)
        if listed.table is not None or target.fence.grace_until is not None:
            # It stays open for a while, and maybe before anything of it is cancelled.
            await drains.note_scanned(session, target, listed.scanned)
        progress.remaining = listed.active
        until = monotonic() + timeout_s if timeout_s is not None else None
        after = 0
        while True:
            part = drains.chunk(listed, after)
            after += part.size
            changed = await self._cancel(
                session,
                target,
                part,
                progress,
                keep_ids=keep_ids - len(progress.first_ids),
                patience_ms=patience_ms if part.after == 0 else None,
            )
            progress.cancelled += changed.runs
            progress.remaining = listed.active - after
            progress.first_ids.extend(changed.first_ids)
            if part.is_last or self._stopping or (until is not None and monotonic() >= until):
                return

    async def _cancel(
        self,
        session: ReadSession,
        target: OpenFence,
        part: Chunk,
        progress: Progress,
        *,
        keep_ids: int,
        patience_ms: int | None,
    ) -> Changed:
        """Cancel one chunk in one transaction, which also closes the fence where nothing is left."""
        async with self._database.write_on(session) as writing:
            tree = await trees.lock_one(writing, target.tenant_id, target.root_run_id, patience_ms=patience_ms)
            is_end = part.is_last and not progress.waiting
            done = await _cancel_part(writing, tree, target, part, keep_ids=keep_ids, is_end=is_end)
            await trees.advance(writing, tree)
        progress.waiting.extend(done.waiting[: MAX_WATCHED + 1 - len(progress.waiting)])
        progress.drained = part.is_last and not progress.waiting
        _tell(done, self._wakeups)
        return done.changed


async def _cancel_part(
    session: WriteSession, tree: LockedTree, target: OpenFence, part: Chunk, *, keep_ids: int, is_end: bool
) -> _Part:
    """Cancel one chunk under the lock of its tree; at the end, close the fence where nothing is left."""
    aftermath = Aftermath()
    seconds: float | None = None
    waiting: list[UUID] = []
    changed = await drains.cancel(session, target, part, seq=tree.seq + 1, keep_ids=keep_ids)
    if changed.runs < part.size and target.fence.grace_until is not None:
        waiting = await drains.left_active(session, target, part)
    if changed.runs:
        aftermath = await _count(session, tree, target, changed)
    if is_end and not waiting:
        seconds = await drains.close(session, target, scanned=part.listed.scanned)
        if seconds is not None:
            tree.added_fences -= 1
            tree.open_fences -= 1
    return _Part(changed, aftermath, waiting, seconds)


def _tell(part: _Part, wakeups: Wakeups | None) -> None:
    if part.seconds is not None:
        metrics.CANCEL_DRAIN_SECONDS.observe(part.seconds, metrics.exemplar())
    part.aftermath.tell(wakeups)


async def _count(session: WriteSession, tree: LockedTree, target: OpenFence, changed: Changed) -> Aftermath:
    """Count what has become of a chunk's runs; the chunk is one transition, whose event has been written."""
    seq = tree.next_seq()
    for status, count in changed.before.items():
        tree.moved(status, None, count)
    aftermath = Aftermath()
    aftermath.transitions[target.tenant_slug, RunStatus.CANCELLED.value] += changed.runs
    aftermath.cancelled[target.tenant_slug] += changed.runs
    if changed.groups:
        closed = await drains.close_covered(session, target, changed.groups)
        aftermath.groups |= {(target.tenant_id, group_id) for group_id in closed}
        tallies = {group_id: (0, count) for group_id, count in changed.groups.items() if group_id not in closed}
        aftermath.add(await count_endings(session, tree, tallies, seq=seq))
    return aftermath
