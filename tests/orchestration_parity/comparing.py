"""Two plays of a scenario, laid side by side."""

import difflib

import yaml

from service.dependencies import Services
from tests.kit import Api, Kit, done
from tests.orchestration_parity.counting import miscounted
from tests.orchestration_parity.drawing import spawn_config
from tests.orchestration_parity.playing import through_a_graph, through_primitives
from tests.orchestration_parity.record import record
from tests.orchestration_parity.stage import Cue, Stage
from tests.orchestration_parity.story import Scenario

WIDTH = 90
CONTEXT = 3


async def play_both(api: Api, services: Services, scenario: Scenario) -> tuple[str, str]:
    """Play a scenario through the one surface and the other; the records of both.

    An improvised scenario is one that is written down afterwards: what was played is what is to be played.
    """
    cues: list[Cue] = []
    calls = await Stage.set(await Kit.make(api), services.database, scenario, "primitives")
    told, ended_by = await through_primitives(calls, cues)
    by_calls = await record(calls, told, ended_by)
    if scenario.improvised:
        scenario.settle(
            calls.performed,
            repeat=[step_id for step_id, answer in told.items() if answer.get("spawned_run_ids")],
            ends=by_calls["orchestrator"]["ended_by"] or by_calls["orchestrator"]["status"],
        )
    by_calls["repeats"] = await repeats(calls)
    graph = await Stage.set(await Kit.make(api), services.database, scenario, "graph")
    by_graph = await record(graph, *await through_a_graph(graph, cues))
    by_graph["repeats"] = await repeats(graph)
    for stage in (calls, graph):
        assert await miscounted(stage) == {}, stage.surface
    scenario.improvised = False
    return yaml.safe_dump(by_calls, sort_keys=True), yaml.safe_dump(by_graph, sort_keys=True)


async def repeats(stage: Stage) -> list[object]:
    """Calls that were made by the orchestrator, made once more: each finds what it made the first time."""
    found: list[object] = []
    for step_id in stage.scenario.repeat:
        step = stage.scenario.step(step_id)
        caller = await stage.run_at(("o",))
        body = {"caller_run_id": caller, "parent_node_id": step_id, **spawn_config(step)}
        path = f"/internal/orchestration/{step.kind.replace('_', '-')}"
        answer = done(await stage.kit.api.post(path, body))
        first = await stage.run_at(("o", step_id if step.kind == "spawn_run" else f"{step_id}:0"))
        found.append([step_id, answer["idempotent"], answer["spawned_run_ids"][0] == first])
    return found


def side_by_side(one: str, other: str) -> str:
    """The differences of two records, the primitives' on the left."""
    left, right = one.splitlines(), other.splitlines()
    lines = [f"{'primitives':<{WIDTH}} | graph"]
    for tag, a, b, c, d in difflib.SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes():
        if tag == "equal":
            alike = left[a:b] if b - a < 2 * CONTEXT else [*left[a : a + CONTEXT], "…", *left[b - CONTEXT : b]]
            lines.extend(f"{line[:WIDTH]:<{WIDTH}} |" for line in alike)
            continue
        ours, theirs = left[a:b], right[c:d]
        for number in range(max(len(ours), len(theirs))):
            mine = ours[number] if number < len(ours) else ""
            yours = theirs[number] if number < len(theirs) else ""
            lines.append(f"{mine[:WIDTH]:<{WIDTH}} ! {yours[:WIDTH]}")
    return "\n".join(lines)
