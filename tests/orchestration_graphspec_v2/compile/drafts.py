"""Graphs in a line or two.

`draw({"a": spawn()}, "start > a", "a > end")`; a way out has its name after a dot: `"j.failed > end"`. A start and an
end are always there.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel.graph.compiler import Compiled, compile_alone
from kernel.graph.diagnostics import Severity

Document = dict[str, Any]
CASES = Path(__file__).parents[2] / "cases" / "graphs"
RUN = "0190aaaa-0000-7000-8000-000000000001"

JOINED = ("completed", "completed_with_errors", "failed", "timed_out", "pending")


def node(node_type: str, /, mappings: Mapping[str, str] | None = None, **config: Any) -> Document:
    return {"type": node_type, "config": config, **({"input_mappings": dict(mappings)} if mappings else {})}


def spawn(**config: Any) -> Document:
    return node("spawn_run", **{"target_agent_slug": "worker", "scope_subset": ["read"], **config})


def group(size: int = 2, **config: Any) -> Document:
    targets = [{"target_agent_slug": "worker", "mapped_input_payload": {"n": n}} for n in range(size)]
    return node("spawn_group", **{"targets": targets, "scope_subset": ["read"], **config})


def draw(nodes: Mapping[str, Document], *edges: str, version: Any = "2.0") -> Document:
    drawn = []
    for number, edge in enumerate(edges):
        source, target = (end.strip() for end in edge.split(">"))
        source, _, handle = source.partition(".")
        drawn.append(
            {"id": f"e{number}", "source": source, "target": target, **({"source_handle": handle} if handle else {})}
        )
    every = {"start": node("start"), "end": node("end"), **nodes}
    return {
        "spec_version": version,
        "nodes": [{"id": node_id, **written} for node_id, written in every.items()],
        "edges": drawn,
    }


def line(*nodes: Document) -> Document:
    """One node after the other, named n0, n1…; all ways out of a node lead to the next one."""
    named = {f"n{number}": written for number, written in enumerate(nodes)}
    names = ["start", *named, "end"]
    edges = []
    for source, target in itertools.pairwise(names):
        handles = ways_out(named[source]) if source in named else ()
        edges.extend([f"{source}.{handle} > {target}" for handle in handles] or [f"{source} > {target}"])
    return draw(named, *edges)


def ways_out(written: Document) -> tuple[str, ...]:
    config = written["config"]
    match written["type"]:
        case "join":
            return JOINED
        case "replan":
            return ("replan", "continue")
        case "judge":
            return tuple(config.get("outcomes", ("pass", "fail")))
        case "router":
            return (*(route["name"] for route in config["routes"]), "default")
        case "if_else":
            return (*(condition["name"] for condition in config["conditions"]), "else")
    return ()


def cut(document: Document, edge: str) -> Document:
    return {**document, "edges": [written for written in document["edges"] if written["id"] != edge]}


def error_codes(compiled: Compiled) -> list[str]:
    return [finding.code for finding in compiled.diagnostics if finding.severity is Severity.ERROR]


def errors(document: Any) -> list[str]:
    return error_codes(compile_alone(document))


def example(name: str) -> Document:
    document: Document = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    return document


EXAMPLES = sorted(path.stem for path in CASES.glob("*.json"))
