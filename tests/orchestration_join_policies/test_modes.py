"""How each mode decides, over HTTP, and what the decision cancels."""

from typing import Any
from uuid import UUID

import pytest

from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.expire_leases import expire_leases
from kernel.store.engine import Database
from load.audit import audit as audit_all
from tests.kit import Kit, done, refused
from tests.orchestration_join_policies.join_calls import Group, group_of
from tests.orchestration_runtime_primitives.work.crew import audit, claim, complete, let_expire


@pytest.mark.parametrize(
    ("request_", "outcomes", "status"),
    [
        ({"join_mode": "all"}, ["completed"] * 3, "completed"),
        ({"join_mode": "all"}, ["completed", "failed", "completed"], "completed_with_errors"),
        ({"join_mode": "best_effort"}, ["failed", "cancelled", "failed"], "completed_with_errors"),
        ({"join_mode": "fail_fast"}, ["completed"] * 3, "completed"),
        ({"join_mode": "fail_fast"}, ["completed", "failed"], "failed"),
        ({"join_mode": "fail_fast"}, ["cancelled"], "failed"),
        ({"join_mode": "best_effort", "failure_policy": "fail_fast"}, ["failed"], "failed"),
        ({"join_mode": "quorum", "quorum_threshold": 2}, ["completed", "completed"], "completed"),
        ({"join_mode": "quorum", "quorum_threshold": 2}, ["failed", "failed"], "failed"),
        ({"join_mode": "quorum", "quorum_threshold": 3}, ["completed", "completed", "completed"], "completed"),
        ({"join_mode": "first_success"}, ["failed", "completed"], "completed"),
        ({"join_mode": "first_success"}, ["failed"] * 3, "failed"),
    ],
)
async def test_a_mode_decides_at_the_member_that_settles_it(
    kit: Kit, database: Database, request_: dict[str, Any], outcomes: list[str], status: str
) -> None:
    group = await group_of(kit, 3, **request_)
    for member, outcome in enumerate(outcomes):
        standing = await group.read()
        assert (standing["status"], standing["complete"], standing["decided_seq"]) == ("running", False, None)
        assert standing["running_count"] == 3 - member
        done(await group.end(member, outcome))
    joined = await group.read()
    assert (joined["status"], joined["complete"]) == (status, True)
    successes = outcomes.count("completed")
    assert (joined["success_count"], joined["failure_count"], joined["running_count"]) == (successes, 3 - successes, 0)
    assert joined["member_run_ids"] == group.members
    assert joined["failure_policy"] == request_.get("failure_policy", "best_effort")
    async with database.read() as session:
        trigger = await session.driver.fetchval(
            "SELECT finalized_seq FROM agent_runs WHERE run_id = $1", UUID(group.members[len(outcomes) - 1])
        )
    assert joined["decided_seq"] == trigger
    await DrainCancellations(database).run_once()
    await audit(database, kit)


@pytest.mark.parametrize(
    ("mode", "outcome", "reason"),
    [
        ({"join_mode": "fail_fast"}, "failed", "join_fail_fast"),
        ({"join_mode": "quorum", "quorum_threshold": 1}, "completed", "join_quorum_reached"),
        ({"join_mode": "first_success"}, "completed", "join_first_success"),
    ],
)
async def test_the_losers_of_a_decision_read_as_cancelled_before_and_after_the_drain(
    kit: Kit, database: Database, mode: dict[str, Any], outcome: str, reason: str
) -> None:
    group = await group_of(kit, 4, start_background=True, **mode)
    claimed = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))["runs"][0]
    body = {"run_id": claimed["run_id"], "lease": claimed["lease"], "status": outcome}
    done(await kit.api.post("/work/complete", body))
    losers = [run_id for run_id in group.members if run_id != claimed["run_id"]]
    before = await group.read()
    # Nobody claims a loser, drained or not.
    assert done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 10}))["runs"] == []
    await DrainCancellations(database).run_once()
    after = await group.read()
    for joined in (before, after):
        assert joined["running_count"] == 0
        assert joined["failure_count"] == 3 + (outcome == "failed")
        assert joined["cancellation_propagated"]["count"] == 3
        assert sorted(joined["cancellation_propagated"]["run_ids"]) == sorted(losers)
        assert joined["cancellation_propagated"]["reason"] == reason
    assert before["decided_seq"] == after["decided_seq"]
    await audit(database, kit)


async def propagated(group: Group) -> tuple[int, set[str]]:
    """What a decision is told to have cancelled: how many, and whom."""
    told = (await group.read())["cancellation_propagated"]
    assert len(told["run_ids"]) == len(set(told["run_ids"]))
    return told["count"], set(told["run_ids"])


async def told_before_and_after_the_drain(group: Group, kit: Kit, database: Database, losers: set[str]) -> None:
    """It is told to have cancelled these, and nobody else, and everything agrees with it."""
    for _ in ("before the drain", "after it"):
        assert await propagated(group) == (len(losers), losers)
        await DrainCancellations(database).run_once()
    async with database.read() as session:
        assert await audit_all(session.driver, tenant_id=UUID(kit.tenant_id)) == []


async def test_losers_that_another_fence_was_quicker_to_cancel_are_not_told_as_cancelled_by_the_decision(
    kit: Kit, database: Database
) -> None:
    group = await group_of(kit, 5, join_mode="fail_fast")
    done(await group.end(0, "failed"))
    # Whoever is active under the fence counts before it is drained.
    assert await propagated(group) == (4, set(group.members[1:]))
    body = {"caller_run_id": group.root.run_id, "run_id": group.root.run_id, "include_root": False}
    assert done(await kit.api.post("/internal/orchestration/cancel-subtree", body))["cancelled_count"] == 4
    await told_before_and_after_the_drain(group, kit, database, set())


