"""Reports on runs: those that come at about the same time go together, under the locks of their trees.

A commit costs more than all that is written about a run that ends, so trees share it; not too many, because each of
them is locked until the last has been written. A tree that somebody else holds keeps none of the others waiting: the
reports on it have a transaction of their own, beside the rest.
"""

import asyncio
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

# So many transactions of a tenant may be under way, on so many trees each.
LANES = 2
MAX_TREES = 12
# So many of the trees that somebody else holds are waited for at a time; each costs a connection.
MAX_WAITS = 4


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

    @property
    def changes(self) -> bool:
        """Whether anything of the tree changes."""
        return bool(self.ordinary or self.acknowledged or self.moved)

    async def write(
        self, session: WriteSession, tree: LockedTree, known: Mapping[UUID, Run]
    ) -> tuple[Aftermath, dict[UUID, datetime]]:
        """End the runs; the caller writes the tree back."""
        ended = await end_runs(session, tree, self.ordinary, known=known)
        cancelled = await cancel_covered(session, tree, self.acknowledged, known)
        ended.aftermath.add(self.moves)
        ended.aftermath.add(cancelled.aftermath)
        return ended.aftermath, {**ended.finalized_at, **cancelled.finalized_at}


@dataclass(frozen=True, slots=True)
class _Lane:
    """Reports that go together: those of a tenant on half of its trees."""

    tenant_id: UUID
    number: int


@dataclass(frozen=True, slots=True)
class _Placed(Generic[R]):
    """A report, and the tree that its run is in."""

    root_run_id: UUID
    report: R


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
        self._lanes: Lanes[_Lane, _Placed[R], Reported | None] = Lanes(self._batch)
        self._held: Lanes[TreeKey, _Placed[R], Reported] = Lanes(self._batch_held)
        self._waits = asyncio.Semaphore(MAX_WAITS)

    async def take(self, tenant_id: UUID, report: R) -> Reported:
        """Answer a report.

        Raises:
            NotFoundError: when the tenant has no such run.
            RemitError: the refusal of this report.
        """
        root_run_id = await self._lookups.root_of(tenant_id, report.run_id)
        placed = _Placed(root_run_id, report)
        reported = await self._lanes.take(_Lane(tenant_id, root_run_id.int % LANES), placed)
        return reported or await self._held.take((tenant_id, root_run_id), placed)

    async def _batch(self, lane: _Lane, placed: Sequence[_Placed[R]]) -> list[Reported | Exception | None]:
        """Answer reports on runs of one tenant, in the trees that nobody else holds; None for the others."""
        return await self._answer(lane.tenant_id, placed, wait=False)

    async def _batch_held(self, tree: TreeKey, placed: Sequence[_Placed[R]]) -> list[Reported | Exception]:
        """Answer reports on runs of one tree, after waiting for it."""
        tenant_id, _ = tree
        async with self._waits:
            answers = await self._answer(tenant_id, placed, wait=True)
        return [answer for answer in answers if answer is not None]

    async def _answer(
        self, tenant_id: UUID, placed: Sequence[_Placed[R]], *, wait: bool
    ) -> list[Reported | Exception | None]:
        """Answer reports; of several on the same run, one after the other."""
        answers: dict[int, Reported | Exception | None] = {}
        while len(answers) < len(placed):
            firsts = {one.report.run_id: n for n, one in reversed(list(enumerate(placed))) if n not in answers}
            for numbers in _parts(placed, sorted(firsts.values())):
                settled = await self._settle_each(tenant_id, [placed[number] for number in numbers], wait=wait)
                answers |= dict(zip(numbers, settled, strict=True))
            # A later report on a run in a tree that is held does not overtake the first.
            held = {placed[number].root_run_id for number, answer in answers.items() if answer is None}
            answers |= {n: None for n, one in enumerate(placed) if n not in answers and one.root_run_id in held}
        return [answers[number] for number in range(len(placed))]

    async def _settle_each(
        self, tenant_id: UUID, placed: Sequence[_Placed[R]], *, wait: bool
    ) -> list[Reported | Exception | None]:
        try:
            return await self._settle(tenant_id, placed, wait=wait)
        except pg.PostgresError as error:
            if len(placed) == 1:
                return [error]
        # What the database does not take of one must not fail its neighbours: nothing was committed; each goes alone.
        return [answer for one in placed for answer in await self._settle_each(tenant_id, [one], wait=wait)]

    async def _settle(
        self, tenant_id: UUID, placed: Sequence[_Placed[R]], *, wait: bool
    ) -> list[Reported | Exception | None]:
        """Answer reports in one transaction; None for those in trees that are held and not waited for."""
        aftermath = Aftermath()
        finalized_at: dict[UUID, datetime] = {}
        keys = {(tenant_id, one.root_run_id) for one in placed}
        async with self._database.write() as session:
            locked = await (trees.lock(session, keys) if wait else trees.lock_available(session, keys, len(keys)))
            here = placed if wait else [one for one in placed if (tenant_id, one.root_run_id) in locked]
            if not here:
                return [None] * len(placed)
            known = await runs.load(session, tenant_id, [one.report.run_id for one in here])
            outcomes = {key: Outcome() for key in locked}
            judged = await self._judge_each(session, locked, known, outcomes, here)
            changed = [locked[key] for key, outcome in outcomes.items() if outcome.changes]
            for tree in changed:
                told, ended = await outcomes[tree.tenant_id, tree.root_run_id].write(session, tree, known)
                aftermath.add(told)
                finalized_at |= ended
            if changed:
                await trees.advance(session, *changed)
        aftermath.tell(self._wakeups)
        answers: dict[UUID, Reported | Exception] = {}
        for one, answer in zip(here, judged, strict=True):
            run_id = one.report.run_id
            if isinstance(answer, RemitError):
                count_refusal(answer, known[run_id].tenant_slug, self._action)
            answers[run_id] = answer or Reported(run_id, one.report.status, finalized_at[run_id])
        return [answers.get(one.report.run_id) for one in placed]

    async def _judge_each(
        self,
        session: WriteSession,
        locked: Mapping[TreeKey, LockedTree],
        known: Mapping[UUID, Run],
        outcomes: Mapping[TreeKey, Outcome],
        placed: Sequence[_Placed[R]],
    ) -> list[Reported | RemitError | None]:
        """The answer to each report that changes nothing more, or is refused; None where its run ends."""
        doubtful = [
            (run.tenant_id, run.root_run_id, run_id)
            for run_id, run in known.items()
            if run.active and locked[run.tenant_id, run.root_run_id].open_fences
        ]
        covered = await fences.covered(session, doubtful)
        answers: list[Reported | RemitError | None] = []
        for one in placed:
            run = known[one.report.run_id]
            key = (run.tenant_id, run.root_run_id)
            fence = covered.get((run.tenant_id, run.run_id))
            try:
                standing = LockedRun(session, locked[key], run, fence)
                answers.append(await self._judge(standing, one.report, outcomes[key]))
            except RemitError as error:
                answers.append(error)
        return answers


def _parts(placed: Sequence[_Placed[R]], numbers: Sequence[int]) -> list[list[int]]:
    """The numbers of some reports, in parts that are on few enough trees each; those on one tree stay together."""
    by_tree: dict[UUID, list[int]] = {}
    for number in numbers:
        by_tree.setdefault(placed[number].root_run_id, []).append(number)
    roots = list(by_tree.values())
    return [
        [number for one in roots[start : start + MAX_TREES] for number in one]
        for start in range(0, len(roots), MAX_TREES)
    ]
