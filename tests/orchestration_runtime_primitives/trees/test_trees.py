"""Trees as their readers see them: nested, in pages, counted."""

import sys
import uuid
from collections import Counter
from typing import Any

import pytest

from kernel.store.engine import Database
from tests.kit import Kit, Run, done, refused
from tests.orchestration_runtime_primitives.trees.forest import Forest

QUERY = "/internal/orchestration/query-tree"


async def pages(kit: Kit, run_id: str, **query: Any) -> list[dict[str, Any]]:
    """All nodes, page by page."""
    nodes: list[dict[str, Any]] = []
    cursor = None
    while True:
        body = {"run_id": run_id, **query} | ({"cursor": cursor} if cursor else {})
        page = done(await kit.api.post(QUERY, body))
        assert len(page["nodes"]) <= query.get("limit", 200)
        nodes.extend(page["nodes"])
        cursor = page["next_cursor"]
        if cursor is None:
            return nodes


async def team_of_three_levels(kit: Kit) -> tuple[Run, str, list[str]]:
    root, _ = await kit.team(max_depth=5, max_fanout=50, max_children_total=100)
    branch = done(await kit.spawn(root, "branch", "orchestrator", parent_node_id="n1"))["spawned_run_ids"][0]
    group = done(await kit.spawn_group(branch, "g", 3))
    beside = done(await kit.spawn(root, "beside"))["spawned_run_ids"][0]
    return root, branch, [root.run_id, branch, *group["spawned_run_ids"], beside]


async def test_a_tree_is_nested_with_its_groups(kit: Kit) -> None:
    root, branch, order = await team_of_three_levels(kit)
    answer = done(await kit.api.get(f"/agents/runs/{order[3]}/tree"))
    assert answer["root_run_id"] == root.run_id
    assert answer["node_count"] == 6
    tree = answer["tree"]
    assert set(tree) == {
        "run_id", "agent_id", "agent_name", "status", "depth", "parent_run_id", "parent_node_id", "spawn_key",
        "orchestration_group_id", "created_at", "children", "groups",
    }  # fmt: skip
    assert [child["run_id"] for child in tree["children"]] == [branch, order[-1]]
    shown = tree["children"][0]
    assert (shown["agent_name"], shown["depth"], shown["parent_node_id"], shown["spawn_key"]) == (
        "orchestrator", 1, "n1", "branch",
    )  # fmt: skip
    (group,) = shown["groups"]
    assert set(group) == {
        "group_id", "status", "failure_policy", "join_mode", "quorum_threshold", "timeout_s", "parent_node_id",
        "members",
    }  # fmt: skip
    assert [(member["run_id"], member["ordinal"], member["status"]) for member in group["members"]] == [
        (run_id, number, "queued") for number, run_id in enumerate(order[2:5])
    ]
    assert [child["run_id"] for child in shown["children"]] == order[2:5]
    primitive = done(await kit.api.get(f"/internal/orchestration/runs/{branch}/tree"))
    assert primitive == answer
    with_run = done(await kit.api.get(f"/agents/runs/{branch}?include_tree=true"))
    assert with_run["run_tree"] == answer
    assert "run_tree" not in done(await kit.api.get(f"/agents/runs/{branch}"))


@pytest.mark.parametrize("limit", [1, 2, 6, 200])
async def test_pages_are_in_the_order_of_the_spawns_and_lose_nothing(kit: Kit, limit: int) -> None:
    root, branch, order = await team_of_three_levels(kit)
    assert [node["run_id"] for node in await pages(kit, root.run_id, limit=limit)] == order
    assert [node["run_id"] for node in await pages(kit, branch, limit=limit)] == order[1:5]
    assert [node["run_id"] for node in await pages(kit, root.run_id, limit=limit, max_depth=1)] == [
        order[0], order[1], order[5],
    ]  # fmt: skip
    assert [node["run_id"] for node in await pages(kit, branch, limit=limit, max_depth=0)] == [branch]


async def test_what_is_under_a_fence_reads_as_cancelled_before_the_drain_has_come_to_it(
    kit: Kit, database: Database
) -> None:
    root, branch, order = await team_of_three_levels(kit)
    forest = Forest(database, kit)
    await forest.fence(branch, "run")
    cancelled = await pages(kit, root.run_id, status="cancelled", limit=2)
    assert [node["run_id"] for node in cancelled] == order[1:5]
    assert [node["run_id"] for node in await pages(kit, root.run_id, status="queued")] == [order[5]]
    page = done(await kit.api.post(QUERY, {"run_id": root.run_id, "rollup": True}))
    assert page["rollup"]["by_status"] == {"running": 1, "cancelled": 4, "queued": 1}
    assert page["rollup"]["by_depth"] == {"0": 1, "1": 2, "2": 3}
    assert page["rollup"]["total"] == sum(page["rollup"]["by_agent"].values()) == 6
    below = done(await kit.api.post(QUERY, {"run_id": branch, "rollup": True}))
    assert below["rollup"]["by_status"] == {"cancelled": 4}
    tree = done(await kit.api.get(f"/agents/runs/{root.run_id}/tree"))["tree"]
    assert tree["children"][0]["status"] == "cancelled"
    assert tree["children"][0]["groups"][0]["status"] == "cancelled"
    assert {child["status"] for child in tree["children"][0]["children"]} == {"cancelled"}
    assert tree["children"][1]["status"] == "queued"
    run = done(await kit.api.get(f"/agents/runs/{order[3]}"))
    assert (run["status"], run["cancellation"]["reason"]) == ("cancelled", "fenced by a test")
    assert (await forest.stored_statuses(root.run_id))["cancelled"] == 0


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "W10", "é", "bnVsbA", "A" * 401])
async def test_a_cursor_that_is_none_is_refused(kit: Kit, cursor: str) -> None:
    root, _ = await kit.team()
    problem = refused(await kit.api.post(QUERY, {"run_id": root.run_id, "cursor": cursor}), 400, "invalid_request")
    assert problem["errors"][0]["field"] == "cursor"


