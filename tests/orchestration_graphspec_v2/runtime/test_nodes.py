"""What each type of node does when a graph runs."""

import asyncio

from tests.graphs import ended, graph, graph_agent, joined, node, play, start
from tests.kit import Kit, done


async def test_a_graph_computes_its_output_of_its_input(kit: Kit) -> None:
    definition = graph(
        [
            node("double", "transform", expressions={"items": "[input.n, input.n]"}),
            node("many", "if_else", conditions=[{"name": "some", "expression": "nodes.double.items"}]),
            node("end", "end", output={"items": "nodes.double.items", "by": "context.node_id"}),
        ],
        "start -> double",
        "double -> many",
        "many:some -> end",
        "many:else -> end",
    )
    run = await start(kit, await graph_agent(kit, definition), {"n": 3})
    finished = await ended(kit, run.run_id)
    assert finished["status"] == "completed", finished
    assert finished["output"] == {"items": [3, 3], "by": "end"}


async def test_a_group_is_spawned_joined_and_judged(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}] * 3, scope_subset=["read"]),
            node("wait", "join"),
            node("verdict", "judge"),
            node("good", "transform", expressions={"ok": "`true`", "status": "nodes.wait.status"}),
            node("bad", "transform", expressions={"ok": "`false`"}),
        ],
        "start -> fan",
        "fan -> wait",
        *joined("wait", "verdict"),
        "verdict:pass -> good",
        "verdict:fail -> bad",
        "good -> end",
        "bad -> end",
    )
    run = await start(kit, await graph_agent(kit, definition))
    played = await play(kit, "completed", "failed", "completed")
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"ok": True, "status": "completed_with_errors"}, finished
    context = played[0]["context"]
    assert played[0]["input"]["context"] == context
    assert (context["tenant_id"], context["run_id"]) == (kit.tenant_id, played[0]["run_id"])
    assert (context["root_run_id"], context["parent_run_id"]) == (run.run_id, run.run_id)
    assert (context["parent_node_id"], context["depth"]) == ("fan", 1)
    assert context["spawn_key"].startswith("fan:0:")
    assert context["orchestration_group_id"]
    assert context["requested_scopes"] == ["read"]
    assert context["surface"] == "option_a_graphspec_v2"


async def test_a_join_that_may_not_wait_is_pending_and_can_be_asked_again(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
            node("look", "join", wait_s=0),
            node("beside", "spawn_run", target_agent_slug="other", scope_subset=["read"]),
            node("wait", "join", wait_s=0.05),
            node("end", "end", output={"looked": "nodes.look", "waited": "nodes.wait"}),
        ],
        "start -> fan",
        "fan -> look",
        *(edge.replace("-> end", "-> beside") for edge in joined("look")),
        "beside -> wait",
        *(edge for edge in joined("wait") if ":pending" not in edge),
        "wait:pending -> wait",
    )
    await kit.agent("other")
    run = await start(kit, await graph_agent(kit, definition, may_spawn=["worker", "other"]))
    # What follows the first join is there while the group is undecided.
    await play(kit, "completed", slug="other")
    await play(kit, "completed")
    output = (await ended(kit, run.run_id))["output"]
    assert (output["looked"]["status"], output["looked"]["complete"]) == ("running", False)
    assert (output["looked"]["running_count"], output["looked"]["decided_seq"]) == (1, None)
    assert (output["waited"]["status"], output["waited"]["success_count"]) == ("completed", 1)


async def test_a_denial_is_routed_to_an_alternative(kit: Kit) -> None:
    await kit.agent("worker")
    other = await kit.agent("other")
    definition = graph(
        [
            node("first", "spawn_run", target_agent_slug="other", scope_subset=["read"]),
            node("which", "router", routes=["denied"]),
            node("second", "spawn_run", target_agent_slug="worker", scope_subset=["read"]),
        ],
        "start -> first",
        "first -> which",
        "which:denied -> second",
        "which:default -> end",
        "second -> end",
    )
    agent_id = await graph_agent(kit, definition, may_spawn=["worker", "other"])
    done(await kit.api.post(f"/agents/{other}/unpublish"))
    finished = await ended(kit, (await start(kit, agent_id)).run_id)
    assert finished["status"] == "completed", finished
    assert finished["output"]["status"] == "spawned"


