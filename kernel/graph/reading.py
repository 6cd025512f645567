"""From a document to what can be read of it, with a finding for each thing that cannot."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, JsonValue, ValidationError

from kernel.graph.diagnostics import Code, Diagnostic
from kernel.graph.spec import (
    CONFIGS,
    MAPPED_FIELDS,
    MAX_EDGES,
    MAX_NODES,
    TYPE_NAMES,
    VERSIONS,
    Config,
    Edge,
    GraphSpec,
    Mappings,
    Node,
    NodeFrame,
    NodeType,
)

Place = tuple[int | str, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


def read_spec(document: JsonValue) -> tuple[GraphSpec, list[Diagnostic]]:
    """Read a graph as far as it goes. A node whose configuration cannot be read is kept without one."""
    nothing = GraphSpec(spec_version="", nodes=(), edges=())
    if document is None:
        return nothing, [Diagnostic(Code.GRAPH_MISSING, "there is no graph")]
    if not isinstance(document, dict):
        return nothing, [Diagnostic(Code.GRAPH_MALFORMED, "a graph is an object with spec_version, nodes and edges")]
    try:
        orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        return nothing, [Diagnostic(Code.GRAPH_MALFORMED, f"the graph cannot be stored: {error}")]
    findings: list[Diagnostic] = []
    version = document.get("spec_version")
    if version not in VERSIONS:
        said = "missing" if version is None else f"observed: {version!r}"
        findings.append(
            Diagnostic(
                Code.UNSUPPORTED_SPEC_VERSION,
                f"spec_version is one of {', '.join(map(repr, VERSIONS))}; {said}",
                field="spec_version",
            )
        )
    nodes = _nodes(_items(document, "nodes", MAX_NODES, findings), findings)
    edges = _edges(_items(document, "edges", MAX_EDGES, findings), findings)
    return GraphSpec(spec_version=version if isinstance(version, str) else "", nodes=nodes, edges=edges), findings


def _items(document: dict[str, JsonValue], name: str, limit: int, findings: list[Diagnostic]) -> list[JsonValue]:
    items = document.get(name)
    if not isinstance(items, list):
        said = "missing" if items is None else f"observed: {type(items).__name__}"
        findings.append(Diagnostic(Code.GRAPH_MALFORMED, f"{name} is a list; {said}", field=name))
        return []
    if len(items) > limit:
        findings.append(
            Diagnostic(
                Code.GRAPH_TOO_LARGE,
                f"a graph has at most {limit} {name}; observed: {len(items)}",
                field=name,
                limit=limit,
                observed=len(items),
            )
        )
        return []
    return items


def _nodes(items: list[JsonValue], findings: list[Diagnostic]) -> tuple[Node, ...]:
    nodes: dict[str, Node] = {}
    for number, item in enumerate(items):
        frame = _drawn(NodeFrame, item, f"nodes[{number}]", findings)
        node_id = frame.id if frame is not None else _id(item)
        if node_id is None:
            continue
        if node_id in nodes:
            findings.append(
                Diagnostic(Code.DUPLICATE_NODE_ID, f"node {node_id!r} is there more than once", node_id=node_id)
            )
            continue
        # What cannot be read is taken for a node that goes on to all its targets, so that what follows it is looked at.
        nodes[node_id] = Node(id=node_id, type=NodeType.PARALLEL, config=None)
        if frame is None:
            continue
        node_type = TYPE_NAMES.get(frame.type)
        if node_type is None:
            findings.append(
                Diagnostic(
                    Code.UNKNOWN_NODE_TYPE,
                    f"node {node_id!r}: there is no type {frame.type!r}; there are {', '.join(TYPE_NAMES)}",
                    node_id=node_id,
                    field="type",
                )
            )
            continue
        config, unread = _config(frame, node_type, findings)
        mappings = _mappings(frame, node_type, findings)
        nodes[node_id] = Node(
            id=node_id,
            type=node_type,
            config=config,
            input_mappings=mappings or {},
            unread=unread if mappings is not None else unread | {"input_mappings"},
        )
    return tuple(nodes.values())


def _config(frame: NodeFrame, node_type: NodeType, findings: list[Diagnostic]) -> tuple[Config | None, frozenset[str]]:
    """A configuration, and the fields of it that could not be read; the others are looked at all the same."""
    written, model = frame.config or {}, CONFIGS[node_type]
    try:
        return model.model_validate_json(orjson.dumps(written)), frozenset()
    except ValidationError as error:
        findings.extend(_config_findings(frame.id, node_type, error, ("config",)))
        unread = frozenset(str(place[0]) for place, _, _ in _told(error) if place)
    readable = {name: value for name, value in written.items() if name not in unread}
    with suppress(ValidationError):
        return model.model_validate_json(orjson.dumps(readable)), unread
    return None, frozenset()


def _mappings(frame: NodeFrame, node_type: NodeType, findings: list[Diagnostic]) -> dict[str, str] | None:
    try:
        mappings = Mappings.model_validate({"input_mappings": frame.input_mappings or {}}).input_mappings
    except ValidationError as error:
        findings.extend(_config_findings(frame.id, node_type, error, ()))
        return None
    allowed = MAPPED_FIELDS.get(node_type, frozenset(mappings))
    findings.extend(
        Diagnostic(
            Code.NODE_CONFIG_INVALID,
            f"node {frame.id!r}: input_mappings.{name}: a {node_type} takes {', '.join(sorted(allowed))} from them",
            node_id=frame.id,
            field=f"input_mappings.{name}",
        )
        for name in sorted(mappings.keys() - allowed)
    )
    return mappings


def _config_findings(node_id: str, node_type: NodeType, error: ValidationError, prefix: Place) -> Iterable[Diagnostic]:
    for place, message, kind in _told(error):
        code, field = Code.NODE_CONFIG_INVALID, _path((*prefix, *place))
        if kind == "enum" and place[-1:] in {("mode",), ("join_mode",)}:
            code = Code.UNKNOWN_JOIN_MODE
        if kind == "extra_forbidden":
            message = f"a {node_type} has no such field"  # noqa: PLW2901 - Pydantic's words say less
        yield Diagnostic(code, f"node {node_id!r}: {field}: {message}", node_id=node_id, field=field)


def _edges(items: list[JsonValue], findings: list[Diagnostic]) -> tuple[Edge, ...]:
    edges: list[Edge] = []
    known: set[str] = set()
    for number, item in enumerate(items):
        where = f"edges[{number}]"
        edge = _drawn(Edge, item, where, findings)
        if edge is None:
            # Where it leads is looked at all the same, so that nothing is missed at its ends that is there.
            edges.extend(_without_its_id(item, where))
            continue
        if edge.id in known:
            findings.append(
                Diagnostic(Code.DUPLICATE_EDGE_ID, f"edge {edge.id!r} is there more than once", edge_id=edge.id)
            )
            if edge in edges:
                continue
        known.add(edge.id)
        edges.append(edge)
    return tuple(edges)


def _without_its_id(item: JsonValue, where: str) -> Iterable[Edge]:
    with suppress(ValidationError):
        if isinstance(item, dict):
            yield Edge.model_validate({**item, "id": where})


def _drawn(model: type[ModelT], item: JsonValue, where: str, findings: list[Diagnostic]) -> ModelT | None:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        found = _id(item)
        is_node = model is NodeFrame
        for place, message, _ in _told(error):
            field = _path(place)
            findings.append(
                Diagnostic(
                    Code.NODE_INVALID if is_node else Code.EDGE_INVALID,
                    f"{where}{'.' if field else ''}{field}: {message}",
                    node_id=found if is_node else None,
                    edge_id=None if is_node else found,
                    field=field or None,
                )
            )
        return None


def _told(error: ValidationError) -> Iterable[tuple[Place, str, str]]:
    """Where, what and of which kind. What is wrong with a list because its items are is not told again."""
    found = [(item["loc"], item) for item in error.errors(include_url=False, include_context=False)]
    for place, item in found:
        if any(len(other) > len(place) and other[: len(place)] == place for other, _ in found):
            continue
        message = str(item["msg"]).removeprefix("Value error, ")
        given: Any = item["input"]
        if isinstance(given, str | int | float | bool) and len(str(given)) <= 100:  # noqa: PLR2004
            message += f" (observed: {given!r})"
        yield place, message, item["type"]


def _path(place: Place) -> str:
    path = ""
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _id(item: JsonValue) -> str | None:
    found = item.get("id") if isinstance(item, dict) else None
    return found if isinstance(found, str) and found else None
