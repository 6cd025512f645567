"""What complete and report have in common: one run under the lock of its tree, and the answer to a report on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import orjson

from kernel.commands.spawning.refusals import cancelled, under_fence
from kernel.domain.errors import LeaseLostError, NotFoundError, RunCancelledError
from kernel.domain.fences import Fence
from kernel.domain.run import RunStatus
from kernel.store import fences, runs, trees
from kernel.store.engine import Database, WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree


@dataclass(frozen=True, slots=True)
class Reported:
    """How the run stands after a report. `idempotent`: the report had been taken before."""

    run_id: UUID
    status: RunStatus
    finalized_at: datetime | None = None
    idempotent: bool = False


@dataclass(frozen=True, slots=True)
class LockedRun:
    """A run as it stands under the lock of its tree, and the fence that covers it, if any."""

    session: WriteSession
    tree: LockedTree
    run: Run
    fence: Fence | None


@asynccontextmanager
async def locked_run(database: Database, tenant_id: UUID, run_id: UUID) -> AsyncIterator[LockedRun]:
    """Lock a run's tree, and read the run in a later statement, in a transaction around the block.

    Raises:
        NotFoundError: when the tenant has no such run.
    """
    async with database.write() as session:
        # The root of a run never changes, so it is known before the lock.
        root_run_id = (await runs.roots(session, tenant_id, [run_id])).get(run_id)
        if root_run_id is None:
            raise NotFoundError(f"run_id: there is no run {run_id}")
        tree = await trees.lock_one(session, tenant_id, root_run_id)
        run = (await runs.load(session, tenant_id, [run_id]))[run_id]
        fence = None
        if tree.open_fences and run.active:
            fence = (await fences.covered(session, [(tenant_id, root_run_id, run_id)])).get((tenant_id, run_id))
        yield LockedRun(session, tree, run, fence)


async def is_repeat(locked: LockedRun, status: RunStatus, output: str | None, error: str | None) -> bool:
    """Whether the run has ended with just this status and payload; a cancellation has none to compare."""
    if locked.run.status is not status:
        return False
    if status is RunStatus.CANCELLED:
        return True
    stored = await runs.payload(locked.session, locked.run.tenant_id, locked.run.run_id)
    return _same(stored.output, output) and _same(stored.error, error)


async def was_cancelled(locked: LockedRun) -> RunCancelledError:
    """The refusal of a report on a run that is cancelled, with the reason."""
    run = locked.run
    if locked.fence is not None:
        return under_fence(run.run_id, locked.fence)
    end = (run.root_run_id, run.finalized_seq or 0)
    return (await cancelled(locked.session, run.tenant_id, {run.run_id: end}))[run.run_id]


def lease_lost(run_id: UUID) -> LeaseLostError:
    """The refusal of a report by whoever does not hold the run (any more)."""
    return LeaseLostError(f"lease: it is not, or no longer, the lease of run {run_id}", run_id=str(run_id))


def _same(stored: str | None, given: str | None) -> bool:
    if stored is None or given is None:
        return stored is given
    return bool(orjson.loads(stored) == orjson.loads(given))
