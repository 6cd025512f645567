"""A batch of spawns: facts, one question to policy, one transaction under the locks of the trees.

Policy is asked without a lock. Whatever it saw then, the commit holds the answer against what is true under the lock:
the key, the caller, the fences, the revisions of the catalog and the counters. An order whose ground has shifted is
asked about again; its neighbours are not held up by it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID

import orjson
from asyncpg import exceptions as pg

from kernel import metrics
from kernel.commands.spawning import order as orders
from kernel.commands.spawning.order import Spawned, SpawnOrder
from kernel.commands.spawning.question import Prepared, check_active, prepare, set_of
from kernel.domain.errors import (
    FactsChangedError,
    PolicyDeniedError,
    PolicyUnavailableError,
    RemitError,
    RunCancelledError,
    SpawnKeyConflictError,
)
from kernel.domain.events import EventType
from kernel.domain.fences import Fence
from kernel.identifiers import new_id
from kernel.policy import records
from kernel.policy.contract import DecisionInput, Limits
from kernel.policy.engine import Evaluated, PolicyEngine
from kernel.policy.records import DecisionRecord
from kernel.store import decisions, fences, spawn_facts, spawn_writes, trees
from kernel.store.engine import Database
from kernel.store.events import Event
from kernel.store.spawn_facts import Caller, SpawnFacts, Wanted
from kernel.store.spawn_writes import SpawnWrites
from kernel.store.trees import LockedTree

# How often the catalog may change under an order before it is told so.
MAX_ATTEMPTS = 3
# An overshoot found under the lock is asked about once more with the counters of that moment, and counters only grow:
# the second answer is a denial unless policy itself was changed in between. This bounds the pathological rest.
MAX_ROUNDS = 8

Outcome = Spawned | RemitError


@dataclass(slots=True)
class _Batch:
    """Where each order of a batch stands."""

    orders: Sequence[SpawnOrder]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)

    def pending(self) -> list[int]:
        return [number for number in range(len(self.orders)) if number not in self.outcomes]


@dataclass(slots=True)
class _Counters:
    """A caller's lifetime children as this transaction sees them grow."""

    children_count: int


