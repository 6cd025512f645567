"""Graphs as nobody in his right mind would draw them run to a defined end."""

from typing import Any

import pytest

from tests.graphs import ended, graph, graph_agent, joined, node, play, start
from tests.kit import Kit, done

WORKER: dict[str, Any] = {"target_agent_slug": "worker"}
IN_FEW_ROUNDS = 30


async def test_nodes_may_be_called_whatever_they_like(kit: Kit) -> None:
    names = ["__start__", "__end__", "branch:to:n0", "n0", "made_0", "frontier", "input", "ü|:\\/'\"", "x" * 200, " "]
    edges = [
        {"id": f"e{number}", "source": source, "target": target}
        for number, (source, target) in enumerate(zip(["start", *names], [*names, "end"], strict=True))
    ]
    definition = graph([node(name, "transform", expressions={"n": f"`{n}`"}) for n, name in enumerate(names)])
    definition["nodes"][-1]["config"] = {"output": {"made": "nodes.*.n"}}
    run = await start(kit, await graph_agent(kit, {**definition, "edges": edges}))
    finished = await ended(kit, run.run_id)
    assert sorted(finished["output"]["made"]) == list(range(len(names))), finished


async def test_a_cycle_of_replans_ends_when_there_are_no_attempts_left(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[WORKER], scope_subset=["read"]),
            node("wait", "join"),
            node("again", "replan"),
            node("verdict", "judge", outcomes=["replan", "pass", "fail"]),
            node("end", "end", output={"attempts": "nodes.again.attempts", "action": "nodes.again.suggested_action"}),
        ],
        "start -> fan",
        "fan -> wait",
        *joined("wait", "again"),
        "again:replan -> verdict",
        "again:continue -> end",
        "verdict:replan -> again",
        "verdict:pass -> end",
        "verdict:fail -> end",
    )
    run = await start(kit, await graph_agent(kit, definition))
    await play(kit, "failed")
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"attempts": 3, "action": "stop"}, finished


@pytest.mark.parametrize(
    ("items", "status"), [([], "empty"), ([1], "completed"), ("no list", None), ({"a": 1}, None), (None, None)]
)
async def test_a_group_is_made_of_a_list_or_not_at_all(kit: Kit, items: Any, status: str | None) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[WORKER], for_each="input.items", scope_subset=["read"]),
            node("wait", "join"),
            node("good", "end", output={"status": "nodes.wait.status"}),
        ],
        "start -> fan",
        "fan -> wait",
        "wait:completed -> good",
        *joined("wait")[1:],
    )
    run = await start(kit, await graph_agent(kit, definition), {"items": items})
    if status == "completed":
        await play(kit, "completed")
    finished = await ended(kit, run.run_id)
    if status is None:
        assert (finished["status"], finished["error"]["code"]) == ("failed", "invalid_request"), finished
    else:
        assert finished["output"] == {"status": status}, finished


async def test_a_quorum_that_turns_out_to_be_above_the_group_fails_the_join(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("fan", "spawn_group", targets=[WORKER], for_each="input.items", scope_subset=["read"]),
            node("wait", "join", mode="quorum", quorum_threshold=3),
        ],
        "start -> fan",
        "fan -> wait",
        *joined("wait"),
    )
    finished = await ended(kit, (await start(kit, await graph_agent(kit, definition), {"items": [1, 2]})).run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", "invalid_request"), finished
    assert finished["error"]["node_id"] == "wait"


@pytest.mark.parametrize("include_root", [True, False])
async def test_a_graph_may_cancel_itself(kit: Kit, include_root: bool) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("before", "spawn_run", **WORKER, scope_subset=["read"]),
            node("stop", "cancel_subtree", {"run_id": "context.run_id"}, include_root=include_root),
            node("after", "spawn_run", **WORKER, scope_subset=["read"]),
            node("end", "end", output={"cancelled": "nodes.stop.cancelled_count"}),
        ],
        "start -> before",
        "before -> stop",
        "stop -> after",
        "after -> end",
    )
    run = await start(kit, await graph_agent(kit, definition))
    finished = await ended(kit, run.run_id)
    tree = done(await kit.api.get(f"/agents/runs/{run.run_id}/tree"))["tree"]
    statuses = {child["parent_node_id"]: child["status"] for child in tree["children"]}
    if include_root:
        assert (finished["status"], statuses) == ("cancelled", {"before": "cancelled"})
    else:
        assert (finished["status"], finished["output"]) == ("completed", {"cancelled": 1})
        assert statuses == {"before": "cancelled", "after": "queued"}


