"""Report a run: what a runtime says of a run that it executes itself."""

from dataclasses import dataclass
from uuid import UUID

from kernel.commands.ending import Ending
from kernel.commands.lifecycle import Change, lifecycle_event
from kernel.commands.reporting import LockedRun, Reported, is_repeat, lease_lost, was_cancelled
from kernel.commands.reports import Outcome, Reports
from kernel.domain.errors import ForbiddenError, InvalidRequestError, LeaseLostError
from kernel.domain.principal import Principal
from kernel.domain.run import REPORTABLE, TERMINAL, RunStatus, check_transition
from kernel.store import fences, runs
from kernel.store.engine import Database
from kernel.wakeups import Wakeups

# The name under which refusals are counted.
ACTION = "report_run"


@dataclass(frozen=True, slots=True)
class ReportRun:
    """The status that a run has reached; output and error are JSON texts. A run of a worker's needs its `lease`."""

    run_id: UUID
    status: RunStatus
    output: str | None = None
    error: str | None = None
    lease: UUID | None = None


class ReportRunCommand:
    """Takes a run one step further in its state machine.

    One per process: a herd of reports in one tree is a few transactions, not as many connections at its lock.
    """

    def __init__(self, database: Database, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._reports = Reports(database, wakeups, ACTION, _judge)

    async def execute(self, principal: Principal, request: ReportRun) -> Reported:
        """Write the step; a repeat of the last one answers as the first time.

        Raises:
            InvalidRequestError: for a status that nobody reports, or a payload of a run that goes on.
            NotFoundError: when the tenant has no such run.
            ForbiddenError: when a run's token reports a run that is neither its own nor below it.
            LeaseLostError: for a run that a worker executes, without its current lease.
            RunCancelledError: when a fence covers the run; all it may still become is `cancelled`.
            IllegalTransitionError: when there is no such step.
        """
        if request.status not in REPORTABLE:
            raise InvalidRequestError(f"status: {request.status} is not reported by a runtime", field="status")
        if request.status not in TERMINAL and (request.output is not None or request.error is not None):
            raise InvalidRequestError(
                f"output, error: a run that is {request.status} has not ended, so it has neither", field="output"
            )
        await self._check_reach(principal, request.run_id)
        return await self._reports.take(principal.tenant, request)

    async def _check_reach(self, principal: Principal, run_id: UUID) -> None:
        if principal.kind != "run" or principal.run_id == run_id:
            return
        async with self._database.read() as session:
            # The way up never changes. A run that does not exist has none, and is answered as such under the lock.
            path = (await fences.paths(session, [(principal.tenant, run_id)])).get((principal.tenant, run_id), [])
        if path and all(step.run_id != principal.run_id for step in path):
            raise ForbiddenError(f"run_id: this token reports run {principal.run_id} and those below it only")


async def _judge(locked: LockedRun, request: ReportRun, outcome: Outcome) -> Reported | None:
    """The answer to a report after which the run goes on, or that changes nothing; None for one that ends its run."""
    run = locked.run
    if request.status in TERMINAL and await is_repeat(locked, request.status, request.output, request.error):
        return Reported(run.run_id, run.status, run.finalized_at, idempotent=True)
    if run.active:
        _check_lease(locked, request.lease)
    if run.status is RunStatus.CANCELLED or locked.fence is not None:
        if locked.fence is None or request.status is not RunStatus.CANCELLED:
            raise await was_cancelled(locked)
        outcome.acknowledged[run.run_id] = locked.fence
        return None
    if request.status is run.status and run.active:
        return Reported(run.run_id, run.status, idempotent=True)
    check_transition(run.status, request.status)
    if request.status in TERMINAL:
        outcome.ordinary.append(Ending(run.run_id, request.status, request.output, request.error))
        return None
    await _move(locked, request.status, outcome)
    return Reported(run.run_id, request.status)


async def _move(locked: LockedRun, status: RunStatus, outcome: Outcome) -> None:
    run, tree = locked.run, locked.tree
    seq = tree.next_seq()
    tree.moved(run.status.value, status.value)
    await runs.move(locked.session, run.tenant_id, run.run_id, status, seq=seq)
    change = Change(run.run_id, status, run.group_id)
    tree.tell(lifecycle_event(tree, seq, [change], run.surface))
    outcome.moves.transitions[run.tenant_slug, status.value] += 1
    outcome.moved = True


def _check_lease(locked: LockedRun, lease: UUID | None) -> None:
    """A run that waits for a worker, or has one, is its worker's to report."""
    run = locked.run
    if run.background and lease is None:
        raise LeaseLostError(
            f"lease: run {run.run_id} is executed by a worker, and is reported with its lease only",
            run_id=str(run.run_id),
        )
    if (run.background or lease is not None) and not run.held_by(lease):
        raise lease_lost(run.run_id)
