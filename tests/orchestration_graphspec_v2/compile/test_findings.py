"""Each finding of the compiler itself, in a graph that has it and in a neighbour that does not."""

import itertools
from typing import Any

import pytest

from kernel.graph.compiler import compile_alone
from kernel.graph.diagnostics import Code, Severity
from kernel.graph.spec import MAX_EDGES, MAX_NODES
from tests.orchestration_graphspec_v2.compile.drafts import (
    JOINED,
    RUN,
    cut,
    draw,
    errors,
    group,
    line,
    node,
    spawn,
)

PLAIN = draw({}, "start > end")
ROUTER = node("router", routes=[{"name": "denied"}])
CHOICE = node("if_else", conditions=[{"name": "big", "expression": "input.n > `3`"}])
JOIN_LEFT = [f"j.{handle} > end" for handle in JOINED]
GROUP_AND_JOIN = ("start > g", "g > j")


def joined(join: dict[str, Any], *, of: dict[str, Any]) -> dict[str, Any]:
    return draw({"g": of, "j": join}, *GROUP_AND_JOIN, *JOIN_LEFT)


def with_edge(**edge: Any) -> dict[str, Any]:
    return {**PLAIN, "edges": [*PLAIN["edges"], {"id": "more", "source": "start", "target": "end", **edge}]}


