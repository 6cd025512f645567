"""Runs that end as cancelled under a fence, other than by its drain: each is counted by the fence that covers it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

from kernel.commands.aftermath import Aftermath
from kernel.commands.ending import Ended, Ending, end_runs
from kernel.domain.fences import Fence
from kernel.domain.run import RunStatus
from kernel.store import fences, runs
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
    endings = [
        Ending(run_id, RunStatus.CANCELLED, cancellation_id=fence.cancellation_id) for run_id, fence in live.items()
    ]
    ended = await end_runs(session, tree, endings, known=known)
    if live:
        await runs.count_cancelled(session, tree.tenant_id, Counter(fence.cancellation_id for fence in live.values()))
        slug = known[next(iter(live))].tenant_slug
        ended.aftermath.cancelled[slug] += len(live)
    return ended


async def cancel_all_covered(
    session: WriteSession, tree: LockedTree, run_ids: Sequence[UUID], known: Mapping[UUID, Run]
) -> tuple[list[UUID], Aftermath]:
    """Of active runs of a locked tree, end as cancelled those that an open fence covers; the others are handed back.

    What ends may decide a group, whose fence covers some of the others: those end with the rest.
    """
    left, aftermath = list(run_ids), Aftermath()
    looked_at = -1
    while left and tree.open_fences and tree.added_fences != looked_at:
        looked_at = tree.added_fences
        hit = await fences.covered(session, [(tree.tenant_id, tree.root_run_id, run_id) for run_id in left])
        covered = {run_id: fence for (_, run_id), fence in hit.items()}
        if covered:
            aftermath.add((await cancel_covered(session, tree, covered, known)).aftermath)
            left = [run_id for run_id in left if run_id not in covered]
    return left, aftermath
