"""Runs that go back to the queue: their workers were not heard of in time, or were gone before they had them."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from kernel.commands.acknowledging import cancel_all_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.lifecycle import Change, lifecycle_event
from kernel.domain.run import RunStatus
from kernel.store import leases, runs, trees
from kernel.store.engine import Database, WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree
from kernel.wakeups import Wakeups


async def requeue(session: WriteSession, tree: LockedTree, again: Sequence[Run], *, tried: bool = True) -> Aftermath:
    """Take back the leases of active runs of a locked tree, and put the runs back in the queue.

    Args:
        tried: whether a worker has had them; else the lease that ends here counts as no attempt.
    """
    put_back = leases.requeue if tried else leases.give_back
    await put_back(session, tree.tenant_id, [run.run_id for run in again])
    aftermath = Aftermath()
    for run in again:
        tree.moved(run.status.value, RunStatus.QUEUED.value)
        aftermath.transitions[run.tenant_slug, RunStatus.QUEUED.value] += 1
        aftermath.queued[run.tenant_id, run.agent_id] += 1
    for surface in sorted({run.surface for run in again}):
        changes = [Change(run.run_id, RunStatus.QUEUED, run.group_id) for run in again if run.surface is surface]
        tree.tell(lifecycle_event(tree, tree.next_seq(), changes, surface))
    return aftermath


async def give_back(database: Database, wakeups: Wakeups, tenant_id: UUID, granted: Mapping[UUID, UUID]) -> None:
    """Give back runs whose worker was gone before it heard of them; under a fence they are cancelled.

    Args:
        granted: the runs, each with the lease that was meant for it.

    Raises:
        DatabaseUnavailableError: when PostgreSQL does not answer; the leases then run out.
    """
    async with database.read() as session:
        roots = await runs.roots(session, tenant_id, granted)
    for root_run_id in sorted(set(roots.values())):
        here = [run_id for run_id, root in roots.items() if root == root_run_id]
        async with database.write() as session:
            tree = await trees.lock_one(session, tenant_id, root_run_id)
            known = await runs.load(session, tenant_id, here)
            held = [run for run in known.values() if run.active and run.held_by(granted[run.run_id])]
            if not held:
                continue
            left, aftermath = await cancel_all_covered(session, tree, [run.run_id for run in held], known)
            if left:
                aftermath.add(await requeue(session, tree, [known[run_id] for run_id in left], tried=False))
            await trees.advance(session, tree)
        aftermath.tell(wakeups)
