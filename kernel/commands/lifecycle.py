"""The event of runs that changed their status together."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from kernel.domain.events import EventType, Surface
from kernel.domain.run import RunStatus
from kernel.store.events import Event
from kernel.store.trees import LockedTree


@dataclass(frozen=True, slots=True)
class Change:
    """A run and the status that it has reached; of one that a fence counts as cancelled, the fence."""

    run_id: UUID
    status: RunStatus
    group_id: UUID | None
    cancellation_id: UUID | None = None


def lifecycle_event(tree: LockedTree, seq: int, changes: Sequence[Change], surface: Surface) -> Event:
    """One event for all the runs that changed with this number, under the same fence if under any.

    Of one run it is what the stream shows; of several, the stream makes one event of each of the `children`.
    """
    cancellation_id = changes[0].cancellation_id
    fence = {"cancellation_id": str(cancellation_id)} if cancellation_id is not None else {}
    children = [
        {
            "child_run_id": str(change.run_id),
            "status": change.status.value,
            "orchestration_group_id": str(change.group_id) if change.group_id is not None else None,
            **fence,
        }
        for change in changes
    ]
    statuses = {change.status for change in changes}
    data: dict[str, object] = (
        dict(children[0])
        if len(children) == 1
        else {"status": statuses.pop().value if len(statuses) == 1 else None, "children": children, **fence}
    )
    return Event(
        tenant_id=tree.tenant_id,
        root_run_id=tree.root_run_id,
        seq=seq,
        type=EventType.CHILD_LIFECYCLE,
        surface=surface,
        run_id=changes[0].run_id,
        subjects=[change.run_id for change in changes],
        data=data,
    )
