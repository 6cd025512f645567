"""A batch of spawns: facts, one question to policy, one transaction under the locks of the trees.

Policy is asked without a lock. Whatever it saw then, the commit holds the answer against what is true under the lock:
the key, the caller, the fences, the revisions of the catalog and the counters. An order whose ground has shifted is
asked about again; its neighbours are not held up by it.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import chain
from time import monotonic
from uuid import UUID

from asyncpg import exceptions as pg

from kernel import metrics
from kernel.commands.spawning import order as orders
from kernel.commands.spawning.order import Spawned, SpawnOrder
from kernel.commands.spawning.question import Prepared, prepare
from kernel.commands.spawning.refusals import (
    MAX_ATTEMPTS,
    cancelled_callers,
    count_decisions,
    count_refusal,
    count_surface,
    facts_changed,
    under_fence,
)
from kernel.commands.spawning.verdicts import Outcome, Shifted, Verdicts
from kernel.domain.errors import PolicyUnavailableError, RemitError, RunCancelledError, SpawnKeyConflictError
from kernel.domain.run import RunStatus
from kernel.policy import records
from kernel.policy.contract import DecisionInput
from kernel.policy.engine import Evaluated, PolicyEngine
from kernel.store import decisions, fences, spawn_facts, spawn_writes, trees
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.spawn_facts import SpawnFacts, Wanted
from kernel.store.spawn_writes import SpawnWrites
from kernel.store.trees import LockedTree, TreeHeldError, TreeKey

# An overshoot found under the lock is asked about once more with the counters of that moment, and counters only grow:
# the second answer is a denial unless policy itself was changed in between. This bounds the pathological rest.
MAX_ROUNDS = 8

Preview = Spawned | RemitError | Evaluated
Lock = Callable[[WriteSession, set[TreeKey]], Awaitable[dict[TreeKey, LockedTree]]]


class Postponed(Enum):
    """What has become of an order that nothing was done about."""

    TREE_HELD = auto()


@dataclass(slots=True)
class _Batch:
    """Where each order of a batch stands."""

    orders: Sequence[SpawnOrder]
    waits: bool
    outcomes: dict[int, Outcome | Postponed] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)

    def pending(self) -> list[int]:
        return [number for number in range(len(self.orders)) if number not in self.outcomes]


class SpawnPipeline:
    """Executes orders. It holds no state between batches."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, batch: Sequence[SpawnOrder], *, again: bool = False) -> list[Outcome | Postponed]:
        """Execute orders of any tenants and trees, each on its own merits.

        Args:
            batch: at most 64 orders.
            again: these were postponed. Their trees are waited for as long as for any lock, and that they came is
                counted; else what is in trees that somebody holds for more than a moment is postponed.

        Returns:
            For each order, in order, what was spawned or why not. A database that does not answer raises.
        """
        work = _Batch(batch, waits=again, counted=set(range(len(batch)) if again else ()))
        for _ in range(MAX_ROUNDS):
            pending = work.pending()
            if not pending:
                break
            async with self._database.read() as session:
                facts = await spawn_facts.load(session, _wanted(batch[number] for number in pending))
                questions = _prepare(work, pending, facts)
                work.outcomes.update(await _reasons(session, batch, work.outcomes))
            answers = await self._ask(work, questions)
            if answers:
                await self._settle(work, questions, answers)
        for number in work.pending():
            work.outcomes[number] = facts_changed()
        return [work.outcomes[number] for number in range(len(batch))]

    async def preview(self, batch: Sequence[SpawnOrder]) -> list[Preview]:
        """What would be decided about each order, with the headroom left; nothing is written.

        Args:
            batch: at most 64 orders.

        Returns:
            For each order, in order: the first result where it is a repeat; why it would be refused without policy
            being asked; else the decision.

        Raises:
            PolicyUnavailableError: when policy gives no answer.
        """
        previews: dict[int, Preview] = {}
        questions: dict[int, Prepared] = {}
        async with self._database.read() as session:
            facts = await spawn_facts.load(session, _wanted(batch))
            for number, order in enumerate(batch):
                try:
                    earlier = orders.repeat(order, facts)
                    if earlier is not None:
                        previews[number] = earlier
                    else:
                        questions[number] = prepare(order, facts)
                except RemitError as error:
                    previews[number] = error
            previews.update(await _reasons(session, batch, previews))
            covered = await fences.covered(
                session, (_place(prepared) for prepared in questions.values() if prepared.caller.open_fences)
            )
            groups = [prepared.order for prepared in questions.values() if prepared.order.join is not None]
            taken = await spawn_facts.members_taken(session, {order.spawn_key: len(order.children) for order in groups})
        for number, prepared in list(questions.items()):
            order = prepared.order
            fence = covered.get((order.tenant_id, order.caller_run_id))
            if fence is not None:
                previews[number] = under_fence(order.caller_run_id, fence)
                del questions[number]
        if questions:
            asked = [prepared.question for prepared in questions.values()]
            answers = await self._put(asked)
            for (number, prepared), evaluated in zip(questions.items(), answers, strict=True):
                # As in the commit, a key that is taken comes up only where policy allows.
                is_taken = evaluated.decision.allow and prepared.order.spawn_key in taken
                previews[number] = _key_taken(prepared.order) if is_taken else evaluated
        return [previews[number] for number in range(len(batch))]

    async def find(self, batch: Sequence[SpawnOrder]) -> list[Spawned | RemitError | None]:
        """What came of orders before, if they are repeats.

        Args:
            batch: at most 64 orders.

        Returns:
            For each order, in order: the first result, None where there is none, or the conflict.
        """
        async with self._database.read() as session:
            facts = await spawn_facts.load(session, _wanted(batch))
        return [_repeat(order, facts) for order in batch]

    async def _ask(self, work: _Batch, questions: dict[int, Prepared]) -> dict[int, Evaluated]:
        if not questions:
            return {}
        asked = [prepared.question for prepared in questions.values()]
        uncounted = questions.keys() - work.counted
        work.counted |= uncounted
        try:
            answers = await self._put(asked)
        except PolicyUnavailableError as error:
            refusals = [records.record_failure(question, error.detail, 0.0) for question in asked]
            for number in uncounted:
                count_surface(questions[number].question, None)
            for number in questions:
                work.outcomes[number] = error
            async with self._database.write() as session:
                await decisions.append(session, *refusals)
            count_decisions(refusals)
            return {}
        answered = dict(zip(questions, answers, strict=True))
        for number in uncounted:
            count_surface(questions[number].question, answered[number].decision)
        return answered

    async def _put(self, questions: Sequence[DecisionInput]) -> list[Evaluated]:
        if len(questions) == 1:
            return [await self._engine.decide(questions[0])]
        return await self._engine.decide_all(questions)

    async def _settle(self, work: _Batch, questions: dict[int, Prepared], answers: dict[int, Evaluated]) -> None:
        """Commit what is free first; a tree that others hold is waited for while no other is kept locked."""
        if work.waits:
            await self._commit(work, questions, answers, trees.lock)
            return
        held = await self._commit(work, questions, answers, _available)
        # Others hold trees for some milliseconds all the time. Of all that are held, the batch waits once so long.
        until = monotonic() + trees.PATIENCE_MS / 1000
        for theirs in held.values():
            briefly = partial(_briefly, patience_ms=trees.patience_until(until))
            try:
                await self._commit(work, theirs, answers, briefly)
            except TreeHeldError:
                for number in theirs:
                    work.outcomes.setdefault(number, Postponed.TREE_HELD)

    async def _commit(
        self, work: _Batch, questions: dict[int, Prepared], answers: dict[int, Evaluated], lock: Lock
    ) -> dict[TreeKey, dict[int, Prepared]]:
        """Commit what the locks are had for; hands back the questions in the trees for which they are not."""
        try:
            return await self._commit_together(work, questions, answers, lock)
        except pg.IntegrityConstraintViolationError as error:
            held: dict[TreeKey, dict[int, Prepared]] = defaultdict(dict)
            if len(questions) > 1:
                # One order's collision must not fail its neighbours: nothing was committed, so each goes alone.
                for number, prepared in questions.items():
                    for key, theirs in (await self._commit(work, {number: prepared}, answers, lock)).items():
                        held[key].update(theirs)
            else:
                (number, prepared), *_ = questions.items()
                work.outcomes[number] = _conflict(prepared.order, error)
            return held

    async def _commit_together(
        self, work: _Batch, asked: dict[int, Prepared], answers: dict[int, Evaluated], lock: Lock
    ) -> dict[TreeKey, dict[int, Prepared]]:
        """Hold the answers against the truth under the locks, and write what follows from it."""
        settled: dict[int, Outcome] = {}
        writes = SpawnWrites()
        held: dict[TreeKey, dict[int, Prepared]] = defaultdict(dict)
        questions: dict[int, Prepared] = {}
        async with self._database.write() as session:
            locked = await lock(session, {prepared.caller.tree_key for prepared in asked.values()})
            for number, prepared in asked.items():
                here = questions if prepared.caller.tree_key in locked else held[prepared.caller.tree_key]
                here[number] = prepared
            if not questions:
                return held
            # Statements of their own, after the lock: their snapshots are newer than the wait.
            moved = _wanted(
                prepared.order
                for prepared in questions.values()
                if locked[prepared.caller.tree_key].seq != prepared.caller.tree_seq
            )
            facts = await spawn_facts.load(session, moved) if moved.callers else SpawnFacts()
            catalog = await spawn_facts.versions(
                session, chain.from_iterable(prepared.basis() for prepared in questions.values())
            )
            covered = await fences.covered(
                session,
                (_place(prepared) for prepared in questions.values() if locked[prepared.caller.tree_key].open_fences),
            )
            verdicts = Verdicts(facts, catalog, covered, locked, writes)
            for number, prepared in questions.items():
                outcome = verdicts.reach(prepared, answers[number])
                if outcome is Shifted.CATALOG:
                    work.attempts[number] = work.attempts.get(number, 0) + 1
                    if work.attempts[number] >= MAX_ATTEMPTS:
                        settled[number] = facts_changed()
                elif not isinstance(outcome, Shifted):
                    settled[number] = outcome
            settled.update(await _reasons(session, work.orders, settled))
            if writes.trees:
                await spawn_writes.write(session, writes)
        # Only what has committed is told.
        work.outcomes.update(settled)
        count_decisions(writes.decisions)
        for number, outcome in settled.items():
            _count(questions[number], outcome)
        return held


