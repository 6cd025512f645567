"""Compile a graph: everything that is wrong with it, and the form in which it would run."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from pydantic import JsonValue

from kernel.commands import asking
from kernel.commands.spawning.question import principal_facts
from kernel.commands.spawning.refusals import count_decisions
from kernel.domain.errors import NotFoundError
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.graph import policy_checks
from kernel.graph.compiler import Compiled, conclude, examine
from kernel.graph.spec import GraphSpec
from kernel.policy import records
from kernel.policy.contract import Action, DecisionInput, GraphFacts, RequestFacts
from kernel.policy.engine import PolicyEngine
from kernel.policy.records import DecisionRecord
from kernel.store import decisions, graph_facts
from kernel.store.engine import Database
from kernel.store.graph_facts import CompileFacts


@dataclass(frozen=True, slots=True)
class CompileGraph:
    """A graph as it is written, and the agent that would run it, whose policy and allowlist then hold.

    Without an agent what rests on these is deferred.
    """

    graph: JsonValue
    agent_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A compiled graph with the record of policy's decision, which is not stored yet.

    `revision` is that of the agent when policy was asked.
    """

    compiled: Compiled
    record: DecisionRecord
    revision: int | None


class CompileGraphCommand:
    """Examines the graph, and asks policy about what is static in it."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, request: CompileGraph) -> Judged:
        """Compile, and put policy's decision on record.

        Raises:
            NotFoundError: when the tenant has no such agent.
            PolicyUnavailableError: when policy does not answer.
        """
        judged = await self.judge(principal, request)
        async with self._database.write() as session:
            await decisions.append(session, judged.record)
        count_decisions([judged.record])
        return judged

    async def judge(self, principal: Principal, request: CompileGraph) -> Judged:
        """Compile, and leave it to the caller to store the record; raises like `execute`."""
        tenant_id = principal.tenant
        # In a thread: a large graph takes a second, and others are served meanwhile.
        examined = await asyncio.to_thread(examine, request.graph)
        async with self._database.read() as session:
            facts = await graph_facts.load(
                session, tenant_id, request.agent_id, *policy_checks.named_agents(examined.spec)
            )
        if facts is None:
            raise NotFoundError(f"X-Tenant-ID: there is no tenant {tenant_id}")
        if facts.runner is None and request.agent_id is not None:
            raise NotFoundError(f"agent_id: there is no agent {request.agent_id}")
        asked = _question(principal, examined.spec, facts)
        evaluated = await asking.ask(self._database, self._engine, asked)
        compiled = conclude(
            examined,
            [
                *policy_checks.missing_targets(examined.spec, facts.agents),
                *policy_checks.denials(evaluated.decision.reasons),
                *policy_checks.unexplained(evaluated.decision),
                *policy_checks.deferred(examined.spec, orchestrator=facts.runner is not None, tenant=True),
            ],
        )
        revision = facts.runner.revision if facts.runner is not None else None
        return Judged(compiled, records.record(asked, evaluated), revision)


def _question(principal: Principal, spec: GraphSpec, facts: CompileFacts) -> DecisionInput:
    # Whose spawns they would be is not known without an agent: then there is only the surface to ask about.
    spawns = policy_checks.spawns(spec, facts.agents) if facts.runner is not None else ()
    return DecisionInput(
        action=Action.COMPILE_GRAPH,
        surface=Surface.GRAPHSPEC_V2,
        now=datetime.now(UTC),
        tenant=facts.tenant,
        principal=principal_facts(principal),
        request=RequestFacts(),
        orchestrator_policy=facts.runner.policy if facts.runner is not None else None,
        allowlist=facts.runner.allowlist if facts.runner is not None else None,
        graph=GraphFacts(spawns=spawns),
    )
