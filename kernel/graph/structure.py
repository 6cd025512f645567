"""Whether a graph hangs together: its start, its ends, every way out of a node, and the way to it."""

from collections import defaultdict
from collections.abc import Iterator

from kernel.graph.diagnostics import Code, Diagnostic
from kernel.graph.flow import Flow
from kernel.graph.spec import (
    NAMES_OF_NEXT,
    ORCHESTRATION,
    SPAWNS,
    VERSION_1,
    VERSION_2,
    Edge,
    GraphSpec,
    Node,
    NodeType,
)


def check(spec: GraphSpec, flow: Flow) -> Iterator[Diagnostic]:
    """Every finding about the form of a graph."""
    yield from _versions(spec)
    yield from _edges(spec)
    yield from _starts(spec, flow)
    yield from _ends(spec, flow)
    yield from _repeated_spawns(spec, flow)


def _versions(spec: GraphSpec) -> Iterator[Diagnostic]:
    if spec.spec_version != VERSION_1:
        return
    for node in spec.nodes:
        if node.type in ORCHESTRATION:
            yield Diagnostic(
                Code.ORCHESTRATION_NODE_REQUIRES_V2,
                f"node {node.id!r}: a {node.type} needs spec_version {VERSION_2!r}; observed: {VERSION_1!r}",
                node_id=node.id,
                field="type",
            )


def _edges(spec: GraphSpec) -> Iterator[Diagnostic]:
    nodes = {node.id: node for node in spec.nodes}
    outgoing: dict[str, list[Edge]] = defaultdict(list)
    for edge in spec.edges:
        for field in ("source", "target"):
            named = getattr(edge, field)
            if named not in nodes:
                yield Diagnostic(
                    Code.DANGLING_EDGE,
                    f"edge {edge.id!r}: {field}: there is no node {named!r}",
                    edge_id=edge.id,
                    field=field,
                )
        if edge.source in nodes:
            outgoing[edge.source].append(edge)
    for node in spec.nodes:
        if node.branch_handles is None and (node.config is None or node.branches):
            continue
        if node.branch_handles is not None:
            yield from _branches(node, node.branch_handles, outgoing[node.id])
        else:
            yield from _ways_on(node, outgoing[node.id])


def _branches(node: Node, handles: tuple[str, ...], edges: list[Edge]) -> Iterator[Diagnostic]:
    taken: dict[str, Edge] = {}
    for edge in sorted(edges, key=lambda edge: edge.id):
        handle = edge.handle
        if handle is None or handle not in handles:
            yield Diagnostic(
                Code.INVALID_BRANCH_HANDLE,
                f"edge {edge.id!r}: source_handle: {node.type} {node.id!r} has {', '.join(handles)};"
                f" observed: {'none' if handle is None else repr(handle)}",
                node_id=node.id,
                edge_id=edge.id,
                field="source_handle",
                handle=handle,
            )
        elif handle in taken:
            yield Diagnostic(
                Code.DUPLICATE_BRANCH_HANDLE,
                f"edge {edge.id!r}: {handle!r} of {node.type} {node.id!r} is taken by edge"
                f" {taken[handle].id!r}; a parallel node goes several ways",
                node_id=node.id,
                edge_id=edge.id,
                field="source_handle",
                handle=handle,
            )
        else:
            taken[handle] = edge
    for handle in handles:
        if handle not in taken:
            yield Diagnostic(
                Code.MISSING_BRANCH_HANDLE,
                f"node {node.id!r}: no edge leaves this {node.type} by {handle!r}",
                node_id=node.id,
                handle=handle,
            )


def _ways_on(node: Node, edges: list[Edge]) -> Iterator[Diagnostic]:
    for edge in edges:
        if node.type is NodeType.END:
            said = f"nothing follows the end {node.id!r}"
        elif edge.handle not in NAMES_OF_NEXT:
            said = f"{node.type} {node.id!r} has one way out, without a name; observed: {edge.handle!r}"
        else:
            continue
        yield Diagnostic(
            Code.INVALID_BRANCH_HANDLE,
            f"edge {edge.id!r}: source_handle: {said}",
            node_id=node.id,
            edge_id=edge.id,
            field="source_handle",
            handle=edge.handle,
        )


def _starts(spec: GraphSpec, flow: Flow) -> Iterator[Diagnostic]:
    starts = sorted(node.id for node in spec.nodes if node.type is NodeType.START)
    if not starts:
        yield Diagnostic(Code.NO_START, "the graph has no start")
        return
    for node_id in starts[1:]:
        yield Diagnostic(
            Code.SEVERAL_STARTS,
            f"node {node_id!r}: the graph starts at {starts[0]!r} already",
            node_id=node_id,
            limit=1,
            observed=len(starts),
        )
    reached = flow.after(starts) | set(starts)
    for node in spec.nodes:
        if node.id not in reached:
            yield Diagnostic(
                Code.UNREACHABLE_NODE, f"node {node.id!r}: no way leads to it from the start", node_id=node.id
            )


def _ends(spec: GraphSpec, flow: Flow) -> Iterator[Diagnostic]:
    ends = {node.id for node in spec.nodes if node.type is NodeType.END}
    if not ends:
        yield Diagnostic(Code.NO_END, "the graph has no end")
    for cycle in flow.cycles():
        if not ends & cycle and all(target in cycle for node in cycle for target in flow.successors[node]):
            first, *others = sorted(cycle)
            yield Diagnostic(
                Code.NO_END,
                f"node {first!r}: what comes here goes round for ever"
                + (f", by {', '.join(map(repr, others))}" if others else ""),
                node_id=first,
            )


def _repeated_spawns(spec: GraphSpec, flow: Flow) -> Iterator[Diagnostic]:
    repeated = set().union(*flow.cycles())
    for node in spec.nodes:
        if node.type in SPAWNS and node.id in repeated:
            yield Diagnostic(
                Code.SPAWN_IN_CYCLE,
                f"node {node.id!r}: this {node.type} is in a cycle, so how many children it makes has no bound;"
                " a second attempt is a node of its own",
                node_id=node.id,
            )
