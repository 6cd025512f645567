"""JMESPath, within bounds: an expression is somebody else's program, and it runs in our process.

The language cannot loop, but it can double what it is given (`[@, @]`) once for each step of a pipe. So what it may do
is counted while it runs, and what comes of it is measured before anybody copies it.
"""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jmespath
from jmespath import functions
from jmespath.visitor import TreeInterpreter

if TYPE_CHECKING:
    from jmespath.visitor import _TreeNode

# A list of 10,000 items takes 20 to 50 evaluations for each; this is a few tenths of a second.
MAX_EVALUATIONS = 500_000
MAX_ITEMS = 1_000_000
# Of a value as JSON, roughly.
MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 200
LEAST_INTEGER, GREATEST_INTEGER = -(2**63), 2**64 - 1

_ITEM_BYTES = 16


class BeyondBoundsError(Exception):
    """An expression that does too much, or a value that is too large to be kept."""


def evaluate(expression: str, document: object) -> Any:
    """The value of an expression.

    Raises:
        BeyondBoundsError: when it is beyond our bounds.
        JMESPathError, TypeError, ValueError: when it cannot be computed of what is there.
    """
    try:
        value = _Bounded().visit(_parsed(expression), document)
    except RecursionError:
        raise BeyondBoundsError("it is nested too deeply") from None
    check(value)
    return value


def check(value: object) -> None:
    """See that a value can be kept.

    Raises:
        BeyondBoundsError: when it cannot.
    """
    size, open_values = 0, [(value, 0)]
    while open_values:
        one, depth = open_values.pop()
        size += _ITEM_BYTES
        if isinstance(one, str):
            _check_text(one)
            size += len(one)
        elif isinstance(one, dict | list | tuple):
            if depth == MAX_DEPTH:
                raise BeyondBoundsError(f"the value is nested more than {MAX_DEPTH} deep")
            # So that what is counted next is not many times what may be.
            if size + len(one) * _ITEM_BYTES > MAX_BYTES:
                size = MAX_BYTES + 1
            elif isinstance(one, dict):
                for name in one:
                    _check_text(name)
                    size += len(name)
                open_values.extend((item, depth + 1) for item in one.values())
            else:
                open_values.extend((item, depth + 1) for item in one)
        elif isinstance(one, int) and not LEAST_INTEGER <= one <= GREATEST_INTEGER:
            raise BeyondBoundsError("a number is beyond 64 bits")
        if size > MAX_BYTES:
            raise BeyondBoundsError(f"the value is larger than {MAX_BYTES} bytes")


def _check_text(text: str) -> None:
    # JSON can write down half a character, as `"\ud800"`; nothing can keep it.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BeyondBoundsError("a text has half a character") from None


@lru_cache(maxsize=4_096)
def _parsed(expression: str) -> Any:
    return jmespath.compile(expression).parsed


class _Functions(functions.Functions):
    """The functions of JMESPath; those that build strings look first."""

    @functions.signature({"types": []})
    def _func_to_string(self, value: object) -> str:
        check(value)
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, parts: list[str]) -> str:
        if sum(map(len, parts)) + len(separator) * len(parts) > MAX_BYTES:
            raise BeyondBoundsError(f"the value is larger than {MAX_BYTES} bytes")
        return separator.join(parts)


_OPTIONS = jmespath.Options(custom_functions=_Functions())


class _Bounded(TreeInterpreter):
    """Evaluates one expression once."""

    def __init__(self) -> None:
        super().__init__(_OPTIONS)
        self._left = MAX_EVALUATIONS

    def visit(self, node: "_TreeNode", *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise BeyondBoundsError(f"it takes more than {MAX_EVALUATIONS} evaluations")
        return super().visit(node, *args, **kwargs)

    def visit_flatten(self, node: "_TreeNode", value: Any) -> Any:
        flat = super().visit_flatten(node, value)
        if flat is not None and len(flat) > MAX_ITEMS:
            raise BeyondBoundsError(f"a list has more than {MAX_ITEMS} items")
        return flat
