"""A fence cancels what it covers from the instant it commits; the drain only writes down what is already true.

Only fences cancel: a finished ancestor says nothing about its descendants.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class FenceScope(StrEnum):
    """What a fence covers: a run, its earlier children, or a group's losers; and all below them."""

    RUN = "run"
    CHILDREN = "children"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class Fence:
    """An open fence of a tree. `run_id` is the run it stands on (for a group: the group's orchestrator)."""

    cancellation_id: UUID
    run_id: UUID
    scope: FenceScope
    fence_seq: int
    reason: str
    group_id: UUID | None = None
    grace_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One run on the way from a run up to its root."""

    run_id: UUID
    parent_run_id: UUID | None
    group_id: UUID | None
    spawned_seq: int
    finalized_seq: int | None


def covering(fences: Iterable[Fence], path: Sequence[Step]) -> Fence | None:
    """The fence that covers the first run of a path, if any; of several, the one that was set first.

    Args:
        fences: the open fences of the tree.
        path: the run itself first, then its ancestors up to the root.
    """
    hits = [fence for fence in fences if any(_stands_on(fence, step) for step in path)]
    return min(hits, key=lambda fence: fence.fence_seq, default=None)


def _stands_on(fence: Fence, step: Step) -> bool:
    match fence.scope:
        case FenceScope.RUN:
            return step.run_id == fence.run_id
        case FenceScope.CHILDREN:
            return step.parent_run_id == fence.run_id and step.spawned_seq < fence.fence_seq
        case FenceScope.GROUP:
            # A member that had ended before the fence is no loser, and neither is what it left running.
            return step.group_id == fence.group_id and (
                step.finalized_seq is None or step.finalized_seq >= fence.fence_seq
            )