# By code: a graph with the finding, where it says it is, and a neighbour without. `anywhere` where that is no place.
CASES: dict[Code, list[tuple[Any, str | None, str | None, Any]]] = {
    Code.GRAPH_MISSING: [(None, None, None, PLAIN)],
    Code.GRAPH_MALFORMED: [
        ([], None, None, PLAIN),
        ({**PLAIN, "edges": None}, None, None, PLAIN),
        ({**PLAIN, "nodes": {}}, None, None, PLAIN),
    ],
    Code.GRAPH_TOO_LARGE: [
        (
            draw({f"n{n}": node("transform") for n in range(MAX_NODES - 1)}, "start > end"),
            None,
            None,
            draw({f"n{n}": node("parallel") for n in range(98)}, "start > end", *(f"start > n{n}" for n in range(98))),
        ),
        (draw({}, *["start > end"] * (MAX_EDGES + 1)), None, None, draw({}, *["start > end"] * MAX_EDGES)),
    ],
    Code.UNSUPPORTED_SPEC_VERSION: [
        (draw({}, "start > end", version=version), None, None, draw({}, "start > end", version=good))
        for version, good in (("3.0", "2.0"), (2.0, "2.0"), (None, "1.0"), ("", "1.0"), (["2.0"], "2.0"))
    ],
    Code.ORCHESTRATION_NODE_REQUIRES_V2: [
        ({**line(spawn()), "spec_version": "1.0"}, "n0", None, line(spawn())),
        ({**line(node("cancel_subtree", run_id=RUN)), "spec_version": "1.0"}, "n0", None, {**line(CHOICE)}),
    ],
    Code.NODE_INVALID: [
        ({**PLAIN, "nodes": [*PLAIN["nodes"], {"type": "transform"}]}, None, None, PLAIN),
        ({**PLAIN, "nodes": [*PLAIN["nodes"], {"id": 5, "type": "transform"}]}, None, None, PLAIN),
        (draw({"n": {"type": "transform", "config": []}}, "start > n", "n > end"), "n", None, line(node("transform"))),
        (draw({"n": {"type": "transform", "input_mappings": 1}}, "start > n", "n > end"), "n", None, PLAIN),
    ],
    Code.EDGE_INVALID: [
        ({**PLAIN, "edges": [*PLAIN["edges"], {"id": "x", "source": "start"}]}, None, "x", PLAIN),
        ({**PLAIN, "edges": [*PLAIN["edges"], "start > end"]}, None, None, PLAIN),
        (with_edge(source_handle=1), None, "more", with_edge(source_handle=None, target_handle=1, label=2)),
    ],
    Code.UNKNOWN_NODE_TYPE: [(line(node("spawn_many")), "n0", None, line(group()))],
    Code.NODE_CONFIG_INVALID: [
        (line(spawn(retries=3)), "n0", None, line(spawn(timeout_s=3))),
        (line(spawn(timeout_s=0)), "n0", None, line(spawn(timeout_s=1))),
        (line(spawn(timeout_s=True)), "n0", None, line(spawn(timeout_s=1))),
        (line(spawn(target_agent_id=RUN)), "n0", None, line(spawn(target_agent_id=RUN, target_agent_slug=None))),
        (line(spawn(scope_subset=["*"])), "n0", None, line(spawn(scope_subset=["a:b"]))),
        (line(spawn(failure_policy="quorum")), "n0", None, line(spawn(failure_policy="fail_fast"))),
        (line(group(2, for_each="input.items")), "n0", None, line(group(1, for_each="input.items"))),
        (line(group(1, for_each="input[")), "n0", None, line(group(1, for_each="input"))),
        (line(node("transform", expressions={"a": "("})), "n0", None, line(node("transform", expressions={"a": "b"}))),
        (
            line(node("transform", expressions={"a": "(" * 101 + "a" + ")" * 101})),
            "n0",
            None,
            line(node("transform", expressions={"a": "(" * 99 + "a" + ")" * 99})),
        ),
        (
            line(node("transform", expressions={"a": "a" + "|a" * 100})),
            "n0",
            None,
            line(node("transform", expressions={"a": "a" + "|a" * 99})),
        ),
        (
            line(node("transform", expressions={"a": "!" * 999})),
            "n0",
            None,
            line(node("transform", expressions={"a": "!" * 198 + "a"})),
        ),
        (line(node("tool_call")), "n0", None, line(node("tool_call", tool_slug="search", input={"q": None}))),
        (line(node("router", routes=[])), "n0", None, line(ROUTER)),
        (line(node("router", routes=[{"name": "default"}])), "n0", None, line(ROUTER)),
        (line(node("router", routes=[{"name": "a"}, {"name": "a"}])), "n0", None, line(ROUTER)),
        (line(node("if_else", conditions=[{"name": "else", "expression": "a"}])), "n0", None, line(CHOICE)),
        (
            line(group(), node("join"), node("judge", outcomes=["good", "bad"], pass_outcome="fine")),
            "n2",
            None,
            line(group(), node("join"), node("judge", outcomes=["good", "bad"], pass_outcome="good")),
        ),
        (
            line(node("cancel_subtree", run_id=RUN, grace_s=3_601)),
            "n0",
            None,
            line(node("cancel_subtree", run_id=RUN, grace_s=3_600)),
        ),
        (line(node("transform", {"a": "a["})), "n0", None, line(node("transform", {"a": "a[0]"}))),
        (
            line(node("replan", {"run": "input.run_id"}, run_id=RUN)),
            "n0",
            None,
            line(node("replan", {"run_id": "input.run_id"})),
        ),
    ],
    Code.DUPLICATE_NODE_ID: [
        ({**PLAIN, "nodes": [*PLAIN["nodes"], {"id": "end", "type": "end"}]}, "end", None, PLAIN),
    ],
    Code.DUPLICATE_EDGE_ID: [(with_edge(id="e0"), None, "e0", with_edge(id="e1"))],
    Code.DANGLING_EDGE: [
        (draw({}, "start > end", "start > nowhere"), None, "e1", PLAIN),
        (draw({}, "start > end", "nowhere > end"), None, "e1", PLAIN),
    ],
    Code.MISSING_BRANCH_HANDLE: [
        (cut(joined(node("join"), of=group()), "e6"), "j", None, joined(node("join"), of=group())),
        (draw({"r": ROUTER}, "start > r", "r.denied > end"), "r", None, line(ROUTER)),
        (draw({"c": CHOICE}, "start > c", "c.big > end"), "c", None, line(CHOICE)),
        (cut(line(node("replan", run_id=RUN)), "e2"), "n0", None, line(node("replan", run_id=RUN))),
        (
            cut(line(group(), node("join"), node("judge")), "e7"),
            "n2",
            None,
            line(group(), node("join"), node("judge")),
        ),
    ],
    Code.INVALID_BRANCH_HANDLE: [
        (
            draw({"r": ROUTER}, "start > r", "r.denied > end", "r.default > end", "r.lost > end"),
            "r",
            "e3",
            line(ROUTER),
        ),
        (draw({"r": ROUTER}, "start > r", "r.denied > end", "r.default > end", "r > end"), "r", "e3", line(ROUTER)),
        (draw({}, "start.completed > end"), "start", "e0", draw({}, "start.output > end")),
        (draw({"t": node("transform")}, "start > t", "start > end", "end > t"), "end", "e2", line(node("transform"))),
    ],
    Code.DUPLICATE_BRANCH_HANDLE: [
        (
            draw(
                {"r": ROUTER, "t": node("transform")}, "start > r", "r.denied > end", "r.default > t", "r.default > end"
            ),
            "r",
            "e3",
            draw(
                {"r": ROUTER, "p": node("parallel"), "t": node("transform")},
                "start > r",
                "r.denied > end",
                "r.default > p",
                "p > t",
                "p > end",
            ),
        ),
    ],
    Code.NO_START: [
        ({"spec_version": "2.0", "nodes": [], "edges": []}, None, None, PLAIN),
        ({**PLAIN, "nodes": [{"id": "start", "type": "transform"}, {"id": "end", "type": "end"}]}, None, None, PLAIN),
    ],
    Code.SEVERAL_STARTS: [(draw({"two": node("input")}, "start > end", "two > end"), "two", None, PLAIN)],
    Code.NO_END: [
        ({**PLAIN, "nodes": [{"id": "start", "type": "start"}], "edges": []}, None, None, PLAIN),
        (
            draw(
                {"a": node("transform"), "b": node("transform"), "c": CHOICE},
                *("start > c", "c.big > a", "c.else > end", "a > b", "b > a"),
            ),
            "a",
            None,
            draw({"a": CHOICE, "b": node("transform")}, "start > a", "a.big > b", "b > a", "a.else > end"),
        ),
    ],
    Code.UNREACHABLE_NODE: [
        (draw({"t": node("transform")}, "start > end", "t > end"), "t", None, line(node("transform"))),
        (draw({"t": node("transform")}, "start > end", "t > t"), "t", None, line(node("transform"))),
    ],
    Code.SPAWN_IN_CYCLE: [
        (
            draw({"s": spawn(), "r": ROUTER}, "start > s", "s > r", "r.denied > s", "r.default > end"),
            "s",
            None,
            draw(
                {"s": spawn(), "t": spawn(), "r": ROUTER},
                "start > s",
                "s > r",
                "r.denied > t",
                "t > end",
                "r.default > end",
            ),
        ),
        (
            draw({"g": group(), "j": node("join")}, *GROUP_AND_JOIN, *JOIN_LEFT[:4], "j.pending > g"),
            "g",
            None,
            draw({"g": group(), "j": node("join")}, *GROUP_AND_JOIN, *JOIN_LEFT[:4], "j.pending > j"),
        ),
    ],
    Code.SPAWN_WITHOUT_TARGET: [
        (line(spawn(target_agent_slug=None)), "n0", None, line(spawn())),
        (line(group(0)), "n0", None, line(group(1))),
        (line(group(targets=[{"mapped_input_payload": {}}])), "n0", None, line(group(1))),
        (line(group(0, for_each="input.items")), "n0", None, line(group(1, for_each="input.items"))),
    ],
    Code.SCOPE_REQUIRED: [
        (line(spawn(scope_subset=[])), "n0", None, line(spawn())),
        (line(node("spawn_group", targets=[{"target_agent_slug": "worker"}])), "n0", None, line(group())),
    ],
    Code.UNKNOWN_JOIN_MODE: [
        (joined(node("join", mode="most"), of=group()), "j", None, joined(node("join", mode="all"), of=group())),
        (line(group(join_mode="most")), "n0", None, line(group(join_mode="first_success"))),
        (line(group(join_mode=1)), "n0", None, line(group())),
    ],
    Code.QUORUM_MISSING: [
        (line(group(join_mode="quorum")), "n0", None, line(group(join_mode="quorum", quorum_threshold=1))),
        (
            joined(node("join", mode="quorum"), of=group()),
            "j",
            None,
            joined(node("join", mode="quorum"), of=group(quorum_threshold=2)),
        ),
    ],
    Code.QUORUM_BELOW_ONE: [
        (line(group(quorum_threshold=0)), "n0", None, line(group(quorum_threshold=1))),
        (
            joined(node("join", mode="quorum", quorum_threshold=-1), of=group()),
            "j",
            None,
            joined(node("join", mode="quorum", quorum_threshold=1), of=group()),
        ),
    ],
    Code.QUORUM_ABOVE_GROUP: [
        (line(group(2, quorum_threshold=3)), "n0", None, line(group(3, quorum_threshold=3))),
        (
            joined(node("join", quorum_threshold=3), of=group(2)),
            "j",
            None,
            joined(node("join", quorum_threshold=3), of=group(1, for_each="input")),
        ),
        (
            # The larger group is not the latest any more.
            line(group(9), group(2), node("join", mode="quorum", quorum_threshold=3)),
            "n2",
            None,
            line(group(2), group(9), node("join", mode="quorum", quorum_threshold=3)),
        ),
    ],
    Code.JOIN_WITHOUT_GROUP: [
        (line(node("join")), "n0", None, line(node("join", orchestration_group_id=RUN))),
        (line(spawn(), node("join")), "n1", None, line(group(), node("transform"), node("join"))),
        (line(node("join"), group()), "n0", None, line(node("join", {"orchestration_group_id": "input.group"}))),
    ],
    Code.JUDGE_WITHOUT_SOURCE: [
        (line(node("judge")), "n0", None, line(node("replan", run_id=RUN), node("judge"))),
        (line(group(), node("judge")), "n1", None, line(group(), node("join"), node("judge"))),
    ],
    Code.REPLAN_WITHOUT_SOURCE: [
        (line(node("replan")), "n0", None, line(node("replan", run_id=RUN))),
        (line(node("transform"), node("replan")), "n1", None, line(spawn(), node("replan"))),
    ],
    Code.CANCEL_WITHOUT_SOURCE: [
        (line(node("cancel_subtree")), "n0", None, line(node("cancel_subtree", run_id=RUN))),
        (line(node("cancel_subtree"), spawn()), "n0", None, line(spawn(), node("cancel_subtree"))),
        (line(node("cancel_subtree")), "n0", None, line(node("cancel_subtree", {"run_id": "input.run_id"}))),
    ],
}
# These are found with the catalog at hand: see test_compile_calls.py.
WITH_A_SERVICE = {Code.TARGET_NOT_FOUND, Code.POLICY_DENIED}


