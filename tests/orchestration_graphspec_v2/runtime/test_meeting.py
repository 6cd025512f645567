"""Where ways meet that a graph has parted, it goes on once; told by walking the graph step by step."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.graph.flow import Flow
from kernel.graph.ir import Graph, GraphNode, build
from kernel.graph.reading import read_spec
from kernel.graph.spec import NodeType, TransformConfig
from kernel.graph.state import Frontier, Ways
from tests.graphs import graph, node

MAX_STEPS = 100


def walk(definition: dict[str, Any], takes: dict[str, str] | None = None) -> Counter[str]:
    """How often each node is executed; `takes` names the way out of nodes that branch."""
    spec, findings = read_spec(definition)
    assert not findings
    compiled = build(spec)
    ways, visits = Ways(compiled), Counter[str]()
    here: Frontier = {"step": 0, "nodes": [compiled.entry], "parked": []}
    for step in range(1, MAX_STEPS):
        following: set[str] = set()
        parked: set[str] = set()
        for node_id in here["nodes"]:
            if ways.must_wait(node_id, here):
                parked.add(node_id)
                continue
            visits[node_id] += 1
            following |= set(compiled.routes.get(node_id, {}).get((takes or {}).get(node_id, "next"), ()))
        here = {"step": step, "nodes": sorted(following | parked), "parked": sorted(parked)}
        if not here["nodes"]:
            return visits
    raise AssertionError(f"the walk does not end: {here}")


def plain(*names: str) -> list[dict[str, Any]]:
    return [node(name, "transform", expressions={}) for name in names]


def test_ways_of_different_lengths_meet_once() -> None:
    definition = graph(
        [node("part", "parallel"), *plain("a", "b", "c", "d", "meet")],
        "start -> part",
        "part -> a",
        "part -> b",
        "b -> c",
        "c -> d",
        "a -> meet",
        "d -> meet",
        "meet -> end",
    )
    assert set(walk(definition).values()) == {1}


def test_a_parting_within_a_parting_meets_within_it_first() -> None:
    definition = graph(
        [node("part", "parallel"), node("again", "parallel"), *plain("a", "b", "c", "inner", "after", "outer")],
        "start -> part",
        "part -> again",
        "part -> c",
        "again -> a",
        "again -> b",
        "a -> inner",
        "b -> inner",
        "inner -> after",
        "after -> outer",
        "c -> outer",
        "outer -> end",
    )
    visits = walk(definition)
    assert set(visits) == {"start", "part", "again", "a", "b", "c", "inner", "after", "outer", "end"}
    assert set(visits.values()) == {1}


def test_a_way_that_goes_elsewhere_is_not_waited_for() -> None:
    definition = graph(
        [
            node("part", "parallel"),
            node("choice", "if_else", conditions=[{"name": "yes", "expression": "input.yes"}]),
            *plain("a", "b", "elsewhere", "meet"),
            node("other_end", "end"),
        ],
        "start -> part",
        "part -> a",
        "part -> choice",
        "choice:yes -> b",
        "choice:else -> elsewhere",
        "b -> meet",
        "a -> meet",
        "elsewhere -> other_end",
        "meet -> end",
    )
    visits = walk(definition, {"choice": "else"})
    assert (visits["meet"], visits["end"], visits["other_end"]) == (1, 1, 1)


def test_two_that_would_wait_for_each_other_in_a_cycle_do_not() -> None:
    definition = graph(
        [
            node("part", "parallel"),
            node("left", "if_else", conditions=[{"name": "on", "expression": "input.on"}]),
            node("right", "if_else", conditions=[{"name": "on", "expression": "input.on"}]),
        ],
        "start -> part",
        "part -> left",
        "part -> right",
        "left:on -> right",
        "left:else -> end",
        "right:on -> left",
        "right:else -> end",
    )
    visits = walk(definition, {"left": "else", "right": "else"})
    assert visits["end"] == 1
    assert visits["left"] == visits["right"] == 1


@given(st.dictionaries(st.integers(0, 8), st.sets(st.integers(0, 8), max_size=3), min_size=1))
def test_a_node_leads_to_those_that_a_walk_from_it_comes_to(drawn: dict[int, set[int]]) -> None:
    names = {f"n{one}": [f"n{target}" for target in sorted(drawn.get(one, ()))] for one in range(9)}
    nodes = {name: GraphNode(name, NodeType.TRANSFORM, TransformConfig(), {}) for name in names}
    routes = {name: {"next": tuple(targets)} for name, targets in names.items()}
    ways, flow = Ways(Graph("2.0", nodes, "n0", (), routes, "")), Flow(names)
    for name in names:
        assert {target for target in names if ways.leads(name, target)} == flow.after([name])


@pytest.mark.parametrize("width", [2, 7])
def test_many_ways_meet_at_the_end_once(width: int) -> None:
    names = [f"w{number}" for number in range(width)]
    edges = ["start -> part", *(f"part -> {name}" for name in names), *(f"{name} -> end" for name in names)]
    assert set(walk(graph([node("part", "parallel"), *plain(*names)], *edges)).values()) == {1}
