"""The JSON Schemas of tools' inputs and outputs.

A schema comes from a tenant and runs in this process, so it is held to what ends soon: it refers to nothing outside
itself, its patterns run on an engine that takes linear time, and every validation has a budget.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Any

import orjson
from jsonschema import Draft202012Validator, FormatChecker, validators
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from kernel.domain.errors import InvalidRequestError
from kernel.tools.configs import place

MAX_SCHEMA_BYTES = 32_768
# Compiled anew for each validation, since what a pattern compiles to may be large.
MAX_PATTERNS = 32
MAX_PATTERN_WEIGHT = 20_000
# A step is one keyword at one place, and costs as much more as there is to look at. The budget is some tenths of a
# second.
STEP_COST = 10
ITEM_COST = 5
BUDGET = 2_000_000
MAX_FINDINGS = 20
# `patternProperties` would run on Python's engine, whose time may be exponential; the others reach outside.
DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFUSED = ("patternProperties", "$dynamicRef", "$recursiveRef")

Schema = Mapping[str, Any]
Keyword = Callable[[Validator, Any, Any, Any], Iterator[ValidationError] | None]

REPETITION = re.compile(r"\{(\d{0,6}),?(\d{0,6})\}")
REPEATED_GROUP = re.compile(r"\)\{")


class _OverBudgetError(Exception):
    """A validation takes too long."""


@dataclass(slots=True)
class _Course:
    """What a validation has spent, and the patterns that it has compiled."""

    spent: int = 0
    patterns: dict[str, SchemaValidator] = field(default_factory=dict)

    def spend(self, cost: int) -> None:
        self.spent += cost
        if self.spent > BUDGET:
            raise _OverBudgetError

    def matches(self, pattern: str, text: str) -> bool:
        self.spend(len(text) * max(1, _weight(pattern) // 100))
        compiled = self.patterns.get(pattern)
        if compiled is None:
            compiled = self.patterns[pattern] = _compiled(pattern)
        return compiled.isinstance_python(text)


_course: ContextVar[_Course] = ContextVar("course")


def check_schema(schema: Schema, *, where: str) -> None:
    """Check a schema itself.

    Raises:
        InvalidRequestError: when it is no schema of draft 2020-12, or one that we do not run.
    """
    size = len(orjson.dumps(schema))
    if size > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(f"{where}: at most {MAX_SCHEMA_BYTES} bytes; observed {size}", field=where)
    try:
        # Without formats: whether a pattern is one is for the engine to say that will run it.
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(()))
    except SchemaError as error:
        field = place(where, tuple(error.absolute_path))
        raise InvalidRequestError(f"{field}: {error.message}", field=field) from error
    except RecursionError as error:
        raise InvalidRequestError(f"{where}: it is nested too deeply", field=where) from error
    _check_keywords(schema, where)


def check_instance(schema: Schema, instance: Any, *, where: str) -> None:
    """Check a value against a schema that has been checked itself.

    Raises:
        InvalidRequestError: with the path of each thing that is wrong.
    """
    _course.set(_Course())
    # Wherever the library meets a dialect it goes on with that dialect's own validator, which has no bounds.
    bounded = _Bounded({name: value for name, value in schema.items() if name != "$schema"})
    try:
        found = list(islice(bounded.iter_errors(instance), MAX_FINDINGS))
    except _OverBudgetError as error:
        raise InvalidRequestError(f"{where}: holding it against its schema takes too long", field=where) from error
    except RecursionError as error:
        raise InvalidRequestError(f"{where}: it, or its schema, is nested too deeply", field=where) from error
    if found:
        findings = [
            {"field": place(where, tuple(error.absolute_path)), "message": _short(error.message)} for error in found
        ]
        said = "; ".join(f"{finding['field']}: {finding['message']}" for finding in findings[:5])
        raise InvalidRequestError(said, errors=findings)


def _check_keywords(schema: Schema, where: str) -> None:
    """Look at everything that may be a keyword, also where it is a mere name or datum: a reference may point there."""
    if schema.get("$schema", DIALECT) != DIALECT:
        raise InvalidRequestError(f"{where}.$schema: the dialect is {DIALECT}", field=f"{where}.$schema")
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    patterns = 0
    stack: list[tuple[str, object]] = [(where, schema)]
    while stack:
        here, value = stack.pop()
        if isinstance(value, list):
            stack.extend((f"{here}[{number}]", item) for number, item in enumerate(value))
        if not isinstance(value, dict):
            continue
        for name, item in value.items():
            stack.append((f"{here}.{name}", item))
            if name in REFUSED or (name in {"$id", "$schema"} and here != where):
                raise InvalidRequestError(f"{here}.{name}: {name} is not supported here", field=f"{here}.{name}")
            if name == "$ref" and isinstance(item, str):
                _check_reference(resolver.lookup, item, f"{here}.{name}")
            if name == "pattern" and isinstance(item, str):
                _check_pattern(item, f"{here}.{name}")
                patterns += 1
                if patterns > MAX_PATTERNS:
                    raise InvalidRequestError(f"{where}: at most {MAX_PATTERNS} patterns", field=where)


def _check_reference(look_up: Callable[[str], object], reference: str, at: str) -> None:
    if not reference.startswith("#"):
        raise InvalidRequestError(f"{at}: a schema refers to nothing but itself (#…)", field=at)
    try:
        look_up(reference)
    except Unresolvable as error:
        raise InvalidRequestError(f"{at}: there is nothing at {reference!r}", field=at) from error


def _check_pattern(pattern: str, at: str) -> None:
    if _weight(pattern) > MAX_PATTERN_WEIGHT:
        raise InvalidRequestError(f"{at}: it repeats too much", field=at)
    try:
        _compiled(pattern)
    except PatternError as error:
        cause = str(error).rstrip().splitlines()[-1].strip()
        raise InvalidRequestError(f"{at}: not a pattern that is supported here: {cause}", field=at) from error


def _weight(pattern: str) -> int:
    """How many states a pattern may be in at once, roughly: linear time has a factor, and this is it."""
    counts = [max(int(low or 1), int(high or 1), 1) for low, high in REPETITION.findall(pattern)]
    return len(pattern) * max(1, prod(counts) if REPEATED_GROUP.search(pattern) else sum(counts))


def _compiled(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True))


def _match(validator: Validator, pattern: str, instance: Any, _schema: Schema) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _course.get().matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _unique(validator: Validator, wanted: bool, instance: object, _schema: Schema) -> Iterator[ValidationError]:
    """By digests, since comparing each with each takes quadratic time."""
    if wanted and isinstance(instance, list) and validator.is_type(instance, "array"):
        seen = {orjson.dumps(_canonical(item), option=orjson.OPT_SORT_KEYS) for item in instance}
        if len(seen) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


def _canonical(value: object) -> object:
    """The same for equal numbers, however they are written."""
    match value:
        case float() if value.is_integer() and abs(value) < 2**63:
            return int(value)
        case list():
            return [_canonical(item) for item in value]
        case dict():
            return {name: _canonical(item) for name, item in value.items()}
        case _:
            return value


def _counted(keyword: Keyword) -> Keyword:
    def run(validator: Validator, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _course.get().spend(STEP_COST + _size(value) + _size(instance))
        yield from keyword(validator, value, instance, schema) or ()

    return run


def _size(value: object) -> int:
    match value:
        case dict() | list():
            return len(value) * ITEM_COST
        case str():
            return len(value)
        case _:
            return 0


def _short(message: str) -> str:
    return message if len(message) <= 300 else f"{message[:200]} … {message[-80:]}"  # noqa: PLR2004


_Bounded: type[Validator] = validators.extend(  # type: ignore[no-untyped-call] # the stubs' omission
    Draft202012Validator,
    {
        name: _counted(keyword)
        for name, keyword in {**Draft202012Validator.VALIDATORS, "pattern": _match, "uniqueItems": _unique}.items()
    },
)
