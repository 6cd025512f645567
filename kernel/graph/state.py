"""What a running graph remembers: plain JSON, so that a checkpoint is readable whatever wrote it.

Every rule about which output a node sees is here, and depends on nothing but the state and the graph: a graph that is
resumed from a checkpoint sees what it would have seen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict
from uuid import UUID

from kernel.graph.flow import Flow
from kernel.graph.ir import Graph
from kernel.graph.spec import NodeType

# What makes an orchestration output; router and judge only look at the one that is there.
PRODUCERS = frozenset(
    {NodeType.SPAWN_RUN, NodeType.SPAWN_GROUP, NodeType.JOIN, NodeType.REPLAN, NodeType.CANCEL_SUBTREE}
)
# What only says where to go on: the output before it stays the output before the next node.
SIGNPOSTS = frozenset({NodeType.ROUTER, NodeType.JUDGE, NodeType.IF_ELSE, NodeType.PARALLEL, NodeType.END})


class Frontier(TypedDict):
    """The nodes that are under way in a step, and which of them wait for the others."""

    step: int
    nodes: list[str]
    parked: list[str]


def gather(old: Frontier | None, new: Frontier) -> Frontier:
    """What the nodes of one step go on to, together."""
    if not old or new["step"] > old["step"]:
        return new
    return {
        "step": old["step"],
        "nodes": sorted({*old["nodes"], *new["nodes"]}),
        "parked": sorted({*old["parked"], *new["parked"]}),
    }


class Made(TypedDict):
    """What a node has made: its last output, the step of it, and how often the node has run."""

    output: Any
    step: int
    visits: int


class Kept(TypedDict, total=False):
    """What is kept of a run; each node's `Made` beside it, so that a step stores only what it has made."""

    input: dict[str, Any]
    context: dict[str, Any]
    frontier: Annotated[Frontier, gather]


@dataclass(frozen=True, slots=True)
class GraphState:
    """What the nodes of a run see of it: the `Made` of each that has run, by id."""

    input: Mapping[str, Any]
    context: Mapping[str, Any]
    made: Mapping[str, Made]

    def output(self, node_id: str) -> Any:
        """The last output of a node that has run."""
        return self.made[node_id]["output"]

    def outputs(self) -> dict[str, Any]:
        """The last output of each node that has run."""
        return {node_id: made["output"] for node_id, made in self.made.items()}

    def visits(self, node_id: str) -> int:
        """How often a node has run."""
        made = self.made.get(node_id)
        return made["visits"] if made is not None else 0


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a graph's run stands, as every node of it is told."""

    tenant_id: UUID
    run_id: UUID
    root_run_id: UUID
    parent_run_id: UUID | None
    parent_node_id: str | None
    depth: int
    scopes: tuple[str, ...]
    spawn_key: str | None
    orchestration_group_id: UUID | None
    surface: str
    trace_parent: str | None = None

    def document(self) -> dict[str, Any]:
        """The lineage as JSON."""
        return {
            "tenant_id": str(self.tenant_id),
            "run_id": str(self.run_id),
            "root_run_id": str(self.root_run_id),
            "parent_run_id": str(self.parent_run_id) if self.parent_run_id is not None else None,
            "parent_node_id": self.parent_node_id,
            "depth": self.depth,
            "requested_scopes": list(self.scopes),
            "spawn_key": self.spawn_key,
            "orchestration_group_id": (
                str(self.orchestration_group_id) if self.orchestration_group_id is not None else None
            ),
            "surface": self.surface,
        }


class Ways:
    """Which node can be come to from which, in one graph; and so whose outputs a node sees, and for whom it waits."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        successors = {
            node_id: sorted({target for targets in graph.routes.get(node_id, {}).values() for target in targets})
            for node_id in graph.nodes
        }
        self._bits = {node_id: 1 << number for number, node_id in enumerate(graph.nodes)}
        # Sets of nodes as numbers, one bit for each: graphs are kept by the hundred, and these grow with the square.
        self._after: dict[str, int] = {}
        for component in Flow(successors).components():
            # The components come in an order in which what follows one of them is known already.
            followers = {target for node_id in component for target in successors[node_id]}
            reached = 0
            for target in followers:
                reached |= self._bits[target] | self._after.get(target, 0)
            if component & followers:
                for node_id in component:
                    reached |= self._bits[node_id]
            self._after |= dict.fromkeys(component, reached)
        ways_in: dict[str, int] = dict.fromkeys(graph.nodes, 0)
        for targets in successors.values():
            for target in targets:
                ways_in[target] += 1
        splits = any(len(targets) > 1 for handles in graph.routes.values() for targets in handles.values())
        self._meeting = {node_id for node_id, count in ways_in.items() if count > 1} if splits else set()

    def must_wait(self, node_id: str, frontier: Frontier) -> bool:
        """Whether a node at which ways meet waits for another one that may still come to it.

        In a cycle two nodes may wait for each other; then the first of them goes.
        """
        if node_id not in self._meeting:
            return False
        others = [other for other in frontier["nodes"] if other != node_id]
        if not any(self.leads(other, node_id) for other in others):
            return False
        return set(frontier["nodes"]) != set(frontier["parked"]) or node_id != min(frontier["nodes"])

    def latest(self, state: GraphState, node_id: str, types: Iterable[NodeType] = PRODUCERS) -> str | None:
        """The node of some types before this one whose output is the latest."""
        wanted, made = frozenset(types), state.made
        seen = [one for one in made if self._graph.nodes[one].type in wanted and self.leads(one, node_id)]
        return max(seen, key=lambda one: (made[one]["step"], one), default=None)

    def leads(self, node_id: str, target: str) -> bool:
        """Whether a node can be come to from another one, by an edge at least."""
        return bool(self._after[node_id] & self._bits[target])

    def output_before(self, state: GraphState, node_id: str) -> Any:
        """The latest output before a node of anything that makes one."""
        found = self.latest(state, node_id, frozenset(NodeType) - SIGNPOSTS)
        return state.output(found) if found is not None else None


def expression_document(state: GraphState, ways: Ways, node_id: str, mapped: Mapping[str, Any]) -> dict[str, Any]:
    """What the expressions of a node are about."""
    latest = ways.latest(state, node_id)
    return {
        "input": state.input,
        "context": {**state.context, "node_id": node_id},
        "nodes": state.outputs(),
        "latest": state.output(latest) if latest is not None else None,
        "mapped": dict(mapped),
    }