async def test_a_loser_that_acknowledges_an_earlier_fence_is_not_told_as_cancelled_by_the_decision(
    kit: Kit, database: Database
) -> None:
    group = await group_of(kit, 5, start_background=True, join_mode="fail_fast")
    failed, stopped = await claim(kit, max_runs=2)
    body = {"caller_run_id": group.root.run_id, "run_id": stopped["run_id"], "grace_s": 600}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    done(await complete(kit, failed, "failed"))
    done(await complete(kit, stopped, "cancelled"))
    losers = set(group.members) - {failed["run_id"], stopped["run_id"]}
    assert len(losers) == 3
    await told_before_and_after_the_drain(group, kit, database, losers)


async def test_a_loser_that_ended_by_itself_under_the_decision_is_told_with_those_that_its_drain_cancelled(
    kit: Kit, database: Database
) -> None:
    group = await group_of(kit, 4, start_background=True, join_mode="fail_fast")
    failed, given_up = await claim(kit, max_runs=2)
    done(await complete(kit, failed, "failed"))
    losers = set(group.members) - {failed["run_id"]}
    await let_expire(database, given_up["run_id"])
    await expire_leases(database).run_once()
    assert await propagated(group) == (3, losers)
    await DrainCancellations(database).run_once()
    assert await propagated(group) == (3, losers)
    # Events may be let go after a time; what is known of the runs then names as many.
    async with database.write() as session:
        await session.driver.execute("DELETE FROM run_events WHERE root_run_id = $1", UUID(group.root.run_id))
    assert await propagated(group) == (3, losers)


async def test_what_losers_spawned_is_cancelled_with_them_and_what_winners_left_is_not(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team(max_depth=5)
    targets = [{"target_agent_slug": "orchestrator"}] * 2
    body = {
        "caller_run_id": root.run_id,
        "targets": targets,
        "scope_subset": ["agents.execute", "read"],
        "idempotency_key_prefix": "g",
        "join_mode": "first_success",
        "start_background": False,
    }
    answer = done(await kit.api.post("/internal/orchestration/spawn-group", body))
    winner, loser = answer["spawned_run_ids"]
    (of_winner,) = done(await kit.spawn(winner, "x"))["spawned_run_ids"]
    (of_loser,) = done(await kit.spawn(loser, "x"))["spawned_run_ids"]
    done(await kit.api.post(f"/agents/runs/{winner}/status", {"status": "completed"}))
    refused(await kit.spawn(loser, "y"), 409, "run_cancelled")
    await DrainCancellations(database).run_once()
    async with database.read() as session:
        rows = await session.driver.fetch(
            "SELECT run_id, status FROM agent_runs WHERE root_run_id = $1", UUID(root.run_id)
        )
    statuses = {str(row["run_id"]): row["status"] for row in rows}
    assert (statuses[of_winner], statuses[loser], statuses[of_loser]) == ("queued", "cancelled", "cancelled")
    joined = done(
        await kit.api.post(
            "/internal/orchestration/join",
            {"caller_run_id": root.run_id, "orchestration_group_id": answer["orchestration_group_id"]},
        )
    )
    assert joined["cancellation_propagated"]["count"] == 2
    assert sorted(joined["cancellation_propagated"]["run_ids"]) == sorted([loser, of_loser])
    await audit(database, kit)


async def test_a_decision_is_told_in_one_event(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 2, join_mode="all")
    done(await group.end(0))
    done(await group.end(1, "failed"))
    async with database.read() as session:
        told = await session.driver.fetch(
            "SELECT seq, data FROM run_events WHERE root_run_id = $1 AND type = 'orchestration.join_decision'",
            UUID(group.root.run_id),
        )
    assert [row["data"] for row in told] == [
        {
            "group_id": group.group_id,
            "mode": "all",
            "status": "completed_with_errors",
            "complete": True,
            "success_count": 1,
            "failure_count": 1,
            "running_count": 0,
        }
    ]
    await audit(database, kit)


async def test_a_decided_group_keeps_counting_and_keeps_its_decision(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 2, join_mode="first_success")
    done(await group.end(0))
    first = await group.read()
    done(await group.end(1, "cancelled"))
    again = await group.read(mode="all", timeout_s=1)
    assert {**again, "cancellation_propagated": None} == {**first, "cancellation_propagated": None}
    await audit(database, kit)


async def test_a_group_whose_orchestrator_is_under_a_fence_reads_as_cancelled_and_is_never_decided(
    kit: Kit, database: Database
) -> None:
    group = await group_of(kit, 3, join_mode="fail_fast")
    body = {"caller_run_id": group.root.run_id, "run_id": group.root.run_id, "reason": "stop"}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    joined = await group.read()
    assert (joined["status"], joined["complete"], joined["decided_seq"]) == ("cancelled", True, None)
    assert (joined["failure_count"], joined["running_count"]) == (3, 0)
    async with database.read() as session:
        stored = await session.driver.fetchrow(
            "SELECT status, decided_seq FROM orchestration_groups WHERE group_id = $1", UUID(group.group_id)
        )
    assert tuple(stored) == ("cancelled", None)
    await audit(database, kit)
