"""Takes back the leases of workers that were not heard of in time."""

from collections.abc import Sequence
from uuid import UUID

import orjson

from kernel.commands.acknowledging import cancel_all_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.ending import Ending, end_runs
from kernel.commands.requeuing import requeue
from kernel.domain.run import RunStatus
from kernel.reconcilers.sweep import Sweep
from kernel.store import leases, runs
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
        left, cancelled = await cancel_all_covered(session, tree, list(lost), known)
        aftermath.add(cancelled)
        spent = {run_id for run_id in left if (lost[run_id].attempt or 0) >= (lost[run_id].max_attempts or 0)}
        if spent:
            endings = [_failure(lost[run_id]) for run_id in left if run_id in spent]
            aftermath.add((await end_runs(session, tree, endings, known=known)).aftermath)
            left = [run_id for run_id in left if run_id not in spent]
            # What has failed may have decided a group, whose fence covers some of the rest.
            left, cancelled = await cancel_all_covered(session, tree, left, known)
            aftermath.add(cancelled)
        if left:
            aftermath.add(await requeue(session, tree, [lost[run_id] for run_id in left]))
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
