"""The Rego is checked against what the kernel's models say."""

import pytest

from kernel.policy import schemas
from tests.policy.rego.opa import Opa

TYPOS = {
    "at the top": "input.actoin",
    "in a required object": "input.tenant.flags.optoin",
    "behind an optional field": "input.caller.dpeth == 1",
    "behind an optional field of a policy": "input.orchestrator_policy.max_detph == 1",
    "in an item of a list": "input.targets[_].slgu == 1",
    "in an item of a list by name": '{\n\tsome entry in input.allowlist\n\tentry.capability_tga == "x"\n}',
    "in an item of a list in an item of a list": (
        '{\n\tsome spawn in input.graph.spawns\n\tsome target in spawn.targets\n\ttarget.slgu == "x"\n}'
    ),
    "of a type": 'input.caller.depth == "0"',
}


def test_the_schemas_on_disk_are_those_of_the_models(opa: Opa) -> None:
    assert schemas.check(opa.directory / "schemas") == []


def test_a_missing_or_changed_schema_is_noticed(copied: Opa) -> None:
    (copied.directory / "schemas/input.json").unlink()
    copied.write("schemas/inputs.json", "{}")
    assert schemas.check(copied.directory / "schemas") == ["input.json", "inputs.json"]
    schemas.write(copied.directory / "schemas")
    assert schemas.check(copied.directory / "schemas") == []


@pytest.mark.parametrize("package", ["spawn", "join", "spawn/allowlist"])
@pytest.mark.parametrize("typo", TYPOS.values(), ids=TYPOS.keys())
def test_a_typo_fails_the_check(copied: Opa, package: str, typo: str) -> None:
    copied.write(
        f"orchestration/{package}/planted.rego",
        f"package orchestration.{package.replace('/', '.')}\n\nplanted if {typo}\n",
    )
    finished = copied.check()
    assert finished.returncode != 0
    assert "planted.rego" in finished.stderr
    assert "rego_type_error" in finished.stderr


def test_a_typo_in_a_list_of_questions_fails_the_check(copied: Opa) -> None:
    main = copied.directory / "orchestration/main/main.rego"
    main.write_text(main.read_text().replace("input.requests", "input.reqeusts"))
    finished = copied.check()
    assert finished.returncode != 0
    assert "reqeusts" in finished.stderr
