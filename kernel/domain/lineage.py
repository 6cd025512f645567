"""The nodes of a tree, their order, and the way up from them."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import orjson

from kernel.domain.errors import InvalidRequestError
from kernel.domain.fences import Fence, StandingFences, Step

MAX_BIGINT = 2**63 - 1
MAX_INTEGER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Node:
    """A run as a tree shows it; the status is the effective one."""

    run_id: UUID
    parent_run_id: UUID | None
    parent_node_id: str | None
    depth: int
    spawn_key: str | None
    orchestration_group_id: UUID | None
    ordinal: int
    agent_id: UUID
    agent_slug: str
    agent_name: str
    status: str
    spawned_seq: int
    started_seq: int | None
    finalized_seq: int | None
    created_at: datetime
    started_at: datetime | None
    finalized_at: datetime | None

    @property
    def position(self) -> "Position":
        """Where it stands in the order of its tree."""
        return Position(self.spawned_seq, self.ordinal)


@dataclass(frozen=True, slots=True)
class GroupNode:
    """A group as a tree shows it, under the run that spawned it."""

    group_id: UUID
    orchestrator_run_id: UUID
    status: str
    failure_policy: str
    join_mode: str
    quorum_threshold: int | None
    timeout_s: int
    parent_node_id: str | None


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The order of runs everywhere: by the number of their spawn, then by their place in it."""

    spawned_seq: int
    ordinal: int


START = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page of a subtree begins. `scan`: the subtree is too large to be walked for each page."""

    run_id: UUID
    after: Position
    scan: bool = False

    def write(self) -> str:
        """The cursor as clients carry it; what is in it is nobody's business but ours."""
        fields = [str(self.run_id), self.after.spawned_seq, self.after.ordinal, self.scan]
        return base64.urlsafe_b64encode(orjson.dumps(fields)).decode().rstrip("=")

    @classmethod
    def read(cls, text: str, run_id: UUID) -> "Cursor":
        """Read a cursor back.

        Raises:
            InvalidRequestError: when it is none of ours, or one of another run's pages.
        """
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            fields = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            match fields:
                case [str(stands_on), int(seq), int(ordinal), bool(scan)] if (
                    UUID(stands_on) == run_id and 0 <= seq <= MAX_BIGINT and 0 <= ordinal <= MAX_INTEGER
                ):
                    return cls(run_id, Position(seq, ordinal), scan)
                case _:
                    raise InvalidRequestError("cursor: belongs to the pages of another run", field="cursor")
        except (ValueError, binascii.Error) as error:
            raise InvalidRequestError("cursor: is not one that a page was answered with", field="cursor") from error


@dataclass(slots=True)
class Ancestry:
    """Runs with all their ancestors, and the open fences of their tree: who is covered, and who is below whom."""

    fences: Sequence[Fence] = ()
    steps: dict[UUID, Step] = field(default_factory=dict)
    _standing: StandingFences = field(init=False)
    _covered: dict[UUID, Fence | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._standing = StandingFences(self.fences)

    def add(self, steps: Iterable[Step]) -> None:
        """Learn of more runs. Every ancestor of a run is known before anything is asked about it."""
        for step in steps:
            self.steps[step.run_id] = step

    def forget(self) -> None:
        """Forget the runs, so that a long search stays small."""
        self.steps.clear()
        self._covered.clear()

    def fence_of(self, run_id: UUID) -> Fence | None:
        """The fence that covers a run; of several, the one that was set first."""
        way: list[Step] = []
        at: UUID | None = run_id
        while at is not None and at not in self._covered:
            step = self.steps[at]
            way.append(step)
            at = step.parent_run_id
        above = self._covered[at] if at is not None else None
        for step in reversed(way):
            here = self._standing.covering([step])
            if here is not None and (above is None or here.fence_seq < above.fence_seq):
                above = here
            self._covered[step.run_id] = above
        return above

    def is_within(self, run_id: UUID, top: UUID, known: dict[UUID, bool]) -> bool:
        """Whether a run is another one or below it. `known` carries what was found from call to call."""
        way: list[UUID] = []
        at: UUID | None = run_id
        while at is not None and at not in known and at != top:
            way.append(at)
            at = self.steps[at].parent_run_id
        found = at is not None and (at == top or known[at])
        for passed in way:
            known[passed] = found
        return found


@dataclass(frozen=True, slots=True)
class Rollup:
    """A subtree, counted: by effective status, by depth, and by agent (its id)."""

    total: int
    by_status: Mapping[str, int]
    by_depth: Mapping[int, int]
    by_agent: Mapping[UUID, int]