class SpawnPipeline:
    """Executes orders. It holds no state between batches."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, batch: Sequence[SpawnOrder]) -> list[Outcome]:
        """Execute orders of any tenants and trees, each on its own merits.

        Args:
            batch: at most 64 orders.

        Returns:
            For each order, in order, what was spawned or why not. A database that does not answer raises.
        """
        work = _Batch(batch)
        for _ in range(MAX_ROUNDS):
            pending = work.pending()
            if not pending:
                break
            async with self._database.read() as session:
                facts = await spawn_facts.load(session, _wanted(batch[number] for number in pending))
            questions = _prepare(work, pending, facts)
            answers = await self._ask(work, questions)
            if answers:
                await self._settle(work, questions, answers)
        for number in work.pending():
            work.outcomes[number] = facts_changed()
        return [work.outcomes[number] for number in range(len(batch))]

    async def preview(self, order: SpawnOrder) -> Spawned | Evaluated:
        """What would be decided, with the headroom left; nothing is written.

        Returns:
            The first result where the order is a repeat, else the decision.

        Raises:
            RemitError: as the order itself would be refused, but for policy's denial, which is the answer.
        """
        async with self._database.read() as session:
            facts = await spawn_facts.load(session, _wanted([order]))
            earlier = orders.repeat(order, facts)
            if earlier is not None:
                return earlier
            prepared = prepare(order, facts)
            caller = (order.tenant_id, prepared.caller.tree.root_run_id, order.caller_run_id)
            fence = (await fences.covered(session, [caller])).get((order.tenant_id, order.caller_run_id))
        if fence is not None:
            raise under_fence(order.caller_run_id, fence)
        return await self._engine.decide(prepared.question)

    async def _ask(self, work: _Batch, questions: dict[int, Prepared]) -> dict[int, Evaluated]:
        if not questions:
            return {}
        asked = [prepared.question for prepared in questions.values()]
        for question in asked:
            _count_surface(question)
        try:
            if len(asked) == 1:
                answers = [await self._engine.decide(asked[0])]
            else:
                answers = await self._engine.decide_all(asked)
        except PolicyUnavailableError as error:
            refusals = [records.record_failure(question, error.detail, 0.0) for question in asked]
            for number in questions:
                work.outcomes[number] = error
            async with self._database.write() as session:
                await decisions.append(session, *refusals)
            count_decisions(refusals)
            return {}
        return dict(zip(questions, answers, strict=True))

    async def _settle(self, work: _Batch, questions: dict[int, Prepared], answers: dict[int, Evaluated]) -> None:
        try:
            await self._commit(work, questions, answers)
        except pg.IntegrityConstraintViolationError as error:
            if len(questions) > 1:
                # One order's collision must not fail its neighbours: nothing was committed, so each goes alone.
                for number, prepared in questions.items():
                    await self._settle(work, {number: prepared}, {number: answers[number]})
                return
            (number, prepared), *_ = questions.items()
            work.outcomes[number] = _conflict(prepared.order, error)

    async def _commit(self, work: _Batch, questions: dict[int, Prepared], answers: dict[int, Evaluated]) -> None:
        """Hold the answers against the truth under the locks, and write what follows from it."""
        settled: dict[int, Outcome] = {}
        writes = SpawnWrites()
        async with self._database.write() as session:
            locked = await trees.lock(session, {_tree_key(prepared.caller) for prepared in questions.values()})
            # A statement of its own, after the lock: its snapshot is newer than the wait.
            facts = await spawn_facts.load(session, _wanted(prepared.order for prepared in questions.values()))
            covered = await fences.covered(
                session,
                [
                    (prepared.order.tenant_id, prepared.caller.tree.root_run_id, prepared.order.caller_run_id)
                    for prepared in questions.values()
                    if locked[_tree_key(prepared.caller)].open_fences
                ],
            )
            verdicts = _Verdicts(facts, covered, locked, writes)
            for number, prepared in questions.items():
                outcome = verdicts.reach(prepared, answers[number])
                if outcome is Shifted.CATALOG:
                    work.attempts[number] = work.attempts.get(number, 0) + 1
                    if work.attempts[number] >= MAX_ATTEMPTS:
                        settled[number] = facts_changed()
                elif not isinstance(outcome, Shifted):
                    settled[number] = outcome
            if writes.trees:
                await spawn_writes.write(session, writes)
        # Only what has committed is told.
        work.outcomes.update(settled)
        count_decisions(writes.decisions)
        for number, outcome in settled.items():
            if isinstance(outcome, Spawned) and not outcome.idempotent:
                prepared = questions[number]
                label = metrics.tenant_label(prepared.caller.tenant.slug)
                metrics.SPAWNED_RUNS.labels(label, prepared.order.surface.value).inc(len(outcome.run_ids))


class Shifted(Enum):
    """Why an order is asked about again: the catalog changed, or the counters (or an equal key) got there first."""

    CATALOG = auto()
    COUNTERS = auto()


class _Verdicts:
    """What becomes of each order of a batch, one after the other, under the locks."""

    def __init__(
        self,
        facts: SpawnFacts,
        covered: dict[tuple[UUID, UUID], Fence],
        locked: dict[tuple[UUID, UUID], LockedTree],
        writes: SpawnWrites,
    ) -> None:
        self._facts = facts
        self._covered = covered
        self._locked = locked
        self._writes = writes
        self._used: set[tuple[UUID, UUID, str]] = set()
        self._counters: dict[tuple[UUID, UUID], _Counters] = {}

    def reach(self, prepared: Prepared, evaluated: Evaluated) -> Outcome | Shifted:  # noqa: PLR0911 - a ladder, in order
        """The outcome of one order, with its rows gathered for the write; or why it must be asked about again."""
        order = prepared.order
        try:
            earlier = orders.repeat(order, self._facts)
            if earlier is not None:
                return earlier
            if order.spawn_key in self._used:
                return Shifted.COUNTERS
            caller = self._facts.callers[order.tenant_id, order.caller_run_id]
            check_active(caller.facts)
        except RemitError as error:
            return error
        fence = self._covered.get((order.tenant_id, order.caller_run_id))
        if fence is not None:
            return under_fence(order.caller_run_id, fence)
        if not prepared.rests_on(self._facts):
            return Shifted.CATALOG
        tree = self._locked[_tree_key(caller)]
        if not evaluated.decision.allow:
            return self._deny(prepared, evaluated, tree)
        counters = self._counters.setdefault(
            (order.tenant_id, order.caller_run_id), _Counters(caller.facts.children_count)
        )
        limits = evaluated.decision.limits
        if limits is None or _exceeds(limits, caller, counters, tree, len(order.children)):
            return Shifted.COUNTERS
        self._used.add(order.spawn_key)
        counters.children_count += len(order.children)
        return self._grant(prepared, evaluated, tree)

    def _deny(self, prepared: Prepared, evaluated: Evaluated, tree: LockedTree) -> PolicyDeniedError:
        order = prepared.order
        record = records.record(prepared.question, evaluated)
        self._writes.decisions.append(record)
        self._writes.trees[tree.tenant_id, tree.root_run_id] = tree
        self._writes.events.append(
            Event(
                tenant_id=order.tenant_id,
                root_run_id=tree.root_run_id,
                seq=tree.next_seq(),
                type=EventType.POLICY_DENY,
                surface=order.surface,
                run_id=order.caller_run_id,
                subjects=[order.caller_run_id],
                data=denial_data(record),
            )
        )
        return denied(record)

    def _grant(self, prepared: Prepared, evaluated: Evaluated, tree: LockedTree) -> Spawned:
        order, caller, decision = prepared.order, prepared.caller, evaluated.decision
        record = records.record(prepared.question, evaluated)
        policy = decision.policy
        snapshot: dict[str, object] = policy.model_dump() if policy is not None else {}
        failure_policy = str(order.failure_policy or snapshot["default_failure_policy"])
        timeout_s = order.timeout_s
        if order.join is not None and timeout_s is None and policy is not None:
            timeout_s = policy.join_timeout_s
        seq = tree.next_seq()
        size = len(order.children)
        group_id = new_id() if order.join is not None else None
        scopes = " ".join(decision.effective_scopes)
        digests = orjson.dumps(orders.digests(order, list(prepared.agents))).decode()
        snapshot_json = orjson.dumps(snapshot).decode()
        run_ids = tuple(new_id() for _ in range(size))
        if group_id is not None and order.join is not None:
            self._writes.groups.append(
                (
                    order.tenant_id,
                    group_id,
                    tree.root_run_id,
                    order.caller_run_id,
                    order.parent_node_id,
                    order.key,
                    order.surface.value,
                    order.join.mode.value,
                    failure_policy,
                    order.join.quorum_threshold,
                    timeout_s,
                    size,
                    seq,
                    record.decision_id,
                    digests,
                    snapshot_json,
                    scopes,
                )
            )
        single = group_id is None
        self._writes.runs.extend(
            (
                order.tenant_id,
                run_ids[ordinal],
                tree.root_run_id,
                order.caller_run_id,
                order.parent_node_id,
                caller.facts.depth + 1,
                order.key if single else f"{order.key}:{ordinal}",
                group_id,
                ordinal,
                agent.facts.agent_id,
                order.surface.value,
                order.background,
                scopes,
                failure_policy,
                timeout_s if single else None,
                seq,
                orjson.dumps(child.mapped_input).decode(),
                digests if single else None,
                snapshot_json if single else None,
                record.decision_id if single else None,
                order.trace_parent,
            )
            for ordinal, (child, agent) in enumerate(zip(order.children, prepared.agents, strict=True))
        )
        tree.children_total += size
        tree.added_children += size
        tree.moved(None, "queued" if order.background else "running", size)
        targets = set_of(prepared.agents)
        self._writes.events.append(
            Event(
                tenant_id=order.tenant_id,
                root_run_id=tree.root_run_id,
                seq=seq,
                type=EventType.SPAWN_DECISION,
                surface=order.surface,
                run_id=order.caller_run_id,
                subjects=[order.caller_run_id, *run_ids],
                data={
                    "node_id": order.parent_node_id,
                    "target_agent_id": str(targets[0].facts.agent_id) if len(targets) == 1 else None,
                    "target_agent_slug": targets[0].facts.slug if len(targets) == 1 else None,
                    "spawned_run_ids": [str(run_id) for run_id in run_ids],
                    "idempotent": False,
                    "decision_id": str(record.decision_id),
                    "orchestration_group_id": str(group_id) if group_id is not None else None,
                },
            )
        )
        self._writes.decisions.append(record)
        self._writes.trees[tree.tenant_id, tree.root_run_id] = tree
        return Spawned(
            run_ids=run_ids,
            group_id=group_id,
            root_run_id=tree.root_run_id,
            parent_run_id=order.caller_run_id,
            parent_node_id=order.parent_node_id,
            depth=caller.facts.depth + 1,
            key=order.key,
            agent_ids=tuple(agent.facts.agent_id for agent in prepared.agents),
            snapshot=snapshot,
            effective_scopes=tuple(decision.effective_scopes),
            failure_policy=failure_policy,
            timeout_s=timeout_s,
            decision_id=record.decision_id,
            join_mode=order.join.mode.value if order.join is not None else None,
            quorum_threshold=order.join.quorum_threshold if order.join is not None else None,
        )


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
    return questions


def _exceeds(limits: Limits, caller: Caller, counters: _Counters, tree: LockedTree, count: int) -> bool:
    return (
        caller.facts.depth + 1 > limits.max_depth
        or counters.children_count + count > limits.max_fanout
        or tree.children_total + count > limits.max_children_total
    )


def _tree_key(caller: Caller) -> tuple[UUID, UUID]:
    return caller.tenant.tenant_id, caller.tree.root_run_id


def facts_changed() -> FactsChangedError:
    """The refusal of an order under which the catalog would not hold still."""
    return FactsChangedError(
        f"the policy, the allowlist or a target changed {MAX_ATTEMPTS} times while this spawn was decided; try again"
    )


def _conflict(order: SpawnOrder, error: pg.IntegrityConstraintViolationError) -> RemitError:
    """What a violated constraint means; one that means nothing to a caller is raised."""
    if getattr(error, "constraint_name", None) in {"agent_runs_spawn_key", "orchestration_groups_spawn_key"}:
        return SpawnKeyConflictError(
            f"{order.key_field}: {order.key!r} makes a key that another run of this caller has",
            fields=[order.key_field],
        )
    raise error


def under_fence(run_id: UUID, fence: Fence) -> RunCancelledError:
    """The refusal of a call on behalf of a run that a fence covers."""
    return RunCancelledError(
        f"run {run_id} was cancelled: {fence.reason}",
        run_id=str(run_id),
        cancellation_id=str(fence.cancellation_id),
        reason=fence.reason,
    )


def denied(record: DecisionRecord) -> PolicyDeniedError:
    """The refusal that a record of a denial stands for."""
    said = "; ".join(str(reason["message"]) for reason in record.reasons) or "policy gives no reason"
    return PolicyDeniedError(f"{record.action} refused: {said}", decision_id=record.decision_id, reasons=record.reasons)


def denial_data(record: DecisionRecord) -> dict[str, object]:
    """The data of a `policy_deny` event."""
    return {
        "action": record.action,
        "reason": record.reasons[0]["code"] if record.reasons else None,
        "reasons": record.reasons,
        "decision_id": str(record.decision_id),
    }


def count_decisions(decided: Sequence[DecisionRecord]) -> None:
    """Count decisions that are on record."""
    for record in decided:
        label = metrics.tenant_label(record.tenant_slug)
        metrics.DECISIONS.labels(label, record.action, record.surface, record.outcome).inc()
        if record.outcome != "allow":
            for reason in record.reasons:
                metrics.DENIALS.labels(label, record.action, record.surface, str(reason["code"])).inc()


def _count_surface(question: DecisionInput) -> None:
    enabled = getattr(question.tenant.flags, question.surface.value)
    metrics.SURFACE_REQUESTS.labels(
        metrics.tenant_label(question.tenant.slug), question.surface.value, str(enabled).lower()
    ).inc()
