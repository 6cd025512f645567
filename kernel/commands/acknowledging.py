"""Runs that end as cancelled under a fence, other than by its drain: each is counted by the fence that covers it."""

from collections import Counter
from collections.abc import Mapping
from uuid import UUID

from kernel.commands.ending import Ended, Ending, end_runs
from kernel.domain.fences import Fence
from kernel.domain.run import RunStatus
from kernel.store import runs
from kernel.store.engine import WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree


async def cancel_covered(
    session: WriteSession, tree: LockedTree, covered: Mapping[UUID, Fence], known: Mapping[UUID, Run]
) -> Ended:
    """End active runs of a locked tree as cancelled, by the fences that cover them.

    Args:
        covered: for each run, its fence.
        known: the runs as they stand under the lock.
    """
    live = {run_id: fence for run_id, fence in covered.items() if known[run_id].active}
    ended = await end_runs(session, tree, [Ending(run_id, RunStatus.CANCELLED) for run_id in live], known=known)
    if live:
        await runs.count_cancelled(session, tree.tenant_id, Counter(fence.cancellation_id for fence in live.values()))
        slug = known[next(iter(live))].tenant_slug
        ended.aftermath.cancelled[slug] += len(live)
    return ended
