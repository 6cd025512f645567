"""Masking what a decision's record must not keep: secrets, and the payloads of agents."""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import cast

from pydantic import JsonValue

MASK = "***"

# A name is masked when one of its words is among these: `access_token`, `clientSecret`, `X-Api-Key`, but not
# `tokenizer`. `key` alone is no secret: `idempotency_key` and `spawn_key` are what a record is looked up by.
_WORDS = frozenset({
    "apikey", "assertion", "auth", "authorization", "bearer", "body", "cookie", "cookies", "credential", "credentials",
    "input", "inputs", "jwt", "output", "outputs", "passphrase", "passwd", "password", "passwords", "payload",
    "payloads", "pwd", "secret", "secrets", "signature", "token", "tokens",
})  # fmt: skip
_PAIRS = frozenset({"api key", "access key", "private key", "signing key", "encryption key"})

_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")


def mask(document: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Copy a JSON object with the value of every secret or payload-like key replaced, at any depth.

    The keys stay, so that a reader sees that something was there; null stays null, so that absence stays visible.
    """
    return cast("dict[str, JsonValue]", _masked(dict(document)))


def needs_mask(schema: JsonValue) -> bool:
    """Tell whether a document of this JSON schema can have anything to mask.

    It can where a member has such a name, and where an object may have members of any name.
    """
    if isinstance(schema, list):
        return any(map(needs_mask, schema))
    if not isinstance(schema, dict):
        return False
    if schema.get("type") == "object":
        properties = schema.get("properties")
        if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
            return True
        if any(map(is_masked, properties)):
            return True
    return any(map(needs_mask, schema.values()))


@lru_cache(maxsize=4096)
def is_masked(name: str) -> bool:
    """Tell whether the value under this key is not to be kept."""
    words = [word.lower() for word in _BOUNDARY.split(name) if word]
    return not _WORDS.isdisjoint(words) or any(" ".join(pair) in _PAIRS for pair in pairwise(words))


def _masked(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {
            name: MASK if member is not None and is_masked(name) else _masked(member) for name, member in value.items()
        }
    if isinstance(value, list):
        return [_masked(member) for member in value]
    return value
