"""Complete work: a worker gives a run back that it holds, ended."""

from dataclasses import dataclass
from uuid import UUID

from kernel.commands.acknowledging import cancel_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.ending import Ending, end_runs
from kernel.commands.reporting import LockedRun, Reported, is_repeat, lease_lost, locked_run, was_cancelled
from kernel.domain.errors import ForbiddenError
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.store import trees
from kernel.store.engine import Database
from kernel.wakeups import Wakeups


@dataclass(frozen=True, slots=True)
class CompleteWork:
    """How a run ended, by the holder of its lease: with a terminal status; output and error are JSON texts."""

    run_id: UUID
    lease: UUID
    status: RunStatus
    output: str | None = None
    error: str | None = None


class CompleteWorkCommand:
    """Ends a run for the worker that holds it, and for no other."""

    def __init__(self, database: Database, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._wakeups = wakeups

    async def execute(self, principal: Principal, request: CompleteWork) -> Reported:
        """End a run; a repeat of what the same lease has reported answers as the first time.

        Raises:
            NotFoundError: when the tenant has no such run.
            LeaseLostError: when the lease is not the current one, or has expired; then nothing changes.
            RunCancelledError: when a fence covers the run; all it may still become is `cancelled`.
        """
        if principal.kind == "run" and principal.run_id != request.run_id:
            raise ForbiddenError(f"run_id: this token acts as run {principal.run_id} only")
        async with locked_run(self._database, principal.tenant, request.run_id) as locked:
            aftermath, reported = await _end(locked, request)
        aftermath.tell(self._wakeups)
        return reported


async def _end(locked: LockedRun, request: CompleteWork) -> tuple[Aftermath, Reported]:
    run = locked.run
    if run.granted != request.lease:
        raise lease_lost(run.run_id)
    if not run.active:
        if await is_repeat(locked, request.status, request.output, request.error):
            return Aftermath(), Reported(run.run_id, run.status, run.finalized_at, idempotent=True)
        if run.status is RunStatus.CANCELLED:
            raise await was_cancelled(locked)
        raise lease_lost(run.run_id)
    if not run.held_by(request.lease):
        raise lease_lost(run.run_id)
    known = {run.run_id: run}
    if locked.fence is not None:
        if request.status is not RunStatus.CANCELLED:
            raise await was_cancelled(locked)
        ended = await cancel_covered(locked.session, locked.tree, {run.run_id: locked.fence}, known)
    else:
        ending = Ending(run.run_id, request.status, request.output, request.error)
        ended = await end_runs(locked.session, locked.tree, [ending], known=known)
    await trees.advance(locked.session, locked.tree)
    return ended.aftermath, Reported(run.run_id, request.status, ended.finalized_at[run.run_id])
