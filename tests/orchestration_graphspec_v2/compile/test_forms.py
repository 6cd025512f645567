"""The form that runs: what it has of a graph, and that it is one however the graph is written."""

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.graph import ir
from kernel.graph.compiler import compile_alone
from kernel.graph.ir import Graph
from kernel.graph.spec import GroupTarget, NodeType, RouterConfig, SpawnGroupConfig
from tests.orchestration_graphspec_v2.compile.drafts import EXAMPLES, Document, draw, example, line, node, spawn

NAMES = {"source_handle": "sourceHandle", "target_handle": "targetHandle", "input_mappings": "inputMappings"}
OTHER_TYPES = {"start": "input", "end": "output"}


def form(document: Any) -> Graph:
    compiled = compile_alone(document)
    assert compiled.graph is not None, compiled.diagnostics
    return compiled.graph


display = st.dictionaries(
    st.sampled_from(["position", "label", "width", "selected", "data", "style"]),
    st.none() | st.text(max_size=5) | st.dictionaries(st.sampled_from("xy"), st.integers(-999, 999)),
)


@st.composite
def redrawn(draw_from: st.DrawFn, document: Document) -> Document:
    """The same graph, by another editor."""

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in draw_from(st.permutations(sorted(value)))}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    def decorated(item: Document) -> Document:
        named = {NAMES.get(key, key) if draw_from(st.booleans()) else key: value for key, value in item.items()}
        return {**named, **draw_from(display)}

    nodes = []
    for item in document["nodes"]:
        named = decorated(item)
        if draw_from(st.booleans()):
            named["type"] = OTHER_TYPES.get(named["type"], named["type"])
        nodes.append(named)
    edges = [decorated({**edge, "id": f"{draw_from(st.integers(0, 9))}-{edge['id']}"}) for edge in document["edges"]]
    turned = {
        **document,
        "nodes": draw_from(st.permutations(nodes)),
        "edges": draw_from(st.permutations(edges)),
        "viewport": draw_from(display),
    }
    found: Document = shuffled(turned)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_graph_has_one_form_however_it_is_drawn(name: str) -> None:
    document = example(name)
    plain = form(document)

    @settings(max_examples=60, deadline=None)
    @given(redrawn(document))
    def is_the_same(other: Document) -> None:
        again = form(other)
        assert again == plain
        assert orjson.dumps(again.document(), option=orjson.OPT_SORT_KEYS) == orjson.dumps(
            plain.document(), option=orjson.OPT_SORT_KEYS
        )

    is_the_same()


@pytest.mark.parametrize("name", EXAMPLES)
def test_another_meaning_has_another_digest(name: str) -> None:
    document = example(name)
    seen = {form(document).digest}
    for number, written in enumerate(document["nodes"]):
        if written["type"] in {"spawn_run", "spawn_group"}:
            other = copy.deepcopy(document)
            other["nodes"][number]["config"]["timeout_s"] = 77
            seen.add(form(other).digest)
    for number, edge in enumerate(document["edges"]):
        if edge["target"] != "end":
            other = copy.deepcopy(document)
            other["edges"][number]["target"] = "end"
            compiled = compile_alone(other)
            assert compiled.graph is None or compiled.graph.digest not in seen
    assert len(seen) > 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_form_is_made_again_from_its_document(name: str) -> None:
    plain = form(example(name))
    stored = json.loads(json.dumps(plain.document()))
    assert ir.read(stored) == plain
    assert ir.read(stored).digest == stored["digest"]


def test_payloads_are_kept_to_the_letter() -> None:
    payload = {"a": None, "b": [1, 1.5, "x", {"c": None}], "": True}
    plain = form(line(spawn(mapped_input_payload=payload)))
    again = ir.read(json.loads(json.dumps(plain.document())))
    assert again.document()["nodes"]["n0"]["config"]["mapped_input_payload"] == payload


def test_ways_out_are_by_node_and_name() -> None:
    document = draw(
        {"p": node("parallel"), "a": node("transform"), "r": node("router", routes=["x", "y"])},
        *("start > p", "p > r", "p > a", "a > end", "r.x > end", "r.y > a", "r.default > end"),
    )
    found = form(document)
    assert found.entry == "start"
    assert found.exits == ("end",)
    assert found.routes == {
        "start": {"next": ("p",)},
        "p": {"next": ("a", "r")},
        "a": {"next": ("end",)},
        "r": {"default": ("end",), "x": ("end",), "y": ("a",)},
        "end": {},
    }


def test_an_edges_condition_is_another_name_for_its_way_out() -> None:
    document = draw({"r": node("router", routes=["x"])}, "start > r", "r.x > end", "r.default > end")
    other = copy.deepcopy(document)
    for edge in other["edges"]:
        if "source_handle" in edge:
            edge["condition"] = edge.pop("source_handle")
    assert form(other) == form(document)


def test_a_route_by_its_name_alone_is_taken_when_the_value_is_its_name() -> None:
    written = ["x", {"name": "y"}, {"name": "z", "equals": 1}, {"name": "w", "match": ["a", None]}]
    document = draw(
        {"r": node("router", routes=written)},
        "start > r",
        *(f"r.{name} > end" for name in ("x", "y", "z", "w", "default")),
    )
    config = form(document).nodes["r"].config
    assert isinstance(config, RouterConfig)
    assert [route.equals for route in config.routes] == [("x",), ("y",), (1,), ("a", None)]


def test_scopes_are_sorted_each_once() -> None:
    assert form(line(spawn(scope_subset=["b", "a", "b"]))) == form(line(spawn(scope_subset=["a", "b"])))


def test_aliases_of_types_are_the_same_types() -> None:
    document = draw({}, "start > end")
    document["nodes"][0]["type"], document["nodes"][1]["type"] = "input", "output"
    assert [found.type for found in form(document).nodes.values()] == [NodeType.END, NodeType.START]


def test_an_incomplete_graph_has_no_form() -> None:
    assert compile_alone(draw({}, "start > nowhere")).graph is None


def test_the_size_of_a_group_is_known_unless_it_is_made_of_a_list() -> None:
    target = GroupTarget(target_agent_slug="worker")
    assert SpawnGroupConfig(targets=(target, target)).size == 2
    assert SpawnGroupConfig(targets=(target,), for_each="input.items").size is None
