"""A node that is cut off between what it did and the checkpoint of it is executed again, and does nothing twice."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from service.dependencies import Services
from service.graph_worker import GraphWorker
from tests.graphs import Definition, ended, graph, graph_agent, joined, node, play, start
from tests.kit import Kit, Run, done
from tests.orchestration_graphspec_v2.runtime.gate import gate

STEPS = ("start", "fan", "wait", "verdict", "again", "stop", "prune", "asked", "which", "end")

FOUND = """
SELECT (SELECT replan_attempts FROM agent_runs WHERE run_id = $1) AS attempts,
  (SELECT array_agg(parent_node_id || ' ' || status ORDER BY spawned_seq, ordinal) FROM agent_runs
   WHERE parent_run_id = $1) AS children,
  (SELECT count(*) FROM policy_decisions WHERE root_run_id = $1 AND action = 'evaluate_and_replan') AS verdicts,
  (SELECT count(*) FROM cancellations WHERE root_run_id = $1 AND scope <> 'group') AS fences
"""


def of_every_kind() -> Definition:
    """A graph that spawns, joins, replans, cancels and is refused, one after the other."""
    worker: dict[str, Any] = {"target_agent_slug": "worker"}
    return graph(
        [
            node("fan", "spawn_group", targets=[worker, worker], scope_subset=["read"]),
            node("wait", "join"),
            node("verdict", "replan"),
            node("again", "spawn_run", **worker, scope_subset=["read"]),
            node("stop", "cancel_subtree", {"run_id": "nodes.again.spawned_run_ids[0]"}),
            node("prune", "cancel_subtree", {"run_id": "nodes.fan.spawned_run_ids[0]"}, include_root=False),
            node("asked", "spawn_run", target_agent_slug="stranger", scope_subset=["read"]),
            node("which", "router", routes=["denied"]),
            node(
                "end",
                "end",
                output={
                    "attempt": "nodes.verdict",
                    "status": "nodes.wait.status",
                    "route": "nodes.which",
                    "stopped": "nodes.stop.cancelled_count",
                },
            ),
        ],
        "start -> fan",
        "fan -> wait",
        *joined("wait", "verdict"),
        "verdict:replan -> again",
        "verdict:continue -> end",
        "again -> stop",
        "stop -> prune",
        "prune -> asked",
        "asked -> which",
        "which:denied -> end",
        "which:default -> end",
    )


async def told(services: Services, run: Run) -> dict[str, Any]:
    async with services.database.read() as session:
        return dict(await session.driver.fetchrow(FOUND, UUID(run.run_id)))


@pytest.mark.parametrize("by", ["the worker's end", "the database"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
async def test_whichever_node_is_cut_off_the_graph_ends_as_it_would_have(
    kit: Kit, services: Services, graph_worker: GraphWorker, database_url: str, step: int, by: str
) -> None:
    await kit.agent("worker")
    stranger = await kit.agent("stranger")
    agent_id = await graph_agent(kit, of_every_kind(), may_spawn=["worker", "stranger"])
    # What was there when the graph was published is refused when it runs.
    done(await kit.api.post(f"/agents/{stranger}/unpublish"))
    async with gate(database_url, kit.tenant_id, step + 1) as closed:
        run = await start(kit, agent_id)
        playing = asyncio.create_task(play(kit, "completed", "failed"))
        await closed.reached()
        if by == "the database":
            await closed.turn_away()
        else:
            await graph_worker.stop()
    if by != "the database":
        await graph_worker.start()
    finished = await ended(kit, run.run_id)
    await playing
    assert finished["status"] == "completed", finished
    output = finished["output"]
    assert (output["status"], output["route"]["route"]) == ("completed_with_errors", "denied")
    assert output["stopped"] == 1
    verdict = output["attempt"]
    assert (verdict["suggested_action"], verdict["failed_count"], verdict["total_children"]) == ("replan", 1, 2)
    assert await told(services, run) == {
        "attempts": 1,
        "children": ["fan completed", "fan failed", "again cancelled"],
        "verdicts": 1,
        "fences": 2,
    }