@pytest.mark.parametrize(
    ("code", "bad", "node_id", "edge_id", "good"),
    [
        pytest.param(code, *case, id=f"{code}-{number}")
        for code, cases in CASES.items()
        for number, case in enumerate(cases)
    ],
)
def test_a_graph_with_the_fault_is_told_so_and_its_neighbour_is_not(
    code: Code, bad: Any, node_id: str | None, edge_id: str | None, good: Any
) -> None:
    compiled = compile_alone(bad)
    assert not compiled.valid
    found = [finding for finding in compiled.diagnostics if finding.code == code]
    assert (node_id, edge_id) in [(finding.node_id, finding.edge_id) for finding in found], compiled.diagnostics
    assert all(finding.severity is Severity.ERROR and finding.message for finding in found)
    assert errors(good) == []
    assert compile_alone(good).graph is not None


def test_every_code_has_a_case() -> None:
    assert set(CASES) == set(Code) - WITH_A_SERVICE


def test_everything_is_told_at_once() -> None:
    document = draw(
        {
            "s": spawn(scope_subset=[], colour="red", timeout_s=0),
            "j": node("join", mode="some"),
            "lost": node("nothing"),
        },
        *("start > s", "s > j", "j.completed > nowhere", "j.perhaps > end"),
        version="9",
    )
    assert set(errors(document)) == {
        "unsupported_spec_version",
        "node_config_invalid",
        "scope_required",
        "join_without_group",
        "unknown_join_mode",
        "unknown_node_type",
        "dangling_edge",
        "invalid_branch_handle",
        "missing_branch_handle",
        "unreachable_node",
    }
    fields = [finding.field for finding in compile_alone(document).diagnostics if finding.code == "node_config_invalid"]
    assert fields == ["config.colour", "config.timeout_s"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (line(node("spawn_run", colour="red")), ["node_config_invalid", "scope_required", "spawn_without_target"]),
        (
            line(node("spawn_group", join_mode="most", quorum_threshold=0)),
            ["quorum_below_one", "scope_required", "spawn_without_target", "unknown_join_mode"],
        ),
        (
            line(group(2, join_mode="most"), node("join", mode="quorum", quorum_threshold=3)),
            ["quorum_above_group", "unknown_join_mode"],
        ),
        (joined(node("join", mode="most"), of=spawn()), ["join_without_group", "unknown_join_mode"]),
        (line(node("spawn_group", targets=[{"colour": "red"}], scope_subset=["read"])), ["node_config_invalid"]),
        (line(spawn(target_agent_slug="No Slug")), ["node_config_invalid"]),
        (line(spawn(scope_subset=["*"])), ["node_config_invalid"]),
        (line(group(2, quorum_threshold="2"), node("join", mode="quorum")), ["node_config_invalid"]),
        (line(node("join", orchestration_group_id="no id")), ["node_config_invalid"]),
        (line(node("join", {"orchestration_group_id": "nodes["})), ["node_config_invalid"]),
        (line(node("cancel_subtree", run_id="no id")), ["node_config_invalid"]),
        (
            draw(
                {"g": group(), "j": node("join"), "u": node("judge", outcomes="good")},
                *("start > g", "g > j", *(f"j.{handle} > u" for handle in JOINED), "u.good > end"),
            ),
            ["node_config_invalid"],
        ),
    ],
)
def test_what_cannot_be_read_hides_nothing_and_makes_nothing_up(document: dict[str, Any], expected: list[str]) -> None:
    assert sorted(errors(document)) == expected