async def test_a_denial_without_a_route_fails_the_run_with_its_reasons(kit: Kit) -> None:
    worker = await kit.agent("worker")
    definition = graph(
        [node("only", "spawn_run", target_agent_slug="worker", scope_subset=["read"])], "start -> only", "only -> end"
    )
    agent_id = await graph_agent(kit, definition)
    done(await kit.api.post(f"/agents/{worker}/unpublish"))
    finished = await ended(kit, (await start(kit, agent_id)).run_id)
    assert finished["status"] == "failed"
    assert finished["error"]["code"] == "policy_denied"
    assert [reason["code"] for reason in finished["error"]["reasons"]] == ["target_not_published"]


async def test_ways_that_part_meet_once(kit: Kit) -> None:
    definition = graph(
        [
            node("part", "parallel"),
            node("short", "transform", expressions={"a": "`1`"}),
            node("long1", "transform", expressions={"b": "`2`"}),
            node("long2", "transform", expressions={"b": "nodes.long1.b"}),
            node("meet", "transform", expressions={"a": "nodes.short.a", "b": "nodes.long2.b"}),
            node("end", "end", output={"both": "nodes.meet"}),
        ],
        "start -> part",
        "part -> short",
        "part -> long1",
        "long1 -> long2",
        "short -> meet",
        "long2 -> meet",
        "meet -> end",
    )
    finished = await ended(kit, (await start(kit, await graph_agent(kit, definition))).run_id)
    assert finished["output"] == {"both": {"a": 1, "b": 2}}


async def test_a_join_does_not_hold_up_what_goes_on_beside_it(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}] * 2, scope_subset=["read"]),
            node("part", "parallel"),
            node("wait", "join"),
            node("first", "transform", expressions={"runs": "nodes.fan.spawned_run_ids"}),
            node("second", "transform", expressions={"runs": "nodes.first.runs"}),
            node("third", "cancel_subtree", {"run_id": "nodes.second.runs[0]"}),
            node(
                "meet", "transform", expressions={"join": "nodes.wait.status", "cancel": "nodes.third.cancelled_count"}
            ),
            node("after", "transform", expressions={"both": "nodes.meet"}),
        ],
        "start -> fan",
        "fan -> part",
        "part -> wait",
        "part -> first",
        "first -> second",
        "second -> third",
        "third -> meet",
        *joined("wait", "meet"),
        "meet -> after",
        "after -> end",
    )
    run = await start(kit, await graph_agent(kit, definition))
    # Nobody ends the first member: the graph itself does, beside the join that waits for it.
    async with asyncio.timeout(20):
        while True:
            tree = done(await kit.api.get(f"/agents/runs/{run.run_id}/tree"))["tree"]
            if "cancelled" in {child["status"] for child in tree["children"]}:
                break
            await asyncio.sleep(0.02)
    await play(kit, "completed")
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"both": {"join": "completed_with_errors", "cancel": 1}}, finished


