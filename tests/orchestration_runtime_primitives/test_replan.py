"""The verdict on a run's children."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from kernel.store import lineage
from kernel.store.engine import Database
from tests.kit import Kit, Run, done, refused
from tests.orchestration_runtime_primitives.trees.forest import Forest

REPLAN = "/internal/orchestration/evaluate-and-replan"


async def judge(kit: Kit, run: Run) -> dict[str, Any]:
    return done(await kit.api.post(REPLAN, {"caller_run_id": run.run_id, "run_id": run.run_id}))


async def children(kit: Kit, root: Run, *statuses: str) -> list[str]:
    """Children that this test executes itself, each reported with a status."""
    made: list[str] = []
    for number, status in enumerate(statuses):
        answer = done(await kit.spawn(root, f"c{number}", start_background=False))
        made.extend(answer["spawned_run_ids"])
        if status != "running":
            done(await kit.api.post(f"/agents/runs/{made[-1]}/status", {"status": status}))
    return made


async def test_children_that_do_well_need_no_new_plan(kit: Kit) -> None:
    root, _ = await kit.team()
    await children(kit, root, "completed", "running")
    verdict = await judge(kit, root)
    assert verdict == {
        "run_id": root.run_id, "needs_replan": False, "failed_children": [], "failed_count": 0, "total_children": 2,
        "active_children": 1, "suggested_action": "continue", "reasons": [], "attempts": 0,
        "headroom": {"depth": 3, "fanout": 6, "children_total": 30}, "decision_id": verdict["decision_id"],
    }  # fmt: skip


async def test_failed_and_cancelled_children_ask_for_a_new_plan(kit: Kit) -> None:
    root, _ = await kit.team()
    made = await children(kit, root, "completed", "cancelled", "failed")
    verdict = await judge(kit, root)
    assert (verdict["suggested_action"], verdict["needs_replan"], verdict["attempts"]) == ("replan", True, 1)
    assert verdict["failed_children"] == [made[2], made[1]]
    assert (verdict["failed_count"], verdict["total_children"]) == (2, 3)
    assert [reason["code"] for reason in verdict["reasons"]] == ["children_failed"]


async def test_replans_are_granted_as_often_as_policy_says_also_to_callers_at_once(kit: Kit) -> None:
    root, _ = await kit.team()
    await children(kit, root, "completed", "failed")
    body = {"caller_run_id": root.run_id, "run_id": root.run_id}
    answers = await asyncio.gather(*(kit.api.post(REPLAN, body) for _ in range(8)))
    verdicts = [done(answer) for answer in answers if answer.is_success]
    assert {answer.json().get("code") for answer in answers if not answer.is_success} <= {"facts_changed"}
    verdicts += [await judge(kit, root) for _ in range(4)]
    granted = [verdict["attempts"] for verdict in verdicts if verdict["suggested_action"] == "replan"]
    assert sorted(granted) == [1, 2, 3]
    assert verdicts[-1]["suggested_action"] == "escalate"
    assert {reason["code"] for reason in verdicts[-1]["reasons"]} == {"attempts_exhausted", "children_failed"}


async def test_a_child_under_a_fence_counts_as_failed_before_the_drain_has_come_to_it(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    made = await children(kit, root, "running", "running")
    await Forest(database, kit).fence(made[0], "run")
    verdict = await judge(kit, root)
    assert (verdict["failed_children"], verdict["active_children"]) == ([made[0]], 1)


async def test_of_many_that_failed_no_more_are_read_than_are_told(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, worker = await kit.team()
    made = await Forest(database, kit).grow(root.run_id, worker, parents=[-1] * (lineage.MAX_LISTED + 50))
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE agent_runs SET status = CASE WHEN run_id = ANY ($2::uuid[]) THEN 'failed' ELSE 'cancelled' END,"
            " finalized_seq = 1, finalized_at = now() WHERE tenant_id = $1 AND parent_run_id IS NOT NULL",
            UUID(kit.tenant_id),
            made[-20:],
        )
    read: list[int] = []
    whole = lineage.children

    async def watched(*given: Any) -> dict[str, tuple[int, list[UUID]]]:
        found = await whole(*given)
        read.extend(len(run_ids) for _, run_ids in found.values())
        return found

    monkeypatch.setattr(lineage, "children", watched)
    verdict = await judge(kit, root)
    assert sorted(read) == [20, lineage.MAX_LISTED]
    assert (verdict["failed_count"], verdict["total_children"]) == (len(made), len(made))
    assert verdict["failed_children"] == [str(run_id) for run_id in (*made[-20:], *made[: lineage.MAX_LISTED - 20])]


async def test_a_caller_judges_at_and_below_its_run_while_it_is_active(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = done(await kit.spawn(root, "b", "orchestrator"))["spawned_run_ids"][0]
    body = {"caller_run_id": branch, "run_id": root.run_id}
    problem = refused(await kit.api.post(REPLAN, body), 403, "forbidden")
    assert problem["reasons"][0]["code"] == "outside_remit"
    done(await kit.api.post("/internal/orchestration/cancel-subtree", {"caller_run_id": branch, "run_id": branch}))
    refused(await kit.api.post(REPLAN, {"caller_run_id": branch, "run_id": branch}), 409, "run_cancelled")


async def test_the_headroom_is_that_of_the_run_that_is_judged_under_its_own_agents_policy(kit: Kit) -> None:
    await kit.agent("worker")
    lead = await kit.orchestrator("lead", may_spawn=["worker"], max_depth=2, max_fanout=4, max_children_total=6)
    root = await kit.root(await kit.orchestrator(may_spawn=["lead", "worker"], max_depth=9, max_fanout=90))
    branch = done(await kit.spawn(root, "b", "lead"))["spawned_run_ids"][0]
    done(await kit.spawn(root, "w"))
    done(await kit.spawn_group(branch, "g", 3))
    body = {"caller_run_id": root.run_id, "run_id": branch}
    # The branch is one level down, has three children of four, and the tree has five runs of six.
    assert done(await kit.api.post(REPLAN, body))["headroom"] == {"depth": 1, "fanout": 1, "children_total": 1}
    assert (await judge(kit, root))["headroom"] == {"depth": 9, "fanout": 88, "children_total": 27}
    tight = {"max_depth": 1, "max_fanout": 1, "max_children_total": 1}
    done(await kit.api.put(f"/agents/{lead}/orchestrator-policy", tight))
    assert done(await kit.api.post(REPLAN, body))["headroom"] == {"depth": 0, "fanout": 0, "children_total": 0}
    done(await kit.api.put(f"/agents/{lead}/orchestrator-policy", {**tight, "is_active": False}))
    assert done(await kit.api.post(REPLAN, body))["headroom"] == {"depth": 2, "fanout": 5, "children_total": 27}


async def test_what_the_headroom_promises_a_spawn_gets_and_not_one_more(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=5)
    await children(kit, root, "failed", "failed")
    verdict = await judge(kit, root)
    assert (verdict["suggested_action"], verdict["headroom"]["fanout"]) == ("replan", 3)
    assert (await kit.spawn_group(root, "four", 4)).status_code == 403
    done(await kit.spawn_group(root, "three", 3))
    assert (await judge(kit, root))["headroom"]["fanout"] == 0


async def test_the_question_on_record_names_the_facts_of_the_headroom(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=5)
    await children(kit, root, "completed", "completed")
    verdict = await judge(kit, root)
    record = done(await kit.api.get(f"/policies/decisions/{verdict['decision_id']}"))
    assert record["input"]["subject"]["children_count"] == record["input"]["tree"]["children_total"] == 2
    assert record["input"]["orchestrator_policy"]["max_fanout"] == 5
    assert record["result"]["headroom"] == verdict["headroom"]
