"""Scopes: opaque names that only ever shrink on the way down a tree."""

import re
from collections.abc import Iterable

# OAuth 2.0 scope tokens (RFC 6749, section 3.3) without the wildcard: a star is a grant to delegate, never a scope.
SCOPE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@#+=~-]{0,127}$"
SCOPE = re.compile(SCOPE_PATTERN)
ANY_SCOPE = "*"


def normalise(scopes: Iterable[str]) -> tuple[str, ...]:
    """The scopes sorted, each once: the form in which they are stored, compared and signed."""
    return tuple(sorted(set(scopes)))
