"""What policy is asked about a spawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from kernel.commands.spawning.order import SpawnOrder, resolve
from kernel.domain.errors import CallerNotActiveError, NotFoundError, RunCancelledError
from kernel.domain.principal import Principal
from kernel.domain.run import ACTIVE, RunStatus
from kernel.policy.contract import DecisionInput, PrincipalFacts, RequestFacts, TargetFacts
from kernel.store.spawn_facts import Agent, Caller, Key, SpawnFacts, Version


@dataclass(frozen=True, slots=True)
class Prepared:
    """An order with the facts it was asked about on, whose revisions the commit holds against the database.

    `agents` has the agent of each child, in order; `targets` each agent once, in the order of its first appearance.
    """

    order: SpawnOrder
    caller: Caller
    agents: Sequence[Agent]
    targets: Sequence[Agent]
    question: DecisionInput

    def basis(self) -> set[Key]:
        """The agents whose version the answer rests on."""
        tenant_id = self.order.tenant_id
        return {
            (tenant_id, self.caller.orchestrator.agent_id),
            *((tenant_id, agent.facts.agent_id) for agent in self.targets),
        }

    def rests_on(self, catalog: Mapping[Key, Version]) -> bool:
        """Whether the catalog is still what policy was told."""
        tenant_id, orchestrator = self.order.tenant_id, self.caller.orchestrator
        if catalog.get((tenant_id, orchestrator.agent_id)) != orchestrator.version:
            return False
        return all(
            (fresh := catalog.get((tenant_id, agent.facts.agent_id))) is not None and fresh.revision == agent.revision
            for agent in self.targets
        )


def prepare(order: SpawnOrder, facts: SpawnFacts) -> Prepared:
    """Put an order into a question.

    Raises:
        NotFoundError: when the tenant has no such caller, or no such target.
        CallerNotActiveError, RunCancelledError: when the caller has ended.
    """
    caller = facts.callers.get((order.tenant_id, order.caller_run_id))
    if caller is None:
        raise NotFoundError(f"caller_run_id: there is no run {order.caller_run_id}")
    check_status(caller.run_id, RunStatus(caller.status))
    agents: list[Agent] = []
    for number, (child, agent) in enumerate(zip(order.children, resolve(order, facts), strict=True)):
        if agent is None:
            where = "target_agent" if order.join is None else f"targets[{number}]"
            raise NotFoundError(f"{where}: there is no agent {child.target}")
        agents.append(agent)
    targets = list({agent.facts.agent_id: agent for agent in agents}.values())
    question = DecisionInput.known(
        action=order.action,
        surface=order.surface,
        now=datetime.now(UTC),
        tenant=caller.tenant,
        principal=principal_facts(order.principal),
        request=RequestFacts.known(
            scopes=order.scopes,
            count=len(order.children),
            failure_policy=order.failure_policy,
            timeout_s=order.timeout_s,
            join_mode=order.join.mode if order.join else None,
            quorum_threshold=order.join.quorum_threshold if order.join else None,
            include_root=None,
            grace_s=None,
        ),
        caller=caller.facts(),
        tree=caller.tree_facts(),
        orchestrator_policy=caller.orchestrator.policy,
        allowlist=caller.orchestrator.allowlist,
        targets=_targets(agents, targets),
        subject=None,
        outcomes=None,
        retrieval=None,
        graph=None,
    )
    return Prepared(order, caller, agents, targets, question)


def principal_facts(principal: Principal) -> PrincipalFacts:
    """What policy is told of the bearer of a token."""
    return PrincipalFacts.known(
        kind=principal.kind, run_id=principal.run_id, delegable_scopes=principal.delegable_scopes
    )


def check_status(run_id: UUID, status: RunStatus) -> None:
    """Check that a run with this status may still act.

    Raises:
        RunCancelledError: when it was cancelled.
        CallerNotActiveError: when it has ended otherwise.
    """
    if status is RunStatus.CANCELLED:
        raise RunCancelledError(f"caller_run_id: run {run_id} was cancelled", run_id=str(run_id))
    if status not in ACTIVE:
        raise CallerNotActiveError(f"caller_run_id: run {run_id} has ended: it is {status}", run_id=str(run_id))


def _targets(agents: Sequence[Agent], targets: Sequence[Agent]) -> tuple[TargetFacts, ...]:
    """Each agent once, with how many children are meant for it."""
    if len(agents) == 1:
        return (agents[0].facts,)
    counts = Counter(agent.facts.agent_id for agent in agents)
    return tuple(agent.facts.model_copy(update={"count": counts[agent.facts.agent_id]}) for agent in targets)
