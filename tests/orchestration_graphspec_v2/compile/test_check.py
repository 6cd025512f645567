"""`remit graph check`, without a service and with one."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from tests.kit import Kit
from tests.orchestration_graphspec_v2.compile.drafts import CASES, EXAMPLES, group, line, spawn


def check(*arguments: str, given: str | None = None) -> Result:
    return CliRunner(env={"REMIT_URL": None, "REMIT_TOKEN": None}).invoke(
        app, ["graph", "check", *arguments], input=given
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_and_what_is_left_is_said(name: str) -> None:
    finished = check(str(CASES / f"{name}.json"))
    assert finished.exit_code == 0, finished.output
    assert "the graph compiles" in finished.output
    assert "target_not_allowlisted" in finished.output


def test_errors_are_shown_and_fail_the_command() -> None:
    finished = check("-", given=json.dumps(line(spawn(scope_subset=[], colour="red"))))
    assert finished.exit_code == 1
    assert "config.colour" in finished.output
    assert "scope_required" in finished.output
    assert "2 errors" in finished.output


def test_json_is_what_the_service_would_answer() -> None:
    finished = check("-", "--json", given=json.dumps(line(group(2, quorum_threshold=3))))
    answer = json.loads(finished.stdout)
    assert (answer["valid"], answer["ir"]) == (False, None)
    (finding,) = [item for item in answer["diagnostics"] if item["severity"] == "error"]
    assert (finding["code"], finding["node_id"], finding["edge_id"]) == ("quorum_above_group", "n0", None)


@pytest.mark.parametrize(("given", "said"), [("{", "is not JSON"), ("", "is not JSON")])
def test_what_is_no_json_is_told(given: str, said: str) -> None:
    finished = check("-", given=given)
    assert finished.exit_code == 2
    assert said in finished.output


def test_a_missing_file_and_an_agent_without_a_service_are_told(tmp_path: Path) -> None:
    assert "cannot be read" in check(str(tmp_path / "none.json")).output
    finished = check("-", "--agent-id", "0190aaaa-0000-7000-8000-000000000001", given="{}")
    assert finished.exit_code == 2
    assert "--url" in finished.output


async def test_with_a_service_policy_is_asked(kit: Kit) -> None:
    await kit.agent("worker")
    agent_id = await kit.orchestrator(may_spawn=["worker"], max_fanout=2)
    options = ["--url", str(kit.api.client.base_url), "--token", kit.api.token, "--agent-id", agent_id]
    allowed = await asyncio.to_thread(check, "-", *options, given=json.dumps(line(group(2))))
    assert allowed.exit_code == 0, allowed.output
    denied = await asyncio.to_thread(check, "-", *options, given=json.dumps(line(group(3))))
    assert denied.exit_code == 1
    assert "max_fanout_exceeded" in denied.output


async def test_a_refusal_and_a_silent_service_are_told(kit: Kit) -> None:
    url = str(kit.api.client.base_url)
    refusal = await asyncio.to_thread(check, "-", "--url", url, "--token", "nonsense", given="{}")
    assert refusal.exit_code == 2
    assert "401" in refusal.output
    nameless = await asyncio.to_thread(check, "-", "--url", url, "--token", "", given="{}")
    assert nameless.exit_code == 2
    assert "REMIT_TOKEN" in nameless.output
    silent = await asyncio.to_thread(check, "-", "--url", "http://127.0.0.1:1", "--token", "any", given="{}")
    assert silent.exit_code == 2
    assert "does not answer" in silent.output
