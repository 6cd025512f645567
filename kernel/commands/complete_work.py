"""Complete work: a worker gives a run back that it holds, ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from asyncpg import exceptions as pg

from kernel.commands.acknowledging import cancel_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.ending import Ending, end_runs
from kernel.commands.lanes import Lanes
from kernel.commands.reporting import LockedRun, Reported, is_repeat, lease_lost, was_cancelled
from kernel.commands.spawning.refusals import count_refusal
from kernel.domain.errors import ForbiddenError, NotFoundError, RemitError
from kernel.domain.fences import Fence
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.store import fences, runs, trees
from kernel.store.engine import Database, WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree, TreeKey
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
        self._database = database
        self._wakeups = wakeups
        self._lanes: Lanes[TreeKey, CompleteWork, Reported] = Lanes(self._batch)

    async def execute(self, principal: Principal, request: CompleteWork) -> Reported:
        """End a run; a repeat of what the same lease has reported answers as the first time.

        Raises:
            NotFoundError: when the tenant has no such run.
            LeaseLostError: when the lease is not the current one, or has expired; then nothing changes.
            RunCancelledError: when a fence covers the run; all it may still become is `cancelled`.
        """
        if principal.kind == "run" and principal.run_id != request.run_id:
            raise ForbiddenError(f"run_id: this token acts as run {principal.run_id} only")
        async with self._database.read() as session:
            # The root of a run never changes, so it is known before the lock.
            root_run_id = (await runs.roots(session, principal.tenant, [request.run_id])).get(request.run_id)
        if root_run_id is None:
            raise NotFoundError(f"run_id: there is no run {request.run_id}")
        return await self._lanes.take((principal.tenant, root_run_id), request)

    async def _batch(self, key: TreeKey, requests: Sequence[CompleteWork]) -> list[Reported | Exception]:
        """Answer reports on runs of one tree; of several on the same run, one after the other."""
        answers: dict[int, Reported | Exception] = {}
        while len(answers) < len(requests):
            firsts = {request.run_id: n for n, request in reversed(list(enumerate(requests))) if n not in answers}
            numbers = sorted(firsts.values())
            settled = await self._settle_each(key, [requests[number] for number in numbers])
            answers |= dict(zip(numbers, settled, strict=True))
        return [answers[number] for number in range(len(requests))]

    async def _settle_each(self, key: TreeKey, requests: Sequence[CompleteWork]) -> list[Reported | Exception]:
        try:
            return await self._settle(key, requests)
        except pg.PostgresError as error:
            if len(requests) == 1:
                return [error]
        # What the database does not take of one must not fail its neighbours: nothing was committed; each goes alone.
        return [answer for request in requests for answer in await self._settle_each(key, [request])]

    async def _settle(self, key: TreeKey, requests: Sequence[CompleteWork]) -> list[Reported | Exception]:
        ending = _Endings()
        async with self._database.write() as session:
            tree = await trees.lock_one(session, *key)
            known = await runs.load(session, tree.tenant_id, [request.run_id for request in requests])
            covered = {}
            if tree.open_fences:
                covered = await fences.covered(session, [(*key, run_id) for run_id, run in known.items() if run.active])
            answers: list[Reported | RemitError | None] = []
            for request in requests:
                run = known[request.run_id]
                fence = covered.get((tree.tenant_id, run.run_id))
                try:
                    answers.append(await _judge(LockedRun(session, tree, run, fence), request, ending))
                except RemitError as error:
                    answers.append(error)
            aftermath, finalized_at = await ending.write(session, tree, known)
        aftermath.tell(self._wakeups)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, RemitError):
                count_refusal(answer, known[request.run_id].tenant_slug, ACTION)
        return [
            answer or Reported(request.run_id, request.status, finalized_at[request.run_id])
            for request, answer in zip(requests, answers, strict=True)
        ]


@dataclass(slots=True)
class _Endings:
    """The runs of a batch that end: as their workers say, or acknowledged under a fence."""

    ordinary: list[Ending] = field(default_factory=list)
    acknowledged: dict[UUID, Fence] = field(default_factory=dict)

    async def write(
        self, session: WriteSession, tree: LockedTree, known: Mapping[UUID, Run]
    ) -> tuple[Aftermath, dict[UUID, datetime]]:
        if not self.ordinary and not self.acknowledged:
            return Aftermath(), {}
        ended = await end_runs(session, tree, self.ordinary, known=known)
        cancelled = await cancel_covered(session, tree, self.acknowledged, known)
        await trees.advance(session, tree)
        ended.aftermath.add(cancelled.aftermath)
        return ended.aftermath, {**ended.finalized_at, **cancelled.finalized_at}


async def _judge(locked: LockedRun, request: CompleteWork, ending: _Endings) -> Reported | None:
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
        ending.ordinary.append(Ending(run.run_id, request.status, request.output, request.error))
        return None
    if request.status is not RunStatus.CANCELLED:
        raise await was_cancelled(locked)
    ending.acknowledged[run.run_id] = locked.fence
    return None
