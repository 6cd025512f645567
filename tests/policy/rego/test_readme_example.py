"""The README's worked example, done as it says, on a copy of the policies."""

import json
import re
from pathlib import Path

import pytest
from pydantic import JsonValue
from typer.testing import CliRunner

from kernel.policy.contract import Decision, DecisionInput
from service.policy_cli import app
from tests.policy.rego.opa import Opa

BLOCK = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(copied: Opa) -> dict[str, str]:
    """The README's files by their names; those of policies are in the copy."""
    files = dict(BLOCK.findall((copied.directory / "README.md").read_text()))
    assert set(files) == {
        "policies/orchestration/spawn/quiet_hours.rego",
        "policies/orchestration/spawn/quiet_hours_test.rego",
        "question.json",
    }
    for name, text in files.items():
        if name.startswith("policies/"):
            copied.write(name.removeprefix("policies/"), text)
    return files


def decide(opa: Opa, question: JsonValue) -> Decision:
    DecisionInput.model_validate_json(json.dumps(question))
    output = opa.succeed(
        "eval", "--bundle", ".", "--stdin-input", "--format", "raw", "data.orchestration.main.decision",
        stdin=json.dumps(question),
    )  # fmt: skip
    return Decision.model_validate_json(output)


def test_the_example_passes_its_tests_and_covers_itself(copied: Opa, example: dict[str, str]) -> None:
    listed = copied.succeed("test", "--bundle", ".", "--verbose", "--capabilities", "capabilities.json")
    assert "test_external_agents_rest_at_night" in listed
    report = json.loads(copied.succeed("test", "--bundle", ".", "--coverage", "--format", "json"))
    assert report["coverage"] == 100


def test_the_example_is_formatted_and_passes_the_check(copied: Opa, example: dict[str, str]) -> None:
    assert copied.succeed("fmt", "--fail", "--list", ".") == ""
    finished = copied.check()
    assert finished.returncode == 0, finished.stderr


def test_the_example_refuses_at_night_and_allows_by_day(copied: Opa, example: dict[str, str]) -> None:
    question = json.loads(example["question.json"])
    refused = decide(copied, question)
    assert not refused.allow
    assert [(reason.code, reason.target) for reason in refused.reasons] == [("quiet_hours", "browser")]
    assert refused.reasons[0].message == "agent browser is external and rests from 22:00 to 06:00"
    assert decide(copied, {**question, "now": "2026-07-01T08:00:00Z"}).allow


def test_without_the_example_it_is_allowed(copied: Opa, example: dict[str, str]) -> None:
    (copied.directory / "orchestration/spawn/quiet_hours.rego").unlink()
    assert decide(copied, json.loads(example["question.json"])).allow


def test_the_commands_of_the_example_work(copied: Opa, example: dict[str, str], tmp_path: Path) -> None:
    question = tmp_path / "question.json"
    question.write_text(example["question.json"])
    options = ["--policies", str(copied.directory), "--opa", str(copied.binary)]
    for command in (["test"], ["check"]):
        assert CliRunner().invoke(app, [*command, *options]).exit_code == 0
    answer = CliRunner().invoke(app, ["eval", "--input", str(question), *options])
    assert answer.exit_code == 0
    assert "quiet_hours" in answer.output