async def test_a_cursor_belongs_to_the_pages_of_its_run(kit: Kit) -> None:
    root, branch, _ = await team_of_three_levels(kit)
    cursor = done(await kit.api.post(QUERY, {"run_id": root.run_id, "limit": 1}))["next_cursor"]
    refused(await kit.api.post(QUERY, {"run_id": branch, "cursor": cursor}), 400, "invalid_request")


async def test_a_run_token_reads_at_and_below_its_run(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    answer = done(
        await kit.spawn(root, "b", "orchestrator", start_background=False, scope_subset=["agents.execute", "read"])
    )
    branch = Run(answer["spawned_run_ids"][0], next(iter(answer["run_tokens"].values())), "")
    leaf = done(await kit.spawn(branch, "leaf"))["spawned_run_ids"][0]
    as_branch = kit.api.acting_with(branch.token)
    assert done(await as_branch.get(f"/agents/runs/{leaf}"))["run_id"] == leaf
    tree = done(await as_branch.get(f"/agents/runs/{leaf}/tree"))
    assert (tree["root_run_id"], tree["tree"]["run_id"], tree["node_count"]) == (root.run_id, branch.run_id, 2)
    for path in ("", "/tree", "/events?limit=1"):
        problem = refused(await as_branch.get(f"/agents/runs/{root.run_id}{path}"), 403, "forbidden")
        assert problem["reasons"][0]["code"] == "outside_remit"
    refused(await as_branch.post(QUERY, {"run_id": root.run_id}), 403, "forbidden")


async def test_what_is_anothers_does_not_exist(kit: Kit, api: Any) -> None:
    other = await Kit.make(api)
    theirs, _ = await other.team()
    for run_id in (theirs.run_id, str(uuid.uuid4())):
        for path in ("", "/tree", "/events?limit=1"):
            refused(await kit.api.get(f"/agents/runs/{run_id}{path}"), 404, "not_found")
        refused(await kit.api.post(QUERY, {"run_id": run_id}), 404, "not_found")


async def test_a_tree_of_a_thousand_levels_is_nested_and_cancelled(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    chain = await forest.grow(root.run_id, worker, parents=[number - 1 for number in range(999)])
    # Whoever reads a thousand levels must be able to; Python's reader counts them as recursion.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        answer = done(await kit.api.get(f"/agents/runs/{root.run_id}/tree"))
    finally:
        sys.setrecursionlimit(limit)
    assert (answer["node_count"], answer["truncated"]) == (1000, False)
    at, depth = answer["tree"], 0
    while at["children"]:
        (at,) = at["children"]
        depth += 1
    assert (depth, at["run_id"], at["depth"]) == (999, str(chain[-1]), 999)
    middle = str(chain[499])
    assert len(await pages(kit, middle)) == 500
    cancelled = done(
        await kit.api.post(
            "/internal/orchestration/cancel-subtree", {"caller_run_id": root.run_id, "run_id": middle, "wait_s": 20}
        )
    )
    assert (cancelled["cancelled_count"], cancelled["state"]) == (500, "drained")


async def test_beyond_a_thousand_nodes_the_tree_comes_in_pages(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    made = await Forest(database, kit).grow(root.run_id, worker, parents=[-1] * 1000)
    answer = done(await kit.api.get(f"/agents/runs/{root.run_id}/tree"))
    assert (answer["truncated"], answer["tree"], answer["node_count"]) == (True, None, 1001)
    rest = await kit.api.post(QUERY, {"run_id": root.run_id, "cursor": answer["next_cursor"]})
    listed = [node["run_id"] for node in (*answer["nodes"], *done(rest)["nodes"])]
    assert listed == [root.run_id, *map(str, made)]


async def test_a_large_subtree_of_a_larger_tree_is_paged_too(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.commands.query_tree.MAX_WALKED", 20)
    monkeypatch.setattr("kernel.commands.query_tree.SCANNED_AT_ONCE", 7)
    monkeypatch.setattr("kernel.commands.query_tree.MAX_KNOWN", 30)
    root, worker = await kit.team()
    # Two trunks whose branches were spawned in turn.
    made = await Forest(database, kit).grow(
        root.run_id, worker, parents=[-1, -1] + [number % 2 for number in range(80)]
    )
    mine = [str(run_id) for run_id in made[1::2]]
    assert [node["run_id"] for node in await pages(kit, mine[0], limit=6)] == mine
    assert [node["run_id"] for node in await pages(kit, mine[0], limit=100)] == mine
    assert Counter(node["status"] for node in await pages(kit, mine[0], status="queued", limit=9)) == {"queued": 41}
