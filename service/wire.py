"""The shapes of the wire: request bodies, and answers as JSON."""

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from kernel.domain.scopes import SCOPE_PATTERN, normalise
from service.direct_route import DirectRoute

# orjson writes 254 levels and no more. What is kept is written again within answers, and in what graphs pass on, some
# levels further down: a payload that could be taken but not handed out would hold up every worker that claims it.
MAX_DEPTH = 200
SPARE_DEPTH = 254 - MAX_DEPTH


class Body(BaseModel):
    """The base of request bodies: an unknown field is a mistake, and is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """The base of answers, for the OpenAPI document."""

    model_config = ConfigDict(extra="forbid")


def make_router(tag: str) -> APIRouter:
    """A router for one resource."""
    return APIRouter(tags=[tag], route_class=DirectRoute)


class Json(Response):
    """A JSON answer. Ids, times and enums are rendered as the contract has them."""

    media_type = "application/json"

    def __init__(self, content: object, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: object) -> bytes:
        # str: asyncpg's ids are a subclass of UUID, which orjson does not take for one.
        return orjson.dumps(content, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


def _without_nul(value: str) -> str:
    # PostgreSQL's text holds any character but this one.
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    return value


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    try:
        written = orjson.dumps(value)
        if written.count(b"{") + written.count(b"[") > MAX_DEPTH:
            orjson.dumps(_lowered(value))
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be stored: at most {MAX_DEPTH} levels may be nested") from error
    # The marker may also stand for a backslash followed by u0000, so the strings themselves are looked at.
    if b"\\u0000" in written and _has_nul(value):
        raise ValueError("must not contain the NUL character")
    return value


def _lowered(value: object) -> object:
    """A value further down than any answer holds it."""
    for _ in range(SPARE_DEPTH):
        value = (value,)
    return value


def _not_a_boolean(value: object) -> object:
    # To Python, true is 1: a timeout of one second.
    if isinstance(value, bool):
        raise ValueError("must be a number, not a boolean")  # noqa: TRY004 - pydantic makes a finding of it
    return value


def _has_nul(value: object) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and "\x00" in item:
            return True
        if isinstance(item, dict):
            stack.extend((*item.keys(), *item.values()))
        elif isinstance(item, list):
            stack.extend(item)
    return False


Text = Annotated[str, AfterValidator(_without_nul)]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_without_nul)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_without_nul)]
NodeId = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_without_nul)]
Scope = Annotated[str, StringConstraints(pattern=SCOPE_PATTERN)]
Scopes = Annotated[tuple[Scope, ...], Field(max_length=256), AfterValidator(normalise)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
JsonAny = Annotated[Any, AfterValidator(_storable)]
# Half the range of `integer`, so that no sum of a limit and a counter can overflow.
Limit = Annotated[int, Field(ge=0, le=1_000_000_000), BeforeValidator(_not_a_boolean)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000), BeforeValidator(_not_a_boolean)]
Quorum = Annotated[int, Field(ge=1, le=1_000_000_000), BeforeValidator(_not_a_boolean)]


def run_ids(items: tuple[UUID, ...]) -> list[str]:
    """Ids as the wire shows them."""
    return [str(item) for item in items]
