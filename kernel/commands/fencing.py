"""Setting a fence: from its commit on, whatever it covers neither starts, spawns, renews nor completes."""

from uuid import UUID

from kernel.domain.events import EventType, Surface
from kernel.domain.fences import Fence, FenceScope
from kernel.identifiers import new_id
from kernel.store import fences
from kernel.store.engine import WriteSession
from kernel.store.events import Event
from kernel.store.trees import LockedTree


async def set_fence(
    session: WriteSession,
    tree: LockedTree,
    *,
    run_id: UUID,
    scope: FenceScope,
    reason: str,
    surface: Surface,
    group_id: UUID | None = None,
    grace_s: int = 0,
    cancellation_id: UUID | None = None,
) -> Fence:
    """Set a fence in a tree whose lock this transaction holds; the caller writes the tree's counters back.

    Args:
        run_id: the run it stands on; for a group, the group's orchestrator.
        cancellation_id: the id that it is to have; by default a new one.
        grace_s: seconds in which a worker may still acknowledge the cancellation; what is covered is covered at once.
    """
    fence = Fence(
        cancellation_id=cancellation_id or new_id(),
        run_id=run_id,
        scope=scope,
        fence_seq=tree.next_seq(),
        reason=reason,
        group_id=group_id,
    )
    tree.open_fences += 1
    tree.added_fences += 1
    fence = await fences.insert(session, tree.tenant_id, tree.root_run_id, fence, grace_s=grace_s)
    tree.tell(
        Event(
            tenant_id=tree.tenant_id,
            root_run_id=tree.root_run_id,
            seq=fence.fence_seq,
            type=EventType.CANCELLATION_PROPAGATION,
            surface=surface,
            run_id=run_id,
            subjects=[run_id],
            data={
                "reason": reason,
                "cancelled_run_ids": [],
                "count": 0,
                "include_root": scope is FenceScope.RUN,
                "cancellation_id": str(fence.cancellation_id),
                "orchestration_group_id": str(group_id) if group_id is not None else None,
            },
        ),
    )
    return fence
