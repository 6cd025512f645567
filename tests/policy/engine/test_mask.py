"""Masking keeps the shape of a document and nothing that is secret."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, JsonValue

from kernel.policy.mask import MASK, is_masked, mask, needs_mask
from tests.policy.engine.questions import replan, spawn

SECRET_KEYS = st.sampled_from([
    "token", "Token", "accessToken", "access_token", "X-Auth-Token", "run_token", "password", "db.password", "secret",
    "clientSecret", "CLIENT_SECRET", "Authorization", "payload", "mapped_input_payload", "input", "inputPayload",
    "apiKey", "api_key", "X-API-Key", "APIKey", "private_key", "credentials", "cookie", "HTTPAuthorization",
])  # fmt: skip
PLAIN_KEYS = st.sampled_from(["action", "idempotency_key", "spawn_key", "tokenizer", "depth", "scopes", "author", ""])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)


def documents(keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, JsonValue]]:
    values: st.SearchStrategy[JsonValue] = st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
    )
    return st.dictionaries(keys, values, max_size=5)


def secrets_of(value: JsonValue) -> list[JsonValue]:
    """What stands under keys that are to be masked, outermost first."""
    if isinstance(value, list):
        return [found for member in value for found in secrets_of(member)]
    if isinstance(value, dict):
        return [
            found for name, member in value.items() for found in ([member] if is_masked(name) else secrets_of(member))
        ]
    return []


@given(SECRET_KEYS)
def test_a_secrets_name_is_known(name: str) -> None:
    assert is_masked(name)


@given(PLAIN_KEYS)
def test_a_plain_name_is_left(name: str) -> None:
    assert not is_masked(name)


@given(documents(SECRET_KEYS | PLAIN_KEYS))
def test_under_a_secret_key_nothing_but_the_mask_is_left(document: dict[str, JsonValue]) -> None:
    assert all(found in (MASK, None) for found in secrets_of(mask(document)))
    assert len(secrets_of(mask(document))) == len(secrets_of(document))


@given(documents(PLAIN_KEYS))
def test_a_document_without_secrets_is_the_same(document: dict[str, JsonValue]) -> None:
    assert mask(document) == document


@given(documents(SECRET_KEYS | PLAIN_KEYS))
def test_masking_is_idempotent_and_leaves_its_argument_alone(document: dict[str, JsonValue]) -> None:
    before = copy.deepcopy(document)
    masked = mask(document)
    assert document == before
    assert mask(masked) == masked


@given(st.text(min_size=6, max_size=20), SECRET_KEYS, st.lists(PLAIN_KEYS, max_size=6))
def test_a_secret_is_found_at_any_depth(secret: str, name: str, path: list[str]) -> None:
    value: JsonValue = {name: f"<<{secret}>>"}
    for step in path:
        value = {step: [value]}
    assert f"<<{secret}>>" not in json.dumps(mask({"facts": value}), ensure_ascii=False)


@pytest.mark.parametrize("question", [spawn(), replan(failed=1)])
def test_the_facts_of_a_question_are_all_kept(question: object) -> None:
    document = question.model_dump(mode="json", exclude_none=True)  # type: ignore[attr-defined]
    assert mask(document) == document


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Plain(_Closed):
    slug: str
    scopes: tuple[str, ...] = ()


class _Secret(_Closed):
    access_token: str


class _Free(_Closed):
    labels: dict[str, str]


class _Outer(_Closed):
    plain: _Plain
    inner: list[_Secret] | None = None


@pytest.mark.parametrize(("model", "needed"), [(_Plain, False), (_Secret, True), (_Free, True), (_Outer, True)])
def test_a_document_needs_a_mask_where_its_schema_leaves_room_for_a_secret(
    model: type[BaseModel], needed: bool
) -> None:
    assert needs_mask(model.model_json_schema(mode="serialization")) == needed


def test_an_open_model_needs_a_mask() -> None:
    assert needs_mask({"type": "object", "properties": {"slug": {"type": "string"}}})
