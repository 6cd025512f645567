"""What holds of every file of the bundle."""

import json
from collections.abc import Iterator

import pytest
import yaml
from pydantic import BaseModel, JsonValue

from service.routers.agents import OrchestratorPolicy
from tests.policy.rego.opa import Opa

NOT_FACTS_OF_A_DECISION = {"unnamed", "undocumented_rule"}


class _Annotations(BaseModel):
    scope: str
    title: str | None = None
    description: str | None = None
    custom: dict[str, JsonValue] = {}
    entrypoint: bool = False


class _Head(BaseModel):
    name: str = ""
    ref: list[dict[str, JsonValue]] = []


class _Rule(BaseModel):
    head: _Head
    body: JsonValue = None
    annotations: list[_Annotations] = []

    @property
    def name(self) -> str:
        return self.head.name or str(self.head.ref[0]["value"])


class _Module(BaseModel):
    rules: list[_Rule] = []


@pytest.fixture(scope="module")
def modules(opa: Opa) -> dict[str, _Module]:
    found = {}
    for path in sorted((opa.directory / "orchestration").rglob("*.rego")):
        if not path.name.endswith("_test.rego"):
            name = path.relative_to(opa.directory).as_posix()
            found[name] = _Module.model_validate_json(opa.succeed("parse", "--format", "json", name))
    return found


def test_the_policies_are_formatted(opa: Opa) -> None:
    assert opa.succeed("fmt", "--fail", "--list", ".") == ""


def test_the_policies_pass_the_strict_check_against_the_schemas(opa: Opa) -> None:
    finished = opa.check()
    assert finished.returncode == 0, finished.stderr


def test_every_line_of_the_policies_is_covered_by_their_own_tests(opa: Opa) -> None:
    opa.succeed("test", "--bundle", ".", "--capabilities", "capabilities.json")
    report = json.loads(opa.succeed("test", "--bundle", ".", "--coverage", "--format", "json"))
    missed = {name: file["not_covered"] for name, file in report["files"].items() if file.get("not_covered")}
    assert missed == {}
    assert report["coverage"] == 100


def test_every_package_is_named_for_its_directory(opa: Opa, modules: dict[str, _Module]) -> None:
    for name in modules:
        path = opa.directory / name
        package = next(line for line in path.read_text().splitlines() if line.startswith("package "))
        assert package == "package " + ".".join(path.relative_to(opa.directory).parent.parts), name


def test_every_public_rule_has_metadata(modules: dict[str, _Module]) -> None:
    documented = {
        (name.rpartition("/")[0], rule.name)
        for name, module in modules.items()
        for rule in module.rules
        if any(note.scope == "document" and note.title and note.description for note in rule.annotations)
    }
    bare = [
        f"{name}: {rule.name}"
        for name, module in modules.items()
        for rule in module.rules
        if not rule.name.startswith("_")
        and (name.rpartition("/")[0], rule.name) not in documented
        and not any(note.title and note.description for note in rule.annotations)
    ]
    assert bare == []


def test_every_reason_has_its_code_and_message_in_the_metadata_of_its_rule(modules: dict[str, _Module]) -> None:
    reasoning = [
        (name, rule) for name, module in modules.items() for rule in module.rules if "metadata" in json.dumps(rule.body)
    ]
    assert len(reasoning) > 15
    for name, rule in reasoning:
        (note,) = rule.annotations
        assert isinstance(note.custom.get("short_name"), str), f"{name}: {note.title}"
        assert isinstance(note.custom.get("message"), str), f"{name}: {note.title}"


def test_a_code_has_one_place_per_package(modules: dict[str, _Module]) -> None:
    seen: set[tuple[str, str]] = set()
    for name, module in modules.items():
        for rule in module.rules:
            for note in rule.annotations:
                if "short_name" in note.custom:
                    key = (name.rpartition("/")[0], str(note.custom["short_name"]))
                    assert key not in seen
                    seen.add(key)


def test_no_negation_reads_input_in_the_arguments_of_a_call(modules: dict[str, _Module]) -> None:
    """`not f(input.x)` is undefined where x is missing, and so does not deny: OPA reads the arguments beforehand."""
    faults = [
        f"{name}: {rule.name}"
        for name, module in modules.items()
        for rule in module.rules
        for call in _negated_calls(rule.body)
        if _reads(call, "input")
    ]
    assert faults == []


def test_the_negation_rule_is_not_vacuous(copied: Opa) -> None:
    copied.write("orchestration/join/bad.rego", "package orchestration.join\n\nx if not is_string(input.action)\n")
    parsed = _Module.model_validate_json(copied.succeed("parse", "--format", "json", "orchestration/join/bad.rego"))
    (call,) = _negated_calls(parsed.rules[0].body)
    assert _reads(call, "input")


def test_the_platform_defaults_are_in_one_place(opa: Opa) -> None:
    defaults = yaml.safe_load((opa.directory / "orchestration/defaults/data.yaml").read_text())
    assert defaults == {
        "max_depth": 3,
        "max_fanout": 8,
        "max_children_total": 32,
        "join_timeout_s": 60,
        "default_failure_policy": "best_effort",
        "enforce_published_only": True,
        "allowed_scope_subset": [],
        "parent_close_policy": "continue",
    }


def _negated_calls(node: JsonValue) -> Iterator[JsonValue]:
    if isinstance(node, dict):
        terms = node.get("terms")
        if node.get("negated") and isinstance(terms, list) and not _is_comparison(terms[0]):
            yield terms[1:]
        for value in node.values():
            yield from _negated_calls(value)
    elif isinstance(node, list):
        for value in node:
            yield from _negated_calls(value)


def _is_comparison(operator: JsonValue) -> bool:
    """Of these OPA reads the operands inside the negation."""
    names = json.dumps(operator)
    return '"equal"' in names or '"eq"' in names


def _reads(node: JsonValue, document: str) -> bool:
    return f'{{"type": "var", "value": "{document}"}}' in json.dumps(node, sort_keys=True)


def test_the_defaults_that_a_route_fills_in_are_those_of_the_bundle(opa: Opa) -> None:
    defaults = yaml.safe_load((opa.directory / "orchestration/defaults/data.yaml").read_text())
    filled_in = OrchestratorPolicy().model_dump(mode="json")
    assert filled_in.pop("is_active") is True
    assert filled_in == defaults
