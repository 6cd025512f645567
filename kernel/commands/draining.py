"""The drain of a fence: writing down, chunk by chunk, what the fence has made true.

Once a fence has committed, nothing new comes under it; so the runs that it covers are listed once, and a drain that
dies is simply started again. Several may drain the same fence at once: each chunk looks again under the lock of the
tree, and each run is counted by the one that changed it.
"""

from dataclasses import dataclass, field
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
    ) -> Progress:
        """Drain a fence, or begin to.

        Args:
            target: the fence.
            at_most: do nothing where more active runs than this are under it.
            timeout_s: begin no further chunk after that many seconds.
            keep_ids: how many ids of cancelled runs to hand back.
            progress: kept up to date while the drain is at work, for whoever watches it.
        """
        progress = progress if progress is not None else Progress()
        async with self._database.read() as session:
            if not await drains.claim(session, target.fence.cancellation_id):
                progress.busy = True
                return progress
            try:
                await self._drain(session, target, progress, at_most=at_most, timeout_s=timeout_s, keep_ids=keep_ids)
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
    ) -> None:
        if await drains.open_fence(session, target.tenant_id, target.fence.cancellation_id) is None:
            progress.drained = True
            return
        listed = await drains.look(session, target, limit=SMALL)
        if at_most is not None and (listed is None or listed.active > at_most):
            return
        if listed is None:
            listed = await drains.list_runs(session, target)
            await drains.note_scanned(session, target, listed.scanned)
        progress.remaining = listed.active
        until = monotonic() + timeout_s if timeout_s is not None else None
        after = 0
        while True:
            part = drains.chunk(listed, after)
            after += part.size
            changed = await self._cancel(session, target, part, progress, keep_ids=keep_ids - len(progress.first_ids))
            progress.cancelled += changed.runs
            progress.remaining = listed.active - after
            progress.first_ids.extend(changed.first_ids)
            if part.is_last or self._stopping or (until is not None and monotonic() >= until):
                return

    async def _cancel(
        self, session: ReadSession, target: OpenFence, part: Chunk, progress: Progress, *, keep_ids: int
    ) -> Changed:
        """Cancel one chunk in one transaction, which also closes the fence where nothing is left."""
        aftermath = Aftermath()
        seconds: float | None = None
        waiting: list[UUID] = []
        async with self._database.write_on(session) as writing:
            tree = await trees.lock_one(writing, target.tenant_id, target.root_run_id)
            changed = await drains.cancel(writing, target, part, seq=tree.seq + 1, keep_ids=keep_ids)
            if changed.runs < part.size and target.fence.grace_until is not None:
                waiting = await drains.left_active(writing, target, part)
            if changed.runs:
                aftermath = await _count(writing, tree, target, changed)
            if part.is_last and not progress.waiting and not waiting:
                seconds = await drains.close(writing, target, scanned=part.listed.scanned)
                if seconds is not None:
                    tree.added_fences -= 1
                    tree.open_fences -= 1
            await trees.advance(writing, tree)
        progress.waiting.extend(waiting[: MAX_WATCHED + 1 - len(progress.waiting)])
        progress.drained = part.is_last and not progress.waiting
        if seconds is not None:
            metrics.CANCEL_DRAIN_SECONDS.observe(seconds)
        aftermath.tell(self._wakeups)
        return changed


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