async def test_one_key_for_two_different_children_is_a_conflict(kit: Kit) -> None:
    await kit.agent("worker")

    def child(node_id: str, payload: dict[str, Any]) -> dict[str, Any]:
        fixed: dict[str, Any] = {**WORKER, "idempotency_key": "one", "mapped_input_payload": payload}
        return node(node_id, "spawn_run", scope_subset=["read"], **fixed)

    definition = graph(
        [child("first", {"n": 1}), child("second", {"n": 2})], "start -> first", "first -> second", "second -> end"
    )
    run = await start(kit, await graph_agent(kit, definition))
    finished = await ended(kit, run.run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", "spawn_key_conflict"), finished
    tree = done(await kit.api.get(f"/agents/runs/{run.run_id}/tree"))["tree"]
    assert [one["parent_node_id"] for one in tree["children"]] == ["first"]


async def test_what_text_cannot_be_is_handed_on_all_the_same(kit: Kit) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("one", "spawn_group", {"odd": '[input.odd, `"\\u0000"`]'}, targets=[WORKER], scope_subset=["read"]),
            node("wait", "join"),
            node("end", "end", output={"odd": '[input.odd, `"\\u0000"`]'}),
        ],
        "start -> one",
        "one -> wait",
        *joined("wait"),
    )
    # The wire does not take the character that an expression can make.
    odd = {"'": ["\U0010ffff", "'; DROP TABLE agent_runs; --", 2**63, -1e308, ""]}
    run = await start(kit, await graph_agent(kit, definition), {"odd": odd})
    (child,) = await play(kit, "completed")
    assert child["input"]["odd"] == [odd, "\x00"]
    assert (await ended(kit, run.run_id))["output"] == {"odd": [odd, "\x00"]}


@pytest.mark.parametrize("reason", ['`"with \\u0000"`', "join('', input.long)", "{a: `1`}"])
async def test_a_mapped_reason_is_a_short_text(kit: Kit, reason: str) -> None:
    definition = graph(
        [node("stop", "cancel_subtree", {"run_id": "context.run_id", "reason": reason})],
        "start -> stop",
        "stop -> end",
    )
    run = await start(kit, await graph_agent(kit, definition), {"long": ["x" * 100, "x" * 101]})
    finished = await ended(kit, run.run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", "invalid_request"), finished


async def test_cancelling_the_top_of_nested_graphs_ends_them_all(kit: Kit) -> None:
    await kit.agent("worker")

    def waiting_for(slug: str) -> dict[str, Any]:
        return graph(
            [
                node("fan", "spawn_group", targets=[{"target_agent_slug": slug}] * 2, scope_subset=["read"]),
                node("wait", "join"),
            ],
            "start -> fan",
            "fan -> wait",
            *joined("wait"),
        )

    await graph_agent(kit, waiting_for("worker"), slug="inner")
    run = await start(kit, await graph_agent(kit, waiting_for("inner"), slug="outer", may_spawn=["inner"]))
    await play(kit, *["hold"] * 4)
    body = {"caller_run_id": run.run_id, "run_id": run.run_id, "reason": "enough", "wait_s": 10}
    assert done(await kit.api.post("/internal/orchestration/cancel-subtree", body))["cancelled_count"] == 7
    page = done(await kit.api.post("/internal/orchestration/query-tree", {"run_id": run.run_id, "rollup": True}))
    assert page["rollup"]["by_status"] == {"cancelled": 7}


async def test_many_ways_side_by_side_wait_for_no_one_but_their_own(kit: Kit) -> None:
    await kit.agent("worker")
    width = 12
    nodes, edges = [node("part", "parallel")], ["start -> part"]
    for number in range(width):
        fan, wait, after = f"fan{number}", f"wait{number}", f"after{number}"
        mapping = {"orchestration_group_id": f"nodes.{fan}.orchestration_group_id"}
        nodes += [
            node(fan, "spawn_group", targets=[WORKER], scope_subset=["read"]),
            node(wait, "join", mapping),
            node(after, "spawn_run", target_agent_slug="next", scope_subset=["read"]),
        ]
        edges += [f"part -> {fan}", f"{fan} -> {wait}", *joined(wait, after), f"{after} -> end"]
    await kit.agent("next")
    run = await start(kit, await graph_agent(kit, graph(nodes, *edges), may_spawn=["worker", "next"]))
    for _ in range(width):
        # One group is decided, and what follows it is there, while the others wait.
        await play(kit, "completed")
        await play(kit, "completed", slug="next")
    assert (await ended(kit, run.run_id, within_s=IN_FEW_ROUNDS))["status"] == "completed"
