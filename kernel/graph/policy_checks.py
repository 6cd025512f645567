"""What policy is asked about a graph, and what its answer says of the nodes.

Policy hears what is static: who is spawned, how many, with which scopes, and at which depth. All that a graph spawns
are children of its own run, whatever the order of its nodes, so they are one level below a root.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

from kernel.graph.diagnostics import Code, Diagnostic, Severity
from kernel.graph.orchestration import TARGETS
from kernel.graph.spec import GraphSpec, Node, SpawnGroupConfig, SpawnRunConfig, Target
from kernel.policy.contract import Decision, GraphSpawnFacts, Reason, TargetFacts

DEPTH = 1

# The agents that a graph names, by id and by slug; one that is absent does not exist in the tenant.
Catalog = Mapping[UUID | str, TargetFacts]

OF_SPAWN = {
    "scope_exceeds_policy": "the orchestrator's policy is",
    "max_depth_exceeded": "the orchestrator's policy is",
    "max_fanout_exceeded": "the orchestrator's policy is",
    "target_not_allowlisted": "the orchestrator's allowlist is",
}


def spawns(spec: GraphSpec, catalog: Catalog) -> tuple[GraphSpawnFacts, ...]:
    """The facts of each spawn in a graph. Targets that do not exist are left out: `missing_targets` tells of them."""
    return tuple(
        GraphSpawnFacts(
            node_id=node.id,
            scopes=config.scope_subset,
            # A group whose size is not known yet may still be empty; when it is spawned, policy is asked again.
            count=_count(config) or 0,
            depth=DEPTH,
            targets=_facts(_targets(config), catalog),
        )
        for node, config in _spawning(spec)
    )


def named_agents(spec: GraphSpec) -> tuple[set[UUID], set[str]]:
    """The agents that a graph names, by id and by slug."""
    targets = [target for _, config in _spawning(spec) for target in _targets(config)]
    ids = {target.target_agent_id for target in targets if target.target_agent_id is not None}
    slugs = {target.target_agent_slug for target in targets if target.target_agent_slug is not None}
    return ids, slugs


def missing_targets(spec: GraphSpec, catalog: Catalog) -> Iterator[Diagnostic]:
    """A finding for each agent that a node names and the tenant does not have."""
    for node, config in _spawning(spec):
        names = {_name(target) for target in _targets(config)} - {None}
        for name in sorted(map(str, (name for name in names if name is not None and name not in catalog))):
            yield Diagnostic(
                Code.TARGET_NOT_FOUND,
                f"node {node.id!r}: the tenant has no agent {name}",
                node_id=node.id,
                target=name,
            )


def denials(reasons: Iterable[Reason]) -> Iterator[Diagnostic]:
    """Policy's reasons as findings, under policy's own codes."""
    for reason in reasons:
        where = f"node {reason.node_id!r}: " if reason.node_id is not None else ""
        yield Diagnostic(
            reason.code,
            f"{where}{reason.message}",
            node_id=reason.node_id,
            limit=reason.limit,
            observed=reason.observed,
            requested=reason.requested,
            target=reason.target,
            scopes=tuple(reason.scopes) if reason.scopes is not None else None,
        )


def unexplained(decision: Decision) -> Iterator[Diagnostic]:
    """A denial without a reason is one all the same."""
    if not decision.allow and not decision.reasons:
        yield Diagnostic(Code.POLICY_DENIED, "policy refuses this graph and gives no reason")


def deferred(spec: GraphSpec, *, orchestrator: bool, tenant: bool) -> Iterator[Diagnostic]:
    """What policy could not be asked.

    Args:
        spec: the graph.
        orchestrator: whether the policy and the allowlist of the agent that would run the graph are known.
        tenant: whether the tenant is known, with its flags and its agents.
    """
    if not tenant:
        yield _later("surface_disabled", "the tenant's flags are")
    found = list(_spawning(spec))
    for node, config in found:
        unknown_size = _count(config) is None
        if orchestrator:
            if unknown_size:
                yield _later("max_fanout_exceeded", "the number of its children is", node)
            continue
        for code, what in OF_SPAWN.items():
            yield _later(code, what, node)
        yield _later(
            "target_not_published", "the orchestrator's policy is" if tenant else "the tenant's catalog is", node
        )
        if not tenant:
            yield _later(Code.TARGET_NOT_FOUND, "the tenant's catalog is", node)
    if orchestrator and any(_count(config) is None for _, config in found):
        yield _later("max_children_total_exceeded", "the number of children is")
    elif found and not orchestrator:
        yield _later("max_children_total_exceeded", "the orchestrator's policy is")


def _later(code: str, what: str, node: Node | None = None) -> Diagnostic:
    where = f"node {node.id!r}: " if node is not None else ""
    return Diagnostic(
        code,
        f"{where}checked when {what} known",
        node_id=node.id if node is not None else None,
        severity=Severity.DEFERRED,
    )


def _spawning(spec: GraphSpec) -> Iterator[tuple[Node, SpawnRunConfig | SpawnGroupConfig]]:
    for node in spec.nodes:
        if isinstance(node.config, SpawnRunConfig | SpawnGroupConfig) and node.is_read("scope_subset", *TARGETS):
            yield node, node.config


def _count(config: SpawnRunConfig | SpawnGroupConfig) -> int | None:
    return config.size if isinstance(config, SpawnGroupConfig) else 1


def _targets(config: SpawnRunConfig | SpawnGroupConfig) -> tuple[Target, ...]:
    return config.targets if isinstance(config, SpawnGroupConfig) else (config,)


def _name(target: Target) -> UUID | str | None:
    return target.target_agent_id if target.target_agent_id is not None else target.target_agent_slug


def _facts(targets: Iterable[Target], catalog: Catalog) -> tuple[TargetFacts, ...]:
    found = [catalog[name] for target in targets if (name := _name(target)) is not None and name in catalog]
    counts = Counter(facts.agent_id for facts in found)
    once = {facts.agent_id: facts for facts in found}
    return tuple(facts.model_copy(update={"count": counts[agent_id]}) for agent_id, facts in once.items())
