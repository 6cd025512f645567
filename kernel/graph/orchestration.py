"""Whether the orchestration nodes of a graph have what they need: targets and scopes, a group, a run, a quorum."""

from collections.abc import Iterator

from kernel.domain.joins import JoinMode
from kernel.graph.diagnostics import Code, Diagnostic, Severity
from kernel.graph.flow import Flow
from kernel.graph.spec import (
    SPAWNS,
    CancelSubtreeConfig,
    GraphSpec,
    JoinConfig,
    JudgeConfig,
    Node,
    NodeType,
    ReplanConfig,
    SpawnGroupConfig,
    SpawnRunConfig,
)

# What leaves runs behind that a later node can be about.
LINEAGE = SPAWNS | {NodeType.JOIN}
# What says whom a spawn makes.
TARGETS = ("targets", "for_each", "target_agent_id", "target_agent_slug")
JUDGED = frozenset({NodeType.JOIN, NodeType.REPLAN})


def check(spec: GraphSpec, flow: Flow) -> Iterator[Diagnostic]:
    """Every finding about the orchestration nodes of a graph."""
    before = _Before(spec, flow)
    for node in spec.nodes:
        match node.config:
            case SpawnRunConfig() as spawn:
                yield from _spawn(node, [spawn.is_named], spawn.scope_subset)
            case SpawnGroupConfig() as spawn:
                yield from _spawn(node, [target.is_named for target in spawn.targets], spawn.scope_subset)
                size = _size(node, spawn)
                yield from _quorum(node, spawn.join_mode, spawn.quorum_threshold, size, known=size is not None)
            case JoinConfig() as join:
                yield from _join(node, join, before)
            case JudgeConfig() if node.id not in before.judged:
                said = f"node {node.id!r}: a judge needs a join or a replan before it"
                yield Diagnostic(Code.JUDGE_WITHOUT_SOURCE, said, node_id=node.id)
            case ReplanConfig() | CancelSubtreeConfig() as about:
                yield from _about_run(node, about, before)
            case _:
                continue


class _Before:
    """What can have happened when a node is come to.

    The group of a join is the latest, so one from which the way to it leads past no other.
    """

    def __init__(self, spec: GraphSpec, flow: Flow) -> None:
        self.descended = flow.after(node.id for node in spec.nodes if node.type in LINEAGE)
        self.judged = flow.after(node.id for node in spec.nodes if node.type in JUDGED)
        sizes = {node.id: _size(node, node.config) for node in spec.nodes if isinstance(node.config, SpawnGroupConfig)}
        # A group whose configuration cannot be read stands in the way like any other.
        every = {node.id for node in spec.nodes if node.type is NodeType.SPAWN_GROUP}
        self.grouped = flow.after(every)
        unknown = [node_id for node_id in every if sizes.get(node_id) is None]
        with_threshold = [node.id for node in spec.nodes if node.id in every and _may_have_threshold(node)]
        self.of_unknown_size = flow.after(unknown, up_to=every)
        self.with_threshold = flow.after(with_threshold, up_to=every)
        self.largest: dict[str, int] = {}
        known = {node_id: size for node_id, size in sizes.items() if size is not None}
        for size in sorted(set(known.values())):
            reached = flow.after((node_id for node_id, its in known.items() if its == size), up_to=every)
            self.largest |= dict.fromkeys(reached, size)


def _join(node: Node, join: JoinConfig, before: _Before) -> Iterator[Diagnostic]:
    named = join.orchestration_group_id is not None or _is_named(node, "orchestration_group_id")
    if not named and node.id not in before.grouped:
        yield _lacks(node, Code.JOIN_WITHOUT_GROUP, "an orchestration_group_id", "spawn_group")
    if join.quorum_threshold is not None or not (named or node.id in before.with_threshold):
        known = not named and node.id not in before.of_unknown_size
        yield from _quorum(node, join.mode, join.quorum_threshold, before.largest.get(node.id), known=known)


def _about_run(node: Node, config: ReplanConfig | CancelSubtreeConfig, before: _Before) -> Iterator[Diagnostic]:
    if config.run_id is None and not _is_named(node, "run_id") and node.id not in before.descended:
        code = Code.REPLAN_WITHOUT_SOURCE if node.type is NodeType.REPLAN else Code.CANCEL_WITHOUT_SOURCE
        yield _lacks(node, code, "a run_id", "spawn_run, spawn_group or join")


def _is_named(node: Node, field: str) -> bool:
    """Whether a mapping gives a field; what cannot be read may do so."""
    return field in node.input_mappings or not node.is_read(field, "input_mappings")


def _may_have_threshold(group: Node) -> bool:
    """Whether a group has a threshold, as far as it could be read."""
    if not isinstance(group.config, SpawnGroupConfig) or not group.is_read("quorum_threshold"):
        return True
    return group.config.quorum_threshold is not None


def _size(node: Node, config: SpawnGroupConfig) -> int | None:
    return config.size if node.is_read("targets", "for_each") else None


def _lacks(node: Node, code: Code, named: str, before: str) -> Diagnostic:
    return Diagnostic(code, f"node {node.id!r}: a {node.type} needs {named}, or a {before} before it", node_id=node.id)


def _spawn(node: Node, named: list[bool], scopes: tuple[str, ...]) -> Iterator[Diagnostic]:
    if not all(named or [False]) and node.is_read(*TARGETS):
        nameless = f"targets[{named.index(False)}]" if named and node.type is NodeType.SPAWN_GROUP else "it"
        said = "it has no targets" if not named else f"{nameless} has neither target_agent_id nor target_agent_slug"
        yield Diagnostic(
            Code.SPAWN_WITHOUT_TARGET,
            f"node {node.id!r}: a {node.type} needs a target: {said}",
            node_id=node.id,
            field="config.targets" if node.type is NodeType.SPAWN_GROUP else "config.target_agent_slug",
        )
    if not scopes and node.is_read("scope_subset"):
        yield Diagnostic(
            Code.SCOPE_REQUIRED,
            f"node {node.id!r}: a {node.type} names at least one scope for its children",
            node_id=node.id,
            field="config.scope_subset",
        )


def _quorum(
    node: Node, mode: JoinMode | None, threshold: int | None, size: int | None, *, known: bool
) -> Iterator[Diagnostic]:
    if threshold is None:
        if mode is JoinMode.QUORUM and node.is_read("quorum_threshold"):
            yield _about_quorum(node, Code.QUORUM_MISSING, "the mode quorum needs one")
        return
    if threshold < 1:
        yield _about_quorum(node, Code.QUORUM_BELOW_ONE, f"it is at least 1; observed: {threshold}", threshold, 1)
    elif not known:
        yield _about_quorum(
            node,
            Code.QUORUM_ABOVE_GROUP,
            "the group's size is known when it is spawned",
            threshold,
            severity=Severity.DEFERRED,
        )
    elif size is not None and threshold > size:
        said = f"it is above the group's size: limit {size}, observed {threshold}"
        yield _about_quorum(node, Code.QUORUM_ABOVE_GROUP, said, threshold, size)


def _about_quorum(
    node: Node,
    code: Code,
    said: str,
    observed: int | None = None,
    limit: int | None = None,
    *,
    severity: Severity = Severity.ERROR,
) -> Diagnostic:
    return Diagnostic(
        code,
        f"node {node.id!r}: quorum_threshold: {said}",
        node_id=node.id,
        severity=severity,
        field="config.quorum_threshold",
        limit=limit,
        observed=observed,
    )
