"""Start a root run: the beginning of a tree."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import orjson

from kernel import metrics
from kernel.commands import asking
from kernel.commands.spawning.order import digest
from kernel.commands.spawning.question import principal_facts
from kernel.commands.spawning.refusals import MAX_ATTEMPTS, count_decisions, denied, facts_changed
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.domain.errors import NotFoundError, SpawnKeyConflictError
from kernel.domain.events import EventType, Surface
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.identifiers import new_id
from kernel.policy import records
from kernel.policy.contract import Action, DecisionInput, RequestFacts, TargetFacts
from kernel.policy.engine import Evaluated, PolicyEngine
from kernel.store import decisions, events, roots
from kernel.store.engine import Database, WriteSession
from kernel.store.events import Event
from kernel.store.roots import Row
from kernel.store.spawn_facts import tenant_facts

# What the answer of policy rests on; the tenant's flags have no revision.
GROUND = ("revision", "option_a", "option_b")


@dataclass(frozen=True, slots=True)
class StartRun:
    """What is asked for. `scopes` are sorted, each once."""

    agent_id: UUID
    scopes: tuple[str, ...]
    run_input: dict[str, object]
    timeout_s: int | None = None
    idempotency_key: str | None = None
    trace_parent: str | None = None

    def digests(self) -> dict[str, str]:
        """A digest for each field, by its name on the wire."""
        return {
            "requested_scopes": digest(self.scopes),
            "input": digest(self.run_input),
            "timeout_s": digest(self.timeout_s),
        }


@dataclass(frozen=True, slots=True)
class Started:
    """A root run, new or from an earlier call."""

    run_id: UUID
    agent_id: UUID
    status: RunStatus
    effective_scopes: tuple[str, ...]
    decision_id: UUID | None
    idempotent: bool


class StartRunCommand:
    """Asks policy, then plants the tree in one transaction.

    Args:
        active_runs: the soft bound on what a tenant has active; without it there is none. What was started before is
            answered beyond it, too.
    """

    def __init__(self, database: Database, engine: PolicyEngine, active_runs: ActiveRuns | None = None) -> None:
        self._database = database
        self._engine = engine
        self._active_runs = active_runs

    async def execute(self, principal: Principal, request: StartRun) -> Started:
        """Start a root run, or find the one that was started with the same key.

        Raises:
            NotFoundError: when the tenant has no such agent.
            PolicyDeniedError: with every reason.
            SpawnKeyConflictError: when the key was used with another payload.
            TenantSaturatedError: when the tenant has as much active as it may.
            FactsChangedError: when the agent changed three times in between.
        """
        tenant_id = principal.tenant
        for attempt in range(MAX_ATTEMPTS):
            async with self._database.read() as session:
                if request.idempotency_key is not None:
                    earlier = await roots.earlier(session, tenant_id, request.agent_id, request.idempotency_key)
                    if earlier is not None:
                        return _repeat(request, earlier)
                if self._active_runs is not None:
                    self._active_runs.check(tenant_id)
                facts = await roots.load(session, tenant_id, request.agent_id)
            if facts is None:
                raise NotFoundError(f"agent_id: there is no agent {request.agent_id}")
            question = _question(principal, request, facts)
            put = asking.ask if attempt == 0 else asking.answer
            started = await self._commit(request, question, await put(self._database, self._engine, question), facts)
            if started is not None:
                return started
        raise facts_changed()

    async def _commit(
        self, request: StartRun, question: DecisionInput, evaluated: Evaluated, facts: Row
    ) -> Started | None:
        """Write the outcome; None when the agent has changed, or the key was taken, since policy was asked."""
        tenant_id, allow = question.tenant.tenant_id, evaluated.decision.allow
        record = records.record(question, evaluated)
        started = Started(
            run_id=new_id(),
            agent_id=request.agent_id,
            status=RunStatus.QUEUED if facts["kind"] == "graph" else RunStatus.RUNNING,
            effective_scopes=tuple(evaluated.decision.effective_scopes),
            decision_id=record.decision_id,
            idempotent=False,
        )
        async with self._database.write() as session:
            fresh = await roots.load(session, tenant_id, request.agent_id)
            if fresh is None or any(fresh[name] != facts[name] for name in GROUND):
                return None
            if allow:
                if not await _take_key(session, tenant_id, request, started.run_id):
                    return None
                await _plant(session, request, question, started)
            await decisions.append(session, record)
        count_decisions([record])
        if not allow:
            raise denied(record)
        label = metrics.tenant_label(question.tenant.slug)
        metrics.SPAWNED_RUNS.labels(label, question.surface.value).inc()
        metrics.RUN_TRANSITIONS.labels(label, started.status.value).inc()
        return started


async def _take_key(session: WriteSession, tenant_id: UUID, request: StartRun, run_id: UUID) -> bool:
    if request.idempotency_key is None:
        return True
    digests = orjson.dumps(request.digests()).decode()
    return await roots.take_key(session, tenant_id, request.agent_id, request.idempotency_key, run_id, digests)


async def _plant(session: WriteSession, request: StartRun, question: DecisionInput, started: Started) -> None:
    tenant_id = question.tenant.tenant_id
    await roots.plant(
        session,
        tenant_id,
        started.run_id,
        request.agent_id,
        question.surface.value,
        started.status is RunStatus.QUEUED,
        list(started.effective_scopes),
        request.timeout_s,
        orjson.dumps(request.run_input).decode(),
        started.decision_id,
        request.trace_parent,
    )
    await events.append(
        session,
        Event(
            tenant_id=tenant_id,
            root_run_id=started.run_id,
            seq=1,
            type=EventType.CHILD_LIFECYCLE,
            surface=question.surface,
            run_id=started.run_id,
            subjects=[started.run_id],
            data={"child_run_id": str(started.run_id), "status": started.status, "orchestration_group_id": None},
        ),
    )


def _question(principal: Principal, request: StartRun, facts: Row) -> DecisionInput:
    surface = Surface.GRAPHSPEC_V2 if facts["kind"] == "graph" else Surface.RUNTIME_PRIMITIVES
    target = TargetFacts(
        agent_id=facts["agent_id"],
        slug=facts["slug"],
        kind=facts["kind"],
        status=facts["status"],
        capability_tags=tuple(facts["capability_tags"]),
    )
    return DecisionInput(
        action=Action.START_RUN,
        surface=surface,
        now=datetime.now(UTC),
        tenant=tenant_facts(facts, principal.tenant),
        principal=principal_facts(principal),
        request=RequestFacts(scopes=request.scopes, count=1, timeout_s=request.timeout_s),
        targets=(target,),
    )


def _repeat(request: StartRun, earlier: Row) -> Started:
    stored = earlier["request_digests"]
    differing = sorted(name for name, value in request.digests().items() if stored.get(name) != value)
    if differing:
        raise SpawnKeyConflictError(
            f"idempotency_key: {request.idempotency_key!r} was used before with another {', '.join(differing)}",
            fields=differing,
        )
    return Started(
        run_id=earlier["run_id"],
        agent_id=earlier["agent_id"],
        status=RunStatus(earlier["status"]),
        effective_scopes=tuple(earlier["effective_scopes"]),
        decision_id=earlier["decision_id"],
        idempotent=True,
    )