async def _available(session: WriteSession, keys: set[TreeKey]) -> dict[TreeKey, LockedTree]:
    return await trees.lock_available(session, keys, len(keys))


async def _briefly(session: WriteSession, keys: set[TreeKey], *, patience_ms: int) -> dict[TreeKey, LockedTree]:
    (key,) = keys
    return await trees.lock_briefly(session, key, patience_ms)


def _repeat(order: SpawnOrder, facts: SpawnFacts) -> Spawned | RemitError | None:
    try:
        return orders.repeat(order, facts)
    except RemitError as error:
        return error


def _wanted(batch: Iterable[SpawnOrder]) -> Wanted:
    wanted = Wanted()
    for order in batch:
        wanted.callers.add((order.tenant_id, order.caller_run_id))
        (wanted.keys if order.join is None else wanted.prefixes).add(order.spawn_key)
        for child in order.children:
            if child.target.agent_id is not None:
                wanted.agents.add((order.tenant_id, child.target.agent_id))
            elif child.target.slug is not None:
                wanted.slugs.add((order.tenant_id, child.target.slug))
    return wanted


def _place(prepared: Prepared) -> tuple[UUID, UUID, UUID]:
    """Where a caller stands, as `fences.covered` takes it."""
    return prepared.order.tenant_id, prepared.caller.root_run_id, prepared.order.caller_run_id