def test_an_edge_without_its_own_id_leads_where_it_leads() -> None:
    plain = draw({"t": node("transform")}, "start > t", "t > end")
    first, second = plain["edges"]
    assert errors({**plain, "edges": [first, {**second, "id": first["id"]}]}) == ["duplicate_edge_id"]
    assert errors({**plain, "edges": [first, {**second, "id": None}]}) == ["edge_invalid"]
    assert errors({**plain, "edges": [first, second, second]}) == ["duplicate_edge_id"]
    twice = joined(node("join"), of=group())
    assert errors({**twice, "edges": [*twice["edges"], twice["edges"][-1]]}) == ["duplicate_edge_id"]


def test_a_message_names_the_node_the_field_and_what_was_observed() -> None:
    (finding,) = [finding for finding in compile_alone(line(spawn(timeout_s=0))).diagnostics if finding.field]
    assert "'n0'" in finding.message
    assert "config.timeout_s" in finding.message
    assert "0" in finding.message


def test_the_answer_does_not_depend_on_the_order_of_nodes_and_edges() -> None:
    document = draw({"s": spawn(scope_subset=[]), "j": node("join")}, "start > s", "s > j", "j.completed > end")
    turned = {**document, "nodes": document["nodes"][::-1], "edges": document["edges"][::-1]}
    assert compile_alone(document) == compile_alone(turned)


