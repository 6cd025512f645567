"""The schemas of tools: what is wrong is told by its path, and no schema keeps the process busy for long."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kernel.domain.errors import InvalidRequestError
from kernel.tools.schemas import DIALECT, check_instance, check_schema

TWICE = {
    **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
    "d40": {},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, 1.5, 2.0]) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=12,
)
SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {},
            {"type": "integer"},
            {"$ref": "#/$defs/x"},
            {"pattern": "a"},
            {"uniqueItems": True},
            {"minimum": 1},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda s: {"items": s}, inner),
        st.builds(lambda s: {"properties": {"a": s}}, inner),
        st.builds(lambda s: {"not": s}, inner),
        st.builds(lambda s, t: {"anyOf": [s, t]}, inner, inner),
    ),
    max_leaves=6,
)


@given(SCHEMAS, VALUES)
def test_the_verdict_is_the_librarys(schema: dict[str, Any], value: object) -> None:
    schema = {**schema, "$defs": {"x": {"type": "array"}}}
    check_schema(schema, where="input_schema")
    try:
        check_instance(schema, value, where="input")
        valid = True
    except InvalidRequestError:
        valid = False
    assert valid == Draft202012Validator(schema).is_valid(value)


def test_each_finding_has_its_path() -> None:
    schema = {"properties": {"a": {"items": {"type": "string"}}}, "additionalProperties": False}
    with pytest.raises(InvalidRequestError) as raised:
        check_instance(schema, {"a": ["x", 1, 2], "b": 1}, where="input")
    errors = raised.value.members["errors"]
    assert isinstance(errors, list)
    assert sorted(error["field"] for error in errors) == ["input", "input.a[1]", "input.a[2]"]


def test_formats_are_not_judged() -> None:
    check_instance({"format": "date-time"}, "yesterday", where="input")


def test_the_dialect_may_be_named_and_recursion_holds() -> None:
    schema = {"$schema": DIALECT, "properties": {"next": {"$ref": "#"}, "n": {"type": "integer"}}}
    check_schema(schema, where="input_schema")
    check_instance(schema, {"next": {"next": {"n": 1}}}, where="input")
    with pytest.raises(InvalidRequestError, match=r"input\.next\.next\.n: 'x' is not of type"):
        check_instance(schema, {"next": {"next": {"n": "x"}}}, where="input")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$defs": TWICE, "$ref": "#/$defs/d0"}, {}),
        ({"$schema": DIALECT, "$defs": TWICE, "$ref": "#/$defs/d0"}, {}),
        ({"allOf": [{"items": {}}] * 1_000}, list(range(100_000))),
        ({"items": {"allOf": [{"type": "integer"}] * 1_000}}, list(range(10_000))),
    ],
)
@pytest.mark.timeout(20)
def test_a_validation_has_a_budget(schema: dict[str, Any], value: object) -> None:
    check_schema(schema, where="input_schema")
    with pytest.raises(InvalidRequestError, match="takes too long"):
        check_instance(schema, value, where="input")


@pytest.mark.timeout(20)
def test_what_would_take_exponential_or_quadratic_time_elsewhere_does_not_here() -> None:
    check_schema({"pattern": "^(a+)+$"}, where="input_schema")
    with pytest.raises(InvalidRequestError, match="does not match"):
        check_instance({"pattern": "^(a+)+$"}, "a" * 50_000 + "b", where="input")
    check_instance({"uniqueItems": True}, [{"a": n} for n in range(50_000)], where="input")
    heavy = {"items": {"pattern": "[01]*1[01]{1000}$"}}
    check_schema(heavy, where="input_schema")
    with pytest.raises(InvalidRequestError, match="takes too long"):
        check_instance(heavy, ["01" * 5_000] * 50, where="input")


def test_usual_patterns_are_taken_and_huge_ones_refused() -> None:
    uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    for pattern in (uuid, r"^\d{4}-\d{2}-\d{2}$", r"^[^@\s]+@[^@\s]+$", "^(?:[0-9]{1,3}[.]){3}[0-9]{1,3}$"):
        check_schema({"pattern": pattern}, where="input_schema")
    check_instance({"pattern": uuid}, "0193a5e0-7c1f-7b6e-9d43-5a1f4c2b8e70", where="input")
    for pattern in ("(a{1000}){1000}", "a{100000}", "a{" + "9" * 5_000 + "}", "(?=a)", "("):
        with pytest.raises(InvalidRequestError, match="pattern"):
            check_schema({"pattern": pattern}, where="input_schema")
    with pytest.raises(InvalidRequestError, match="at most 32 patterns"):
        check_schema({"allOf": [{"pattern": "a"}] * 33}, where="input_schema")


def test_what_refers_to_itself_without_end_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        check_instance({"$ref": "#"}, {}, where="input")


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a.properties": {"patternProperties": {"(a+)+$": {}}}}},
        {"const": {"patternProperties": {}}, "$ref": "#/const"},
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}},
        {"properties": {"a": {"$id": "https://example.com/a"}}},
        {"properties": {"a": {"$dynamicRef": "#a"}}},
    ],
)
def test_no_way_leads_around_the_bounds(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="not supported"):
        check_schema(schema, where="input_schema")
