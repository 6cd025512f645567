"""When is a group decided, and how: a pure function of its parameters and its sequenced inputs.

A group is decided once. Its inputs are the terminal transitions of its members, changes of its parameters and its
timeout, each with the sequence number of its tree, so that every reader can compute the decision again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from kernel.domain.run import RunStatus


class JoinMode(StrEnum):
    """How the outcomes of the members make one outcome; `all` is another name for `best_effort`."""

    ALL = "all"
    BEST_EFFORT = "best_effort"
    FAIL_FAST = "fail_fast"
    QUORUM = "quorum"
    FIRST_SUCCESS = "first_success"


class FailurePolicy(StrEnum):
    """What a failed child means to its parent."""

    BEST_EFFORT = "best_effort"
    FAIL_FAST = "fail_fast"


class GroupStatus(StrEnum):
    """Where a group stands. `running` is undecided; `cancelled` closed with its orchestrator, without a decision."""

    RUNNING = "running"
    COMPLETED = "completed"
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    EMPTY = "empty"


# The reason with which a decision cancels the members that are still active.
PROPAGATION_REASONS = {
    JoinMode.FAIL_FAST: "join_fail_fast",
    JoinMode.QUORUM: "join_quorum_reached",
    JoinMode.FIRST_SUCCESS: "join_first_success",
}
TIMED_OUT_REASON = "join_timed_out"


@dataclass(frozen=True, slots=True)
class JoinParameters:
    """What a group was asked to wait for; `size` is its number of members."""

    size: int
    mode: JoinMode = JoinMode.ALL
    failure_policy: FailurePolicy = FailurePolicy.BEST_EFFORT
    quorum_threshold: int | None = None

    @property
    def effective_mode(self) -> JoinMode:
        """The mode that decides: `all` is `best_effort`, and a fail-fast group joins so under `best_effort`."""
        if self.mode in {JoinMode.ALL, JoinMode.BEST_EFFORT}:
            return JoinMode.FAIL_FAST if self.failure_policy is FailurePolicy.FAIL_FAST else JoinMode.BEST_EFFORT
        return self.mode


@dataclass(frozen=True, slots=True)
class Tally:
    """The members by outcome; a cancelled member counts as a failure."""

    size: int
    success: int = 0
    failure: int = 0

    @property
    def running(self) -> int:
        return self.size - self.success - self.failure

    def count(self, status: RunStatus) -> "Tally":
        """The tally after one more member has ended with `status`."""
        if status is RunStatus.COMPLETED:
            return replace(self, success=self.success + 1)
        return replace(self, failure=self.failure + 1)


@dataclass(frozen=True, slots=True)
class Pending:
    """Not decided yet."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The one decision of a group; `propagation_reason` is set where members still run and are to be cancelled."""

    status: GroupStatus
    propagation_reason: str | None = None


Verdict = Pending | Decided
PENDING = Pending()


@dataclass(frozen=True, slots=True)
class MemberEnded:
    """A member reached a terminal status at `seq`."""

    seq: int
    status: RunStatus


@dataclass(frozen=True, slots=True)
class Reparameterised:
    """A join call named other parameters at `seq`."""

    seq: int
    parameters: JoinParameters


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The group's timeout took effect at `seq`."""

    seq: int


SequencedInput = MemberEnded | Reparameterised | TimedOut


def judge(parameters: JoinParameters, tally: Tally) -> Verdict:
    """What the outcomes so far amount to: O(1), for use at each transition."""
    if parameters.size == 0:
        return Decided(GroupStatus.EMPTY)
    match parameters.effective_mode:
        case JoinMode.FAIL_FAST:
            status = GroupStatus.FAILED if tally.failure else None
            if status is None and tally.running == 0:
                status = GroupStatus.COMPLETED
        case JoinMode.FIRST_SUCCESS:
            status = GroupStatus.COMPLETED if tally.success else None
            if status is None and tally.running == 0:
                status = GroupStatus.FAILED
        case JoinMode.QUORUM:
            threshold = parameters.quorum_threshold or parameters.size
            status = GroupStatus.COMPLETED if tally.success >= threshold else None
            if status is None and tally.success + tally.running < threshold:
                status = GroupStatus.FAILED
        case _:
            status = None
            if tally.running == 0:
                status = GroupStatus.COMPLETED_WITH_ERRORS if tally.failure else GroupStatus.COMPLETED
    if status is None:
        return PENDING
    losers = tally.running > 0
    return Decided(status, PROPAGATION_REASONS.get(parameters.effective_mode) if losers else None)


def expire(tally: Tally) -> Decided:
    """The decision of a group whose timeout has passed while it was undecided."""
    return Decided(GroupStatus.TIMED_OUT, TIMED_OUT_REASON if tally.running else None)


def decide(parameters: JoinParameters, inputs: Iterable[SequencedInput]) -> tuple[Verdict, int | None]:
    """Decide a group from its whole history.

    Args:
        parameters: as the group was made.
        inputs: its inputs in the order of their sequence numbers; those that share one are members of one transition
            and are counted one after the other, in the order of their ordinals.

    Returns:
        The verdict and the sequence number that triggered it (None while pending, or for a group without members).
    """
    tally = Tally(parameters.size)
    verdict = judge(parameters, tally)
    if isinstance(verdict, Decided):
        return verdict, None
    for item in inputs:
        match item:
            case MemberEnded():
                tally = tally.count(item.status)
                verdict = judge(parameters, tally)
            case Reparameterised():
                parameters = item.parameters
                verdict = judge(parameters, tally)
            case TimedOut():
                verdict = expire(tally)
        if isinstance(verdict, Decided):
            return verdict, item.seq
    return PENDING, None
