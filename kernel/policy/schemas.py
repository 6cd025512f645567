"""JSON schemas of the questions, in the part of JSON Schema that OPA's checker honours.

`opa check` (1.22.2, by experiment) follows `type`, `properties`, `items` and `$ref`. What it cannot follow it passes
over without a word, and a path through that may be spelt in any way: `anyOf` and `oneOf` with null, by which Pydantic
writes an optional field, are such. An optional fact is left out rather than null, so its schema here is the one of
what it holds; references are put in where they stand, so that there is nothing else to follow.
"""

import json
from pathlib import Path

from pydantic import BaseModel, JsonValue

from kernel.policy.contract import DecisionInput, DecisionInputs

MODELS: dict[str, type[BaseModel]] = {"input.json": DecisionInput, "inputs.json": DecisionInputs}
"""The files, by the names that the annotations in the Rego have for them (`schema.input`, `schema.inputs`)."""

_KEPT = ("type", "enum", "const", "required", "additionalProperties")


def schema_of(name: str) -> dict[str, JsonValue]:
    """The schema that belongs in the file of this name."""
    whole: dict[str, JsonValue] = MODELS[name].model_json_schema(mode="serialization")
    definitions = whole.pop("$defs", {})
    if not isinstance(definitions, dict):
        raise TypeError("Pydantic wrote definitions that are no object.")
    plain = _plain(whole, definitions)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **plain}


def write(directory: Path) -> None:
    """Write all schemas into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        (directory / name).write_text(_text(name), encoding="utf-8")


def check(directory: Path) -> list[str]:
    """The names of the schemas in a directory that are missing or not what the models say; none when all is well."""
    return [
        name
        for name in MODELS
        if not (directory / name).is_file() or (directory / name).read_text(encoding="utf-8") != _text(name)
    ]


def _text(name: str) -> str:
    return json.dumps(schema_of(name), indent=2, sort_keys=True) + "\n"


def _plain(schema: JsonValue, definitions: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if not isinstance(schema, dict):
        raise TypeError(f"A schema is an object, not {schema!r}.")
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _plain(definitions[reference.removeprefix("#/$defs/")], definitions)
    choices = schema.get("anyOf")
    if isinstance(choices, list):
        given = [choice for choice in choices if choice != {"type": "null"}]
        if len(given) != 1:
            raise ValueError(f"OPA's checker would not look into a choice between {given!r}.")
        return _plain(given[0], definitions)
    plain = {key: schema[key] for key in _KEPT if key in schema}
    properties = schema.get("properties")
    if isinstance(properties, dict):
        plain["properties"] = {name: _plain(value, definitions) for name, value in properties.items()}
        plain["required"] = _always_present(schema, properties)
    if "items" in schema:
        plain["items"] = _plain(schema["items"], definitions)
    return plain


def _always_present(schema: dict[str, JsonValue], properties: dict[str, JsonValue]) -> list[JsonValue]:
    """What is required: not what is left out where it is None."""
    required = schema.get("required", [])
    names = required if isinstance(required, list) else []
    optional = {name for name, value in properties.items() if isinstance(value, dict) and "anyOf" in value}
    return [name for name in names if name not in optional]