def _prepare(work: _Batch, pending: list[int], facts: SpawnFacts) -> dict[int, Prepared]:
    """The questions of the orders that need one; a repeat, or an order that cannot be, is settled at once."""
    questions: dict[int, Prepared] = {}
    for number in pending:
        order = work.orders[number]
        try:
            earlier = orders.repeat(order, facts)
            if earlier is not None:
                work.outcomes[number] = earlier
            else:
                questions[number] = prepare(order, facts)
        except RemitError as error:
            work.outcomes[number] = error
            caller = facts.callers.get((order.tenant_id, order.caller_run_id))
            if caller is not None:
                count_refusal(error, caller.tenant.slug, order.action.value)
    return questions


async def _reasons(
    session: ReadSession, batch: Sequence[SpawnOrder], outcomes: Mapping[int, Preview | Postponed]
) -> dict[int, RunCancelledError]:
    """With the reason, the refusals of orders whose caller has ended as cancelled: the facts have none."""
    untold = {
        number: (batch[number].tenant_id, batch[number].caller_run_id)
        for number, outcome in outcomes.items()
        if isinstance(outcome, RunCancelledError) and "reason" not in outcome.members
    }
    refusals = await cancelled_callers(session, untold.values())
    return {number: refusals[caller] for number, caller in untold.items()}


def _conflict(order: SpawnOrder, error: pg.IntegrityConstraintViolationError) -> RemitError:
    """What a violated constraint means; one that means nothing to a caller is raised."""
    if getattr(error, "constraint_name", None) in {"agent_runs_spawn_key", "orchestration_groups_spawn_key"}:
        return _key_taken(order)
    raise error


def _key_taken(order: SpawnOrder) -> SpawnKeyConflictError:
    return SpawnKeyConflictError(
        f"{order.key_field}: {order.key!r} makes a key that another run of this caller has", fields=[order.key_field]
    )


def _count(prepared: Prepared, outcome: Outcome) -> None:
    """Count what has become of an order, and cannot change any more."""
    order, slug = prepared.order, prepared.caller.tenant.slug
    if isinstance(outcome, RemitError):
        count_refusal(outcome, slug, order.action.value)
    elif not outcome.idempotent:
        label, count = metrics.tenant_label(slug), len(outcome.run_ids)
        metrics.SPAWNED_RUNS.labels(label, order.surface.value).inc(count)
        begun = RunStatus.QUEUED if order.background else RunStatus.RUNNING
        metrics.RUN_TRANSITIONS.labels(label, begun.value).inc(count)
