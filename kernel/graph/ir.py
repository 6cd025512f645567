"""What a graph means, without what only concerns its picture: the form that runs.

The same graph, in whatever order its nodes, edges and keys are written and however it is drawn, has one such form and
one digest.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from kernel.graph.spec import CONFIGS, NEXT, Config, GraphSpec, NodeType


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node with all that it needs to run."""

    id: str
    type: NodeType
    config: Config
    input_mappings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that compiles.

    `routes` has, for each node, the nodes that follow each way out; that of a node which does not branch is `next`. A
    node without any is where a run ends, like `exits`.
    """

    spec_version: str
    nodes: Mapping[str, GraphNode]
    entry: str
    exits: tuple[str, ...]
    routes: Mapping[str, Mapping[str, tuple[str, ...]]]
    digest: str

    def document(self) -> dict[str, Any]:
        """The graph as JSON, from which `read` makes it again."""
        return {**_meaning(self.spec_version, self.nodes, self.entry, self.exits, self.routes), "digest": self.digest}


def build(spec: GraphSpec) -> Graph:
    """The form of a graph without findings.

    Raises:
        ValueError: when it has no start or more than one, or a node whose configuration could not be read.
    """
    nodes: dict[str, GraphNode] = {}
    for node in sorted(spec.nodes, key=lambda node: node.id):
        if node.config is None:
            raise ValueError(f"the configuration of node {node.id!r} could not be read")
        nodes[node.id] = GraphNode(node.id, node.type, node.config, dict(sorted(node.input_mappings.items())))
    (entry,) = (node.id for node in nodes.values() if node.type is NodeType.START)
    exits = tuple(node.id for node in nodes.values() if node.type is NodeType.END)
    branching = {node.id for node in spec.nodes if node.branches}
    found: dict[str, dict[str, set[str]]] = {node_id: defaultdict(set) for node_id in nodes}
    for edge in spec.edges:
        found[edge.source][(edge.handle or NEXT) if edge.source in branching else NEXT].add(edge.target)
    routes = {
        node_id: {handle: tuple(sorted(targets)) for handle, targets in sorted(handles.items())}
        for node_id, handles in found.items()
    }
    return _graph(spec.spec_version, nodes, entry, exits, routes)


def read(document: Mapping[str, Any]) -> Graph:
    """A graph from the document that was made of it."""
    nodes = {}
    for node_id, node in document["nodes"].items():
        node_type = NodeType(node["type"])
        config = CONFIGS[node_type].model_validate_json(orjson.dumps(node["config"]))
        nodes[node_id] = GraphNode(node_id, node_type, config, node["input_mappings"])
    routes = {
        node_id: {handle: tuple(targets) for handle, targets in handles.items()}
        for node_id, handles in document["routes"].items()
    }
    return _graph(document["spec_version"], nodes, document["entry"], tuple(document["exits"]), routes)


def _graph(
    spec_version: str,
    nodes: Mapping[str, GraphNode],
    entry: str,
    exits: tuple[str, ...],
    routes: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Graph:
    meaning = orjson.dumps(_meaning(spec_version, nodes, entry, exits, routes), option=orjson.OPT_SORT_KEYS)
    return Graph(spec_version, nodes, entry, exits, routes, hashlib.sha256(meaning).hexdigest())


def _meaning(
    spec_version: str,
    nodes: Mapping[str, GraphNode],
    entry: str,
    exits: tuple[str, ...],
    routes: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> dict[str, Any]:
    return {
        "spec_version": spec_version,
        "entry": entry,
        "exits": list(exits),
        "nodes": {
            node.id: {
                "type": node.type.value,
                "config": node.config.model_dump(mode="json"),
                "input_mappings": dict(node.input_mappings),
            }
            for node in nodes.values()
        },
        "routes": {
            node_id: {handle: list(targets) for handle, targets in handles.items()}
            for node_id, handles in routes.items()
        },
    }
