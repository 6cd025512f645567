"""Takes back the leases of workers that were not heard of in time."""

from collections.abc import Sequence
from uuid import UUID

import orjson

from kernel.commands.acknowledging import cancel_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.ending import Ending, end_runs
from kernel.commands.requeuing import requeue
from kernel.domain.run import RunStatus
from kernel.reconcilers.sweep import Sweep
from kernel.store import fences, leases, runs
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree, TreeKey
from kernel.wakeups import Wakeups


class ExpiredLeases:
    """A run whose lease ran out goes back to the queue, until it has been tried often enough; then it has failed.

    Under a fence it is cancelled: nobody is left to acknowledge.
    """

    name = "expire_leases"

    async def find(
        self, session: ReadSession, *, limit: int, passing_over: Sequence[UUID], elsewhere_than: Sequence[UUID]
    ) -> list[tuple[TreeKey, UUID]]:
        return await leases.expired(session, limit=limit, passing_over=passing_over, elsewhere_than=elsewhere_than)

    async def settle(self, session: WriteSession, tree: LockedTree, row_ids: Sequence[UUID]) -> tuple[int, Aftermath]:
        known = await runs.load(session, tree.tenant_id, row_ids)
        lost = {run_id: run for run_id, run in known.items() if run.active and run.lease_runs is False}
        aftermath = Aftermath()
        if not lost:
            return 0, aftermath
        for run in lost.values():
            aftermath.expired[run.tenant_slug] += 1
        covered = {}
        if tree.open_fences:
            hit = await fences.covered(session, [(tree.tenant_id, tree.root_run_id, run_id) for run_id in lost])
            covered = {run_id: fence for (_, run_id), fence in hit.items()}
        if covered:
            aftermath.add((await cancel_covered(session, tree, covered, known)).aftermath)
        left = [run for run_id, run in lost.items() if run_id not in covered]
        spent = [run for run in left if (run.attempt or 0) >= (run.max_attempts or 0)]
        if spent:
            aftermath.add((await end_runs(session, tree, [_failure(run) for run in spent], known=known)).aftermath)
        again = [run for run in left if run not in spent]
        if again:
            aftermath.add(await requeue(session, tree, again))
        return len(lost), aftermath


def _failure(run: Run) -> Ending:
    error = {
        "code": "lease_expired",
        "message": f"no worker kept its lease on this run: {run.attempt} attempts",
        "attempts": run.attempt,
    }
    return Ending(run.run_id, RunStatus.FAILED, error=orjson.dumps(error).decode())


def expire_leases(database: Database, wakeups: Wakeups | None = None) -> Sweep:
    """The pass that takes back leases."""
    return Sweep(database, ExpiredLeases(), wakeups)
