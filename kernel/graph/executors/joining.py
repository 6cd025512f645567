"""The node that waits for a group. Whoever waits holds neither a thread nor a connection."""

from typing import Any

from kernel.commands.join import Joined, JoinGroup
from kernel.domain.events import Surface
from kernel.domain.joins import GroupStatus
from kernel.graph.executors.visit import GraphInterruptedError, GraphRunError, Outcome, Visit
from kernel.graph.spec import JoinConfig, NodeType

# The group's own timeout decides; this is only more than any of them.
FOREVER_S = 10 * 366 * 86_400.0

HANDLES = {
    GroupStatus.RUNNING: "pending",
    GroupStatus.COMPLETED: "completed",
    GroupStatus.COMPLETED_WITH_ERRORS: "completed_with_errors",
    GroupStatus.FAILED: "failed",
    GroupStatus.TIMED_OUT: "timed_out",
    GroupStatus.CANCELLED: "failed",
    GroupStatus.EMPTY: "completed",
}


async def join(visit: Visit) -> Outcome:
    """Waits for the group that is named, mapped, or the latest; where it may wait so long only, it may be pending."""
    config = visit.config(JoinConfig)
    named: object = config.orchestration_group_id or visit.mapped.get("orchestration_group_id")
    if named is None:
        spawned = visit.latest_of(NodeType.SPAWN_GROUP)
        named = spawned.get("orchestration_group_id") if spawned is not None else None
    if named is None:
        raise GraphRunError("join_without_group", "there is no group to join: none was spawned before", visit.node.id)
    joined = await visit.commands.join.execute(
        visit.principal,
        JoinGroup(
            caller_run_id=visit.lineage.run_id,
            group_id=visit.as_id(named, "orchestration_group_id"),
            mode=config.mode,
            quorum_threshold=config.quorum_threshold,
            timeout_s=config.timeout_s,
            wait_s=FOREVER_S if config.wait_s is None else config.wait_s,
            surface=Surface.GRAPHSPEC_V2,
        ),
    )
    if not joined.complete and (config.wait_s is None or visit.commands.wakeups.stopping):
        raise GraphInterruptedError("the process ends while a group is undecided")
    return Outcome(_answer(joined), HANDLES[joined.status])


def _answer(joined: Joined) -> dict[str, Any]:
    """The answer of the primitive, as JSON."""
    group, propagated = joined.group, joined.propagated
    return {
        "group_id": str(group.group_id),
        "orchestration_group_id": str(group.group_id),
        "status": joined.status.value,
        "complete": joined.complete,
        "mode": group.parameters.mode.value,
        "failure_policy": group.parameters.failure_policy.value,
        "quorum_threshold": group.parameters.quorum_threshold,
        "timeout_s": group.timeout_s,
        "success_count": joined.tally.success,
        "failure_count": joined.tally.failure,
        "running_count": joined.tally.running,
        "member_run_ids": [str(run_id) for run_id in joined.member_run_ids],
        "cancellation_propagated": {
            "count": propagated.count if propagated is not None else 0,
            "run_ids": [str(run_id) for run_id in propagated.run_ids] if propagated is not None else [],
            "reason": propagated.reason if propagated is not None else None,
        },
        "decided_seq": group.decided_seq,
    }
