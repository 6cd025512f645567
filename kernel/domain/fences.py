"""A fence cancels what it covers from the instant it commits; the drain only writes down what is already true.

Only fences cancel: a finished ancestor says nothing about its descendants.
"""

from collections.abc import Iterable, Iterator, Sequence
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
    return _first(fence for fence in fences if any(_stands_on(fence, step) for step in path))


class StandingFences:
    """The fences of a tree by what they stand on: many runs are held against them as fast as against one.

    Args:
        fences: the open fences of the tree.
    """

    def __init__(self, fences: Iterable[Fence] = ()) -> None:
        self._by_place: dict[tuple[FenceScope, UUID], list[Fence]] = {}
        for fence in fences:
            place = fence.group_id if fence.scope is FenceScope.GROUP and fence.group_id is not None else fence.run_id
            self._by_place.setdefault((fence.scope, place), []).append(fence)

    @property
    def run_ids(self) -> set[UUID]:
        """The runs that they stand on, or on whose children."""
        return {place for scope, place in self._by_place if scope is not FenceScope.GROUP}

    @property
    def group_ids(self) -> set[UUID]:
        """The groups that they stand on."""
        return {place for scope, place in self._by_place if scope is FenceScope.GROUP}

    def on_run(self, run_id: UUID) -> Fence | None:
        """The fence on a run and all below it; of several, the one that was set first."""
        return _first(self._by_place.get((FenceScope.RUN, run_id), ()))

    def over(self, path: Sequence[Step]) -> list[Fence]:
        """All that cover the first run of a path. See `covering`."""
        return [fence for step in path for fence in self._at(step) if _stands_on(fence, step)]

    def covering(self, path: Sequence[Step]) -> Fence | None:
        """The one of them that `covering` names."""
        return _first(self.over(path))

    def _at(self, step: Step) -> Iterator[Fence]:
        places = (
            (FenceScope.RUN, step.run_id),
            (FenceScope.CHILDREN, step.parent_run_id),
            (FenceScope.GROUP, step.group_id),
        )
        for scope, place in places:
            if place is not None:
                yield from self._by_place.get((scope, place), ())


def _first(fences: Iterable[Fence]) -> Fence | None:
    return min(fences, key=lambda fence: fence.fence_seq, default=None)


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
