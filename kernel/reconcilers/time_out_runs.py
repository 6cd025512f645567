"""Fails runs that have not ended by their deadline."""

from collections.abc import Sequence
from uuid import UUID

import orjson

from kernel.commands.acknowledging import cancel_all_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.calls import TIMED_OUT as CALL_TIMED_OUT
from kernel.commands.calls import among, cancel_call
from kernel.commands.ending import Ending, end_runs
from kernel.domain.run import RunStatus
from kernel.reconcilers.sweep import Sweep
from kernel.store import runs
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.trees import LockedTree, TreeKey
from kernel.wakeups import Wakeups

TIMED_OUT = orjson.dumps({"code": "timed_out", "message": "the run had not ended by its deadline"}).decode()


class OverdueRuns:
    """A run past its deadline has failed; what is below it goes on, unless its agent's policy closes it.

    Under a fence it is cancelled all the same, whatever grace its worker had. What was made by agent_call is cancelled
    with all that is below it, also where the process that waited for it is gone.
    """

    name = "time_out_runs"

    async def find(
        self, session: ReadSession, *, limit: int, passing_over: Sequence[UUID], elsewhere_than: Sequence[UUID]
    ) -> list[tuple[TreeKey, UUID]]:
        return await runs.due(session, limit=limit, passing_over=passing_over, elsewhere_than=elsewhere_than)

    async def settle(self, session: WriteSession, tree: LockedTree, row_ids: Sequence[UUID]) -> tuple[int, Aftermath]:
        due = await runs.still_due(session, tree.tenant_id, row_ids)
        known = await runs.load(session, tree.tenant_id, due)
        live = [run_id for run_id in row_ids if run_id in known and known[run_id].active]
        left, aftermath = await cancel_all_covered(session, tree, live, known)
        called = await among(session, tree.tenant_id, left)
        for run_id in called:
            _, cancelled = await cancel_call(session, tree, known[run_id], reason=CALL_TIMED_OUT)
            aftermath.add(cancelled)
        left = [run_id for run_id in left if run_id not in called]
        if called:
            # What is below a call is under the fence that has just been set.
            left, cancelled = await cancel_all_covered(session, tree, left, known)
            aftermath.add(cancelled)
        endings = [Ending(run_id, RunStatus.FAILED, error=TIMED_OUT) for run_id in left]
        aftermath.add((await end_runs(session, tree, endings, known=known)).aftermath)
        return len(live), aftermath


def time_out_runs(database: Database, wakeups: Wakeups | None = None) -> Sweep:
    """The pass that fails overdue runs."""
    return Sweep(database, OverdueRuns(), wakeups)
