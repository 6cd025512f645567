"""What happens when runs end, under the lock of their tree: whoever ends a run, for whatever reason, does it here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from kernel.commands.aftermath import Aftermath
from kernel.commands.fencing import set_fence
from kernel.commands.joining import count_endings
from kernel.commands.lifecycle import Change, lifecycle_event
from kernel.domain.events import Surface
from kernel.domain.fences import FenceScope
from kernel.domain.run import RunStatus
from kernel.store import runs
from kernel.store.engine import WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree

PARENT_CLOSED = "parent_closed"
# So many descendants of a run that ends are looked at for one that is active, under the lock of its tree. Where there
# are more, the fence is set, and its drain finds out without the lock.
MAX_SEEN = 500


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends: with a terminal status, and with what it gives back, as JSON texts.

    `cancellation_id` is the fence that counts it, of one that is cancelled other than by a drain.
    """

    run_id: UUID
    status: RunStatus
    output: str | None = None
    error: str | None = None
    cancellation_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """Runs that have ended, each with the time, and what is to be told after the commit."""

    finalized_at: Mapping[UUID, datetime] = field(default_factory=dict)
    aftermath: Aftermath = field(default_factory=Aftermath)


async def end_runs(
    session: WriteSession, tree: LockedTree, endings: Sequence[Ending], *, known: Mapping[UUID, Run] | None = None
) -> Ended:
    """End runs of a locked tree, any number of one surface, and under one fence if any, with one transition.

    Writes statuses, payloads, events, the tallies of their groups and what those decide; takes back leases and
    deadlines; and sets the fences of parents whose policy cancels what is left below them. Runs that have ended already
    are passed over. The caller has checked that the steps are allowed, and writes the tree's counters back.

    Args:
        known: the runs as they stand, where the caller has read them under the same lock.
    """
    if known is None:
        known = await runs.load(session, tree.tenant_id, [ending.run_id for ending in endings])
    live = [ending for ending in endings if ending.run_id in known and known[ending.run_id].active]
    told_together: dict[tuple[Surface, UUID | None], list[Ending]] = {}
    for ending in live:
        told_together.setdefault((known[ending.run_id].surface, ending.cancellation_id), []).append(ending)
    finalized_at: dict[UUID, datetime] = {}
    aftermath = Aftermath()
    counted: list[tuple[int, dict[UUID, tuple[int, int]]]] = []
    for (surface, cancellation_id), together in told_together.items():
        seq = tree.next_seq()
        ends = [(e.run_id, e.status, e.output, e.error) for e in together]
        finalized_at |= await runs.end(session, tree.tenant_id, ends, seq=seq)
        changes = [Change(e.run_id, e.status, known[e.run_id].group_id, cancellation_id) for e in together]
        tree.tell(lifecycle_event(tree, seq, changes, surface))
        counted.append((seq, _tallies(together, known)))
    for ending in live:
        run = known[ending.run_id]
        tree.moved(run.status.value, None)
        aftermath.transitions[run.tenant_slug, ending.status.value] += 1
        aftermath.runs.add((tree.tenant_id, ending.run_id))
    # Only now: what they decide sets fences, and what ends here must not come after those.
    for seq, tallies in counted:
        aftermath.add(await count_endings(session, tree, tallies, seq=seq))
    for ending in live:
        aftermath.add(await _close_below(session, tree, known[ending.run_id], ending.status))
    return Ended(finalized_at, aftermath)


def _tallies(endings: Sequence[Ending], known: Mapping[UUID, Run]) -> dict[UUID, tuple[int, int]]:
    """For each group of runs that end, how many of its members end well, and how many do not."""
    tallies: dict[UUID, tuple[int, int]] = {}
    for ending in endings:
        group_id = known[ending.run_id].group_id
        if group_id is not None:
            successes, failures = tallies.get(group_id, (0, 0))
            well = ending.status is RunStatus.COMPLETED
            tallies[group_id] = (successes + well, failures + (not well))
    return tallies


async def _close_below(session: WriteSession, tree: LockedTree, run: Run, status: RunStatus) -> Aftermath:
    """Cancel what is active below a run that completed or failed, where its agent's policy says so."""
    aftermath = Aftermath()
    if not run.closes_children or status is RunStatus.CANCELLED or not run.children_count:
        return aftermath
    if await runs.may_have_active_descendants(session, tree, run.run_id, at_most=MAX_SEEN):
        await set_fence(
            session,
            tree,
            run_id=run.run_id,
            scope=FenceScope.CHILDREN,
            reason=PARENT_CLOSED,
            surface=run.surface,
        )
        aftermath.fences[run.tenant_slug, PARENT_CLOSED] += 1
    return aftermath
