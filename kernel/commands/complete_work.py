"""Complete work: a worker gives a run back that it holds, ended."""

from dataclasses import dataclass
from uuid import UUID

from kernel.commands.ending import Ending
from kernel.commands.reporting import LockedRun, Reported, is_repeat, lease_lost, was_cancelled
from kernel.commands.reports import Outcome, Reports
from kernel.domain.errors import ForbiddenError
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.store.engine import Database
from kernel.wakeups import Wakeups

# The name under which refusals are counted.
ACTION = "complete_work"


@dataclass(frozen=True, slots=True)
class CompleteWork:
    """How a run ended, by the holder of its lease: with a terminal status; output and error are JSON texts."""

    run_id: UUID
    lease: UUID
    status: RunStatus
    output: str | None = None
    error: str | None = None


class CompleteWorkCommand:
    """Ends runs for the workers that hold them, and for no others.

    One per process, so that what ends in one tree at about the same time ends in one transaction.
    """

    def __init__(self, database: Database, wakeups: Wakeups | None = None) -> None:
        self._reports = Reports(database, wakeups, ACTION, _judge)

    async def execute(self, principal: Principal, request: CompleteWork) -> Reported:
        """End a run; a repeat of what the same lease has reported answers as the first time.

        Raises:
            NotFoundError: when the tenant has no such run.
            LeaseLostError: when the lease is not the current one, or has expired; then nothing changes.
            RunCancelledError: when a fence covers the run; all it may still become is `cancelled`.
        """
        if principal.kind == "run" and principal.run_id != request.run_id:
            raise ForbiddenError(f"run_id: this token acts as run {principal.run_id} only")
        return await self._reports.take(principal.tenant, request)


async def _judge(locked: LockedRun, request: CompleteWork, outcome: Outcome) -> Reported | None:
    """The answer to a report that changes nothing; None for one that ends its run, which is gathered."""
    run = locked.run
    if run.granted != request.lease:
        raise lease_lost(run.run_id)
    if not run.active:
        if await is_repeat(locked, request.status, request.output, request.error):
            return Reported(run.run_id, run.status, run.finalized_at, idempotent=True)
        if run.status is RunStatus.CANCELLED:
            raise await was_cancelled(locked)
        raise lease_lost(run.run_id)
    if not run.held_by(request.lease):
        raise lease_lost(run.run_id)
    if locked.fence is None:
        outcome.ordinary.append(Ending(run.run_id, request.status, request.output, request.error))
        return None
    if request.status is not RunStatus.CANCELLED:
        raise await was_cancelled(locked)
    outcome.acknowledged[run.run_id] = locked.fence
    return None
