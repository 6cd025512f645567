"""The state machine of a run."""

from enum import StrEnum

from kernel.domain.errors import IllegalTransitionError


class RunStatus(StrEnum):
    """Where a run stands; the last three are terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED})
TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})

# The steps a run may take. Back to `queued` goes what a worker held whose lease expired, and what was leased to one who
# had hung up; `queued -> completed` does not exist: what nobody started cannot have ended well.
TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.RUNNING: frozenset(
        {RunStatus.QUEUED, RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}
    ),
    RunStatus.PAUSED: frozenset(
        {RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}
    ),
    RunStatus.COMPLETED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}

# What a runtime may report of a run that it executes itself; going back to the queue is the kernel's own step.
REPORTABLE = frozenset({RunStatus.RUNNING, RunStatus.PAUSED, *TERMINAL})


def check_transition(current: RunStatus, target: RunStatus) -> None:
    """Check one step of the state machine.

    Raises:
        IllegalTransitionError: when there is no such step.
    """
    if target not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "none: it has ended"
        raise IllegalTransitionError(
            f"status: a run that is {current} cannot become {target}; possible: {allowed}",
            current=current,
            requested=target,
        )