def test_a_long_way_round_is_no_matter_of_recursion() -> None:
    count = MAX_NODES - 2
    names = ["start", *(f"n{n}" for n in range(count)), "end"]
    edges = [f"{source} > {target}" for source, target in itertools.pairwise(names)]
    document = draw({name: node("transform") for name in names[1:-1]}, *edges, f"n{count - 1} > n0")
    assert compile_alone(document).valid


def test_a_spawn_where_ways_meet_and_part_is_in_no_cycle() -> None:
    document = draw(
        {"p": node("parallel"), "a": spawn(), "b": spawn(), "c": spawn()},
        *("start > p", "p > a", "p > b", "a > c", "b > c", "c > end"),
    )
    assert errors(document) == []


def test_what_cannot_be_known_without_a_service_is_deferred() -> None:
    compiled = compile_alone(line(spawn()))
    assert compiled.valid
    assert {finding.severity for finding in compiled.diagnostics} == {Severity.DEFERRED}
    assert {(finding.code, finding.node_id) for finding in compiled.diagnostics} == {
        ("surface_disabled", None),
        ("max_children_total_exceeded", None),
        ("scope_exceeds_policy", "n0"),
        ("max_depth_exceeded", "n0"),
        ("max_fanout_exceeded", "n0"),
        ("target_not_allowlisted", "n0"),
        ("target_not_published", "n0"),
        ("target_not_found", "n0"),
    }


def test_a_quorum_of_a_group_of_unknown_size_is_deferred() -> None:
    compiled = compile_alone(line(group(1, for_each="input.items", join_mode="quorum", quorum_threshold=4)))
    assert compiled.valid
    assert "quorum_above_group" in [finding.code for finding in compiled.diagnostics]
