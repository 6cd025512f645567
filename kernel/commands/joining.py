"""What a group makes of the ends of its members, under the lock of its tree."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from kernel.commands.aftermath import Aftermath
from kernel.commands.fencing import set_fence
from kernel.domain.events import EventType
from kernel.domain.fences import FenceScope
from kernel.domain.joins import Decided, GroupStatus, judge
from kernel.store import fences, groups
from kernel.store.engine import WriteSession
from kernel.store.events import Event
from kernel.store.groups import Group
from kernel.store.trees import LockedTree


async def count_endings(
    session: WriteSession, tree: LockedTree, tallies: Mapping[UUID, tuple[int, int]], *, seq: int
) -> Aftermath:
    """Count members that ended with one transition, and decide the groups that this decides.

    Of several members that ended together it makes no difference in which order they are counted: success and failure
    of a group only ever exclude each other, so the status after the last of them is the status after the deciding one.

    Args:
        tallies: for each group, how many of its members ended well, and how many did not.
        seq: the number of that transition; it is the `decided_seq` of what it decides.

    Returns:
        What is to be told after the commit. The caller writes the tree's counters back.
    """
    if not tallies:
        return Aftermath()
    counted = await groups.count(session, tree.tenant_id, tallies)
    ripe: list[tuple[Group, Decided]] = []
    for group in counted:
        verdict = judge(group.parameters, group.tally)
        if group.undecided and isinstance(verdict, Decided):
            ripe.append((group, verdict))
    return await decide_groups(session, tree, ripe, seq=seq)


async def decide_groups(
    session: WriteSession, tree: LockedTree, ripe: Sequence[tuple[Group, Decided]], *, seq: int | None
) -> Aftermath:
    """Write decisions on undecided groups of a locked tree, and cancel the members that still run.

    A group whose orchestrator is under a fence is closed instead: that is no decision and has no losers.

    Args:
        seq: the number of what triggered the decisions; None where that is the event of the decision itself.
    """
    aftermath = Aftermath()
    if not ripe:
        return aftermath
    closed = await _covered(session, tree, [group for group, _ in ripe])
    if closed:
        await groups.close(session, tree.tenant_id, sorted(closed))
        aftermath.groups |= {(tree.tenant_id, group_id) for group_id in closed}
    decided = [(group, verdict, tree.next_seq()) for group, verdict in ripe if group.group_id not in closed]
    if not decided:
        return aftermath
    await groups.decide(
        session,
        tree.tenant_id,
        [
            (group.group_id, verdict.status, seq if seq is not None else own, verdict.propagation_reason)
            for group, verdict, own in decided
        ],
    )
    tree.tell(*(join_event(tree, group, verdict.status, seq=own, complete=True) for group, verdict, own in decided))
    for group, verdict, _ in decided:
        aftermath.joins[group.tenant_slug, group.parameters.mode.value, verdict.status.value] += 1
        aftermath.groups.add((group.tenant_id, group.group_id))
        if verdict.propagation_reason is not None:
            await set_fence(
                session,
                tree,
                run_id=group.orchestrator_run_id,
                scope=FenceScope.GROUP,
                reason=verdict.propagation_reason,
                surface=group.surface,
                group_id=group.group_id,
            )
            aftermath.fences[group.tenant_slug, verdict.propagation_reason] += 1
    return aftermath


def join_event(tree: LockedTree, group: Group, status: GroupStatus, *, seq: int, complete: bool) -> Event:
    """The event of a decision, or of a change of parameters that has not decided the group.

    A change tells all its parameters, so that the decision can be computed again from the events.
    """
    data: dict[str, object] = {
        "group_id": str(group.group_id),
        "mode": group.parameters.mode.value,
        "status": status.value,
        "complete": complete,
        "success_count": group.tally.success,
        "failure_count": group.tally.failure,
        "running_count": group.tally.running,
    }
    if not complete:
        data |= {"quorum_threshold": group.parameters.quorum_threshold, "timeout_s": group.timeout_s}
    return Event(
        tenant_id=group.tenant_id,
        root_run_id=tree.root_run_id,
        seq=seq,
        type=EventType.JOIN_DECISION,
        surface=group.surface,
        run_id=group.orchestrator_run_id,
        subjects=[group.orchestrator_run_id],
        data=data,
    )


async def _covered(session: WriteSession, tree: LockedTree, ripe: Sequence[Group]) -> set[UUID]:
    """The groups whose orchestrator is under an open fence."""
    if not tree.open_fences:
        return set()
    hit = await fences.covered(
        session, [(tree.tenant_id, tree.root_run_id, group.orchestrator_run_id) for group in ripe]
    )
    return {group.group_id for group in ripe if (tree.tenant_id, group.orchestrator_run_id) in hit}