async def test_two_joins_side_by_side_each_go_on_when_they_are_decided(kit: Kit) -> None:
    await kit.agent("worker")
    worker = {"target_agent_slug": "worker"}
    definition = graph(
        [
            node("part", "parallel"),
            node("left", "spawn_group", targets=[worker], scope_subset=["read"]),
            node("right", "spawn_group", targets=[{"target_agent_slug": "other"}], scope_subset=["read"]),
            node("wait_left", "join", {"orchestration_group_id": "nodes.left.orchestration_group_id"}),
            node("wait_right", "join", {"orchestration_group_id": "nodes.right.orchestration_group_id"}),
            node("next", "spawn_run", target_agent_slug="third", scope_subset=["read"]),
            node("end", "end", output={"left": "nodes.wait_left.status", "right": "nodes.wait_right.status"}),
        ],
        "start -> part",
        "part -> left",
        "part -> right",
        "left -> wait_left",
        "right -> wait_right",
        *joined("wait_left", "next"),
        "next -> end",
        *joined("wait_right", "end"),
    )
    for slug in ("other", "third"):
        await kit.agent(slug)
    run = await start(kit, await graph_agent(kit, definition, may_spawn=["worker", "other", "third"]))
    await play(kit, "completed")
    # What follows the left is there while the right one still waits.
    await play(kit, "completed", slug="third")
    await play(kit, "failed", slug="other")
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"left": "completed", "right": "completed_with_errors"}, finished


async def test_a_way_that_fails_ends_what_waits_beside_it(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
            node("part", "parallel"),
            node("wait", "join"),
            node("calm", "transform", expressions={"a": "`1`"}),
            node("bad", "transform", expressions={"a": "length(`1`)"}),
        ],
        "start -> fan",
        "fan -> part",
        "part -> wait",
        "part -> calm",
        "calm -> bad",
        "bad -> end",
        *joined("wait"),
    )
    run = await start(kit, await graph_agent(kit, definition))
    finished = await ended(kit, run.run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", "expression_failed"), finished
    assert finished["error"]["node_id"] == "bad"


async def test_a_cancellation_is_waited_for_where_it_says_so(kit: Kit) -> None:
    await kit.agent("worker")
    own_children = {"run_id": "context.run_id"}
    definition = graph(
        [
            node(
                "fan",
                "spawn_group",
                for_each="input.items",
                targets=[{"target_agent_slug": "worker"}],
                scope_subset=["read"],
            ),
            node("stop", "cancel_subtree", own_children, include_root=False, wait_s=30),
        ],
        "start -> fan",
        "fan -> stop",
        "stop -> end",
    )
    # More than are cancelled before the answer of a call that does not wait.
    run = await start(kit, await graph_agent(kit, definition), {"items": list(range(150))})
    output = (await ended(kit, run.run_id))["output"]
    assert (output["state"], output["cancelled_count"]) == ("drained", 150)


async def test_cancelling_the_run_stops_its_graph_and_its_children(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}] * 2, scope_subset=["read"]),
            node("wait", "join"),
        ],
        "start -> fan",
        "fan -> wait",
        *joined("wait"),
    )
    run = await start(kit, await graph_agent(kit, definition))
    await play(kit, "hold")
    body = {"caller_run_id": run.run_id, "run_id": run.run_id}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    finished = await ended(kit, run.run_id)
    assert finished["status"] == "cancelled"
    async with asyncio.timeout(10):
        while True:
            tree = done(await kit.api.get(f"/agents/runs/{run.run_id}/tree"))["tree"]
            if {child["status"] for child in tree["children"]} == {"cancelled"}:
                break


async def test_a_change_of_the_agent_does_not_change_what_runs(kit: Kit) -> None:
    await kit.agent("worker")

    def said(word: str) -> dict[str, object]:
        return graph(
            [
                node("one", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
                node("wait", "join"),
                node("end", "end", output={"said": f"'{word}'"}),
            ],
            "start -> one",
            "one -> wait",
            *joined("wait"),
        )

    agent_id = await graph_agent(kit, said("before"))
    run = await start(kit, agent_id)
    (child,) = await play(kit, "hold")
    done(await kit.api.call("PATCH", f"/agents/{agent_id}", {"graph_definition": said("after")}))
    report = {"run_id": child["run_id"], "lease": child["lease"], "status": "completed"}
    done(await kit.api.post("/work/complete", report))
    assert (await ended(kit, run.run_id))["output"] == {"said": "before"}
