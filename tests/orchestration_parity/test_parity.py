"""The same scenario, through a graph and through the primitives: the same decisions, runs, groups and events."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import yaml

from service.dependencies import Services
from tests.kit import Api
from tests.orchestration_parity.comparing import play_both, side_by_side
from tests.orchestration_parity.story import Scenario, load

# One process plays them all: which of them it is asked for is known to none before the end.
pytestmark = pytest.mark.xdist_group("parity")
AT_ONCE = 8
DENIALS = {
    "surface_disabled",
    "allowlist_empty",
    "target_not_allowlisted",
    "target_not_published",
    "scope_required",
    "scope_exceeds_caller",
    "scope_exceeds_policy",
    "max_depth_exceeded",
    "max_fanout_exceeded",
    "max_children_total_exceeded",
}
JOINS = {
    ("all", "completed"),
    ("all", "completed_with_errors"),
    ("all", "timed_out"),
    ("all", "cancelled"),
    ("all", "empty"),
    ("all", "failed"),
    ("best_effort", "completed"),
    ("best_effort", "completed_with_errors"),
    ("best_effort", "failed"),
    ("best_effort", "timed_out"),
    ("fail_fast", "completed"),
    ("fail_fast", "failed"),
    ("fail_fast", "timed_out"),
    ("quorum", "completed"),
    ("quorum", "failed"),
    ("quorum", "timed_out"),
    ("first_success", "completed"),
    ("first_success", "failed"),
    ("first_success", "timed_out"),
}
# What steps are answered, beyond what becomes of their groups.
ANSWERS = {
    ("status", "running"),
    ("suggested_action", "continue"),
    ("suggested_action", "replan"),
    ("suggested_action", "escalate"),
    ("suggested_action", "stop"),
    ("needs_replan", True),
    ("include_root", True),
    ("include_root", False),
}
REASONS = {
    "cancelled_by_orchestration",
    "join_fail_fast",
    "join_first_success",
    "join_quorum_reached",
    "join_timed_out",
    "parent_closed",
}
Plays = dict[str, "asyncio.Task[tuple[str, str]]"]


@pytest.fixture(scope="module")
async def plays(api: Api, services: Services, request: pytest.FixtureRequest) -> AsyncIterator[Plays]:
    """Every scenario that is asked for, under way: several at once, each in tenants of its own."""
    items = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params["scenario"].name for item in items if hasattr(item, "callspec")}
    turns = asyncio.Semaphore(AT_ONCE)

    async def play(scenario: Scenario) -> tuple[str, str]:
        async with turns:
            return await play_both(api, services, scenario)

    tasks = {scenario.name: asyncio.create_task(play(scenario)) for scenario in load() if scenario.name in wanted}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("scenario", load(), ids=lambda scenario: scenario.name.replace(" ", "-"))
async def test_both_surfaces_do_the_same(scenario: Scenario, plays: Plays) -> None:
    by_calls, by_graph = await plays[scenario.name]
    if by_calls != by_graph:
        pytest.fail(side_by_side(by_calls, by_graph), pytrace=False)
    found = yaml.safe_load(by_graph)["orchestrator"]
    assert scenario.ends in {found["status"], found["ended_by"]}, by_graph


async def test_the_scenarios_cover_every_denial_join_verdict_and_cancellation(plays: Plays) -> None:
    if len(plays) < len(load()):
        pytest.skip("only some of the scenarios were asked for")
    codes: set[str] = set()
    joins: set[tuple[str, str]] = set()
    answers: set[tuple[str, object]] = set()
    reasons: set[str] = set()
    repeats = 0
    for play in plays.values():
        by_calls = yaml.safe_load((await play)[0])
        codes |= {reason["code"] for decision in by_calls["decisions"] for reason in decision["reasons"]}
        joins |= {(group["join_mode"], group["status"]) for group in by_calls["groups"]}
        told = [(name, value) for step in by_calls["steps"].values() for name, value in step.items()]
        answers |= {(name, value) for name, value in told if isinstance(value, str | bool)}
        reasons |= {run["reason"] for run in by_calls["cancelled"] if "reason" in run}
        repeats += len(by_calls["repeats"])
    assert codes >= DENIALS
    assert joins >= JOINS
    assert answers >= ANSWERS
    assert reasons >= REASONS
    assert repeats > 0
