"""What an expression may do: enough for any graph, and not so much that it takes the process down."""

import json
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.graph.expressions import MAX_BYTES, MAX_DEPTH, BeyondBoundsError, check, evaluate
from kernel.graph.spec import MAX_GROUP
from tests.graphs import ended, graph, graph_agent, node, start
from tests.kit import Kit

DOCUMENT = {"a": 'x"y', "items": list(range(100)), "big": "x" * 100_000, "words": ["x"] * 10_000}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "expression",
    [
        "|".join(["[@, @]"] * 33),
        "|".join(["[@, @][]"] * 28),
        "|".join(["{a: @, b: @}"] * 18),
        "|".join(["to_string([@, @])"] * 22),
        "items | " + "|".join(["[@, @][]"] * 16) + " | [?@ > `1`]",
        "join(big, words)",
        "to_number('1" + "0" * 40 + "')",
    ],
)
def test_what_grows_without_measure_is_refused(expression: str) -> None:
    with pytest.raises(BeyondBoundsError):
        evaluate(expression, DOCUMENT)


def test_a_group_of_the_largest_size_is_mapped() -> None:
    given_items = [{"name": f"n{number}", "ok": number % 2 == 0, "tags": ["a", "b"]} for number in range(MAX_GROUP)]
    mapped = evaluate(
        "input.items[?ok == `true` && contains(tags, 'a')].{name: name, first: tags[0], both: join('-', tags)}",
        {"input": {"items": given_items}},
    )
    assert len(mapped) == MAX_GROUP / 2
    assert mapped[1] == {"name": "n2", "first": "a", "both": "a-b"}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
expressions = st.sampled_from(
    [
        "a",
        "a.b",
        "[*].a",
        "[].b",
        "a[?b]",
        "{x: a, y: b}",
        "[a, b]",
        "to_string(a)",
        "type(@)",
        "a || b",
        "!a",
        "a[-1:]",
    ]
)


@given(values, expressions, expressions)
def test_within_the_bounds_it_is_jmespath(value: Any, first: str, second: str) -> None:
    expression = f"{first} | {second}"
    assert evaluate(expression, value) == jmespath.search(expression, value)


def test_what_can_be_kept_is_measured_once_for_each_place_it_is_in() -> None:
    check(nested(MAX_DEPTH))
    with pytest.raises(BeyondBoundsError, match="nested"):
        check(nested(MAX_DEPTH + 1))
    shared = "x" * (MAX_BYTES // 4)
    check([shared, shared, shared])
    with pytest.raises(BeyondBoundsError, match="larger"):
        check([shared, shared, shared, shared])


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("|".join(["[@, @]"] * 33), "expression_beyond_bounds"),
        ("|".join(["[@, @][]"] * 28), "expression_beyond_bounds"),
    ],
)
async def test_a_graph_that_grows_without_measure_fails(kit: Kit, expression: str, code: str) -> None:
    definition = graph(
        [node("grow", "transform", expressions={"it": f"input | {expression}"[:1_000]})], "start -> grow", "grow -> end"
    )
    finished = await ended(kit, (await start(kit, await graph_agent(kit, definition), {"a": 1})).run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", code), json.dumps(finished)


@pytest.mark.parametrize("literal", ['`"\\ud800"`', '`{"\\udfff": 1}`', "to_number('1" + "0" * 30 + "')"])
async def test_a_value_that_nothing_can_keep_fails_the_run_at_once(kit: Kit, literal: str) -> None:
    definition = graph([node("odd", "transform", expressions={"it": literal})], "start -> odd", "odd -> end")
    finished = await ended(kit, (await start(kit, await graph_agent(kit, definition))).run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", "expression_beyond_bounds"), finished


async def test_a_cycle_that_doubles_its_output_fails_before_it_is_too_large(kit: Kit) -> None:
    definition = graph(
        [
            node("grow", "transform", expressions={"it": "[nodes.grow.it, nodes.grow.it, input]"}),
            node("on", "if_else", conditions=[{"name": "never", "expression": "input.never"}]),
        ],
        "start -> grow",
        "grow -> on",
        "on:never -> end",
        "on:else -> grow",
    )
    finished = await ended(kit, (await start(kit, await graph_agent(kit, definition), {"a": 1})).run_id)
    assert (finished["status"], finished["error"]["node_id"]) == ("failed", "grow"), finished
