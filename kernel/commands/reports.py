"""Reports on runs: those of one tree at about the same time go together, in one transaction under its lock."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from asyncpg import exceptions as pg

from kernel.commands.acknowledging import cancel_covered
from kernel.commands.aftermath import Aftermath
from kernel.commands.ending import Ending, end_runs
from kernel.commands.lanes import Lanes
from kernel.commands.reporting import LockedRun, Reported
from kernel.commands.root_lookups import RootLookups
from kernel.commands.spawning.refusals import count_refusal
from kernel.domain.errors import RemitError
from kernel.domain.fences import Fence
from kernel.domain.run import RunStatus
from kernel.store import fences, runs, trees
from kernel.store.engine import Database, WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree, TreeKey
from kernel.wakeups import Wakeups


class Report(Protocol):
    """What every report says: which run, and the status that it has reached."""

    @property
    def run_id(self) -> UUID: ...

    @property
    def status(self) -> RunStatus: ...


R = TypeVar("R", bound=Report)


@dataclass(slots=True)
class Outcome:
    """What the reports of a batch come to: the runs that end, as was said or acknowledged under a fence, and the rest.

    `moves` are the steps to statuses that are not terminal, which are written as they are judged.
    """

    ordinary: list[Ending] = field(default_factory=list)
    acknowledged: dict[UUID, Fence] = field(default_factory=dict)
    moves: Aftermath = field(default_factory=Aftermath)
    moved: bool = False

    async def write(
        self, session: WriteSession, tree: LockedTree, known: Mapping[UUID, Run]
    ) -> tuple[Aftermath, dict[UUID, datetime]]:
        """End the runs, and write the tree back if anything has changed."""
        if not self.ordinary and not self.acknowledged and not self.moved:
            return Aftermath(), {}
        ended = await end_runs(session, tree, self.ordinary, known=known)
        cancelled = await cancel_covered(session, tree, self.acknowledged, known)
        await trees.advance(session, tree)
        ended.aftermath.add(self.moves)
        ended.aftermath.add(cancelled.aftermath)
        return ended.aftermath, {**ended.finalized_at, **cancelled.finalized_at}


class Reports(Generic[R]):
    """Takes reports to their trees; one per process and kind.

    Args:
        action: the name under which refusals are counted.
        judge: the answer to a report that changes nothing more; None for one whose run ends, which is gathered in the
            outcome. Raises a refusal before it has written anything.
    """

    def __init__(
        self,
        database: Database,
        wakeups: Wakeups | None,
        action: str,
        judge: Callable[[LockedRun, R, Outcome], Awaitable[Reported | None]],
    ) -> None:
        self._database = database
        self._wakeups = wakeups
        self._action = action
        self._judge = judge
        self._lookups = RootLookups(database)
        self._lanes: Lanes[TreeKey, R, Reported] = Lanes(self._batch)

    async def take(self, tenant_id: UUID, report: R) -> Reported:
        """Answer a report.

        Raises:
            NotFoundError: when the tenant has no such run.
            RemitError: the refusal of this report.
        """
        root_run_id = await self._lookups.root_of(tenant_id, report.run_id)
        return await self._lanes.take((tenant_id, root_run_id), report)

    async def _batch(self, key: TreeKey, reports: Sequence[R]) -> list[Reported | Exception]:
        """Answer reports on runs of one tree; of several on the same run, one after the other."""
        answers: dict[int, Reported | Exception] = {}
        while len(answers) < len(reports):
            firsts = {report.run_id: n for n, report in reversed(list(enumerate(reports))) if n not in answers}
            numbers = sorted(firsts.values())
            settled = await self._settle_each(key, [reports[number] for number in numbers])
            answers |= dict(zip(numbers, settled, strict=True))
        return [answers[number] for number in range(len(reports))]

    async def _settle_each(self, key: TreeKey, reports: Sequence[R]) -> list[Reported | Exception]:
        try:
            return await self._settle(key, reports)
        except pg.PostgresError as error:
            if len(reports) == 1:
                return [error]
        # What the database does not take of one must not fail its neighbours: nothing was committed; each goes alone.
        return [answer for report in reports for answer in await self._settle_each(key, [report])]

    async def _settle(self, key: TreeKey, reports: Sequence[R]) -> list[Reported | Exception]:
        outcome = Outcome()
        async with self._database.write() as session:
            tree = await trees.lock_one(session, *key)
            known = await runs.load(session, tree.tenant_id, [report.run_id for report in reports])
            covered = {}
            if tree.open_fences:
                covered = await fences.covered(session, [(*key, run_id) for run_id, run in known.items() if run.active])
            answers: list[Reported | RemitError | None] = []
            for report in reports:
                run = known[report.run_id]
                fence = covered.get((tree.tenant_id, run.run_id))
                try:
                    answers.append(await self._judge(LockedRun(session, tree, run, fence), report, outcome))
                except RemitError as error:
                    answers.append(error)
            aftermath, finalized_at = await outcome.write(session, tree, known)
        aftermath.tell(self._wakeups)
        for report, answer in zip(reports, answers, strict=True):
            if isinstance(answer, RemitError):
                count_refusal(answer, known[report.run_id].tenant_slug, self._action)
        return [
            answer or Reported(report.run_id, report.status, finalized_at[report.run_id])
            for report, answer in zip(reports, answers, strict=True)
        ]
