"""The node that cancels what is below."""

from typing import Any
from uuid import UUID, uuid5

from kernel.commands.cancel_subtree import DEFAULT_REASON, CancelSubtree, SubtreeCancelled
from kernel.domain.events import Surface
from kernel.graph.executors.visit import GraphRunError, Outcome, Visit
from kernel.graph.spec import MAX_REASON, CancelSubtreeConfig, NodeType

MAX_LISTED = 1_000


async def cancel_subtree(visit: Visit) -> Outcome:
    """Cancels the run that is named or mapped, or each one that was spawned last."""
    config = visit.config(CancelSubtreeConfig)
    reason = config.reason or _mapped_reason(visit) or DEFAULT_REASON
    done: list[SubtreeCancelled] = [
        await visit.commands.cancel.execute(
            visit.principal,
            CancelSubtree(
                caller_run_id=visit.lineage.run_id,
                run_id=run_id,
                include_root=config.include_root,
                reason=reason,
                grace_s=config.grace_s,
                wait_s=config.wait_s,
                surface=Surface.GRAPHSPEC_V2,
                # The same whenever this visit is repeated: a graph that dies before its checkpoint fences once.
                cancellation_id=uuid5(visit.lineage.run_id, f"{visit.node.id}:{visit.iteration}:{run_id}"),
            ),
        )
        for run_id in _wanted(visit, config)
    ]
    output: dict[str, Any] = {
        "status": "cancelled",
        "run_id": str(done[0].run_id) if len(done) == 1 else None,
        "run_ids": [str(one.run_id) for one in done],
        "cancelled_count": sum(one.cancelled_count for one in done),
        "cancelled_run_ids": [str(run_id) for one in done for run_id in one.cancelled_run_ids][:MAX_LISTED],
        "scanned_count": sum(one.scanned_count for one in done),
        "include_root": config.include_root,
        # That of the fence that covers them: an earlier one stands.
        "reason": done[0].reason if len({one.reason for one in done}) == 1 else reason,
        "cancellation_ids": [str(one.cancellation_id) for one in done],
        "state": "drained" if all(one.state == "drained" for one in done) else "draining",
    }
    return Outcome(output)


def _mapped_reason(visit: Visit) -> str | None:
    reason = visit.mapped.get("reason")
    if reason is None or (isinstance(reason, str) and len(reason) <= MAX_REASON and "\x00" not in reason):
        return reason
    said = f"{len(reason)} characters" if isinstance(reason, str) else type(reason).__name__
    raise GraphRunError(
        "invalid_request", f"reason: a string of at most {MAX_REASON} characters; observed: {said}", visit.node.id
    )


def _wanted(visit: Visit, config: CancelSubtreeConfig) -> list[UUID]:
    named: object = config.run_id or visit.mapped.get("run_id")
    if named is not None:
        return [visit.as_id(named, "run_id")]
    latest = visit.latest_of(NodeType.SPAWN_RUN, NodeType.SPAWN_GROUP, NodeType.JOIN) or {}
    runs = latest.get("spawned_run_ids") or latest.get("member_run_ids") or []
    return [visit.as_id(run_id, "run_id") for run_id in runs]
