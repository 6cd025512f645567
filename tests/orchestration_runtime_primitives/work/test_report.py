"""Status reports: what a runtime may say of the runs that it executes itself."""

import asyncio
from uuid import UUID, uuid4

import httpx2
import pytest

from kernel.commands.ending import MAX_SEEN, Ending, end_runs
from kernel.domain.run import RunStatus
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.store import trees
from kernel.store.engine import Database
from tests.kit import Kit, Run, done, refused
from tests.orchestration_runtime_primitives.work.crew import (
    PLENTY,
    WELL_BEFORE_S,
    audit,
    claim_one,
    fence,
    report,
    row,
    spawn_one,
)


async def spawn_and_complete(database: Database, kit: Kit, root: Run, parent: str, size: int) -> None:
    """A group below a run of a tree, all of whose members have ended."""
    spawned = done(await kit.spawn_group(parent, "g", size, start_background=False))["spawned_run_ids"]
    async with database.write() as session:
        tree = await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        await end_runs(session, tree, [Ending(UUID(run_id), RunStatus.COMPLETED) for run_id in spawned])
        await trees.advance(session, tree)


async def fences_of(database: Database, root: Run) -> list[tuple[str, str]]:
    """Scope and reason of each fence in a tree."""
    async with database.read() as session:
        rows = await session.driver.fetch(
            "SELECT scope, reason FROM cancellations WHERE root_run_id = $1", UUID(root.run_id)
        )
    return [(row["scope"], row["reason"]) for row in rows]


async def test_a_root_run_is_paused_resumed_and_completed_by_its_runtime(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    for status in ("paused", "running"):
        assert done(await report(kit.api, root.run_id, status))["status"] == status
    answer = done(await report(kit.api, root.run_id, "completed", output={"x": 1}))
    assert answer["finalized_at"] is not None
    stored = await row(database, root.run_id)
    assert (stored["status"], stored["output"], stored["started_seq"]) == ("completed", {"x": 1}, 1)
    await audit(database, kit)


async def test_an_illegal_step_is_refused_and_names_the_possible_ones(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    done(await report(kit.api, root.run_id, "completed"))
    problem = refused(await report(kit.api, root.run_id, "running"), 409, "illegal_transition")
    assert (problem["current"], problem["requested"]) == ("completed", "running")
    refused(await report(kit.api, root.run_id, "failed"), 409, "illegal_transition")
    await audit(database, kit)


async def test_a_repeat_of_a_report_answers_as_the_first_time(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    done(await report(kit.api, root.run_id, "paused"))
    again = await report(kit.api, root.run_id, "paused")
    assert (done(again)["status"], again.headers["X-Idempotency-Reused"]) == ("paused", "true")
    first = done(await report(kit.api, root.run_id, "failed", error={"message": "no"}))
    again = await report(kit.api, root.run_id, "failed", error={"message": "no"})
    assert (done(again), again.headers["X-Idempotency-Reused"]) == (first, "true")
    refused(await report(kit.api, root.run_id, "failed", error={"message": "other"}), 409, "illegal_transition")
    await audit(database, kit)


async def test_a_child_of_the_callers_own_is_reported_with_the_callers_token(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root, start_background=False)
    assert done(await report(kit.api.acting_with(root.token), run_id, "completed"))["status"] == "completed"
    await audit(database, kit)


async def test_a_runs_token_reports_no_run_beside_or_above_it(kit: Kit) -> None:
    root, _ = await kit.team()
    spawned = done(
        await kit.spawn(root, "a", target="orchestrator", scope_subset=["agents.execute"], start_background=False)
    )
    (child,) = spawned["spawned_run_ids"]
    sibling = await spawn_one(kit, root, "b", start_background=False)
    api = kit.api.acting_with(spawned["run_tokens"][child])
    for run_id in (root.run_id, sibling):
        refused(await report(api, run_id, "completed"), 403, "forbidden")
    refused(await report(api, str(uuid4()), "completed"), 404, "not_found")
    done(await report(api, child, "completed"))


async def test_what_a_worker_executes_is_reported_with_its_lease_only(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root)
    # Also while it waits for a worker.
    refused(await report(kit.api, run_id, "running"), 409, "lease_lost")
    run = await claim_one(kit)
    refused(await report(kit.api, run_id, "completed"), 409, "lease_lost")
    refused(await report(kit.api, run_id, "paused", lease=str(uuid4())), 409, "lease_lost")
    done(await report(kit.api, run_id, "paused", lease=run["lease"]))
    done(await report(kit.api, run_id, "running", lease=run["lease"]))
    done(await report(kit.api, run_id, "completed", lease=run["lease"], output=[1]))
    assert (await row(database, run_id))["output"] == [1]
    await audit(database, kit)


async def test_under_a_fence_only_cancelled_is_reported(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await fence(database, kit, root.run_id, root.run_id, reason="wrong turn", grace_s=60)
    for status in ("paused", "completed", "failed"):
        problem = refused(await report(kit.api, root.run_id, status), 409, "run_cancelled")
        assert problem["reason"] == "wrong turn"
    done(await report(kit.api, root.run_id, "cancelled"))
    again = await report(kit.api, root.run_id, "cancelled")
    assert again.headers["X-Idempotency-Reused"] == "true"
    refused(await report(kit.api, root.run_id, "completed"), 409, "run_cancelled")
    await audit(database, kit)


async def test_a_malformed_report_is_refused(kit: Kit) -> None:
    root, _ = await kit.team()
    refused(await report(kit.api, root.run_id, "queued"), 400, "invalid_request")
    refused(await report(kit.api, root.run_id, "paused", output={}), 400, "invalid_request")
    refused(await report(kit.api, root.run_id, "completed", output="a\x00b"), 400, "invalid_request")
    refused(await report(kit.api, str(uuid4()), "completed"), 404, "not_found")


async def test_a_parent_that_ends_closes_its_children_where_its_policy_says_so(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(parent_close_policy="cancel")
    run_id = await spawn_one(kit, root)
    done(await report(kit.api, root.run_id, "completed"))
    await DrainCancellations(database).run_once()
    assert (await row(database, run_id))["status"] == "cancelled"
    assert (await row(database, root.run_id))["status"] == "completed"
    assert await fences_of(database, root) == [("children", "parent_closed")]
    await audit(database, kit)


async def test_a_parent_closes_what_a_finished_child_left_running(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(parent_close_policy="continue")
    await kit.orchestrator("closer", may_spawn=["orchestrator"], parent_close_policy="cancel")
    closer = await kit.root((await kit.api.get("/agents?limit=50")).json()["items"][-1]["agent_id"])
    spawned = done(
        await kit.spawn(
            closer, "a", target="orchestrator", scope_subset=["agents.execute", "read"], start_background=False
        )
    )
    (middle,) = spawned["spawned_run_ids"]
    below = await spawn_one(kit, middle)
    done(await report(kit.api, middle, "completed"))
    assert (await row(database, below))["status"] == "queued"
    done(await report(kit.api, closer.run_id, "failed"))
    await DrainCancellations(database).run_once()
    assert (await row(database, below))["status"] == "cancelled"
    assert root
    await audit(database, kit)


async def test_a_parent_that_ends_last_closes_nothing(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(parent_close_policy="cancel", **PLENTY)
    await spawn_and_complete(database, kit, root, root.run_id, MAX_SEEN + 1)
    done(await report(kit.api, root.run_id, "completed"))
    assert await fences_of(database, root) == []
    await audit(database, kit)


@pytest.mark.parametrize("ended", [5, MAX_SEEN - 1, MAX_SEEN])
async def test_a_parent_looks_at_so_many_that_have_ended_and_then_leaves_it_to_a_drain(
    kit: Kit, database: Database, ended: int
) -> None:
    await kit.team(parent_close_policy="cancel", **PLENTY)
    root = await kit.root(await kit.orchestrator("boss", may_spawn=["orchestrator", "worker"], **PLENTY))
    scopes = ["agents.execute", "read"]
    spawned = done(await kit.spawn(root, "middle", "orchestrator", scope_subset=scopes, start_background=False))
    (middle,) = spawned["spawned_run_ids"]
    elsewhere = await spawn_one(kit, root)
    await spawn_and_complete(database, kit, root, middle, ended)
    done(await report(kit.api, middle, "completed"))
    assert await fences_of(database, root) == [("children", "parent_closed")] * (ended == MAX_SEEN)
    await DrainCancellations(database).run_once()
    assert (await row(database, elsewhere))["status"] == "queued"
    await audit(database, kit)


async def test_children_go_on_by_default_and_where_the_parent_was_cancelled(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root)
    done(await report(kit.api, root.run_id, "completed"))
    await DrainCancellations(database).run_once()
    assert (await row(database, run_id))["status"] == "queued"
    await audit(database, kit)


async def test_a_herd_of_reports_in_one_tree_is_a_few_transactions(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(max_fanout=200, max_children_total=200)
    members = done(await kit.spawn_group(root, "herd", 100, start_background=False))["spawned_run_ids"]
    await asyncio.gather(*(report(kit.api, member, "paused") for member in members))
    answers = await asyncio.gather(*(report(kit.api, member, "completed") for member in members))
    assert {done(answer)["status"] for answer in answers} == {"completed"}
    ends = [(await row(database, member))["finalized_seq"] for member in members]
    # A batch of those that end shares one number of the tree's sequence.
    assert len(set(ends)) < len(members) / 2
    await audit(database, kit)


async def test_each_of_a_herd_is_answered_on_its_own_merits(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(max_fanout=20)
    ended, paused, doomed, twice, queued = (
        *[await spawn_one(kit, root, key, start_background=False) for key in ("a", "b", "c", "d")],
        await spawn_one(kit, root, "e"),
    )
    done(await report(kit.api, ended, "completed"))
    fence_of_one = {"caller_run_id": root.run_id, "run_id": doomed}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", fence_of_one))
    # The first leaves alone; the others go together behind it.
    answers = await asyncio.gather(
        report(kit.api, root.run_id, "paused"),
        report(kit.api, ended, "failed"),
        report(kit.api, paused, "paused"),
        report(kit.api, doomed, "completed"),
        report(kit.api, twice, "paused"),
        report(kit.api, twice, "completed"),
        report(kit.api, queued, "completed"),
    )
    refused(answers[1], 409, "illegal_transition")
    refused(answers[3], 409, "run_cancelled")
    refused(answers[6], 409, "lease_lost")
    assert [answers[n].status_code for n in (0, 2, 5)] == [200, 200, 200]
    # Which of the two reports on one run came first is open; that it has ended is not.
    assert answers[4].status_code in (200, 409)
    assert (await row(database, twice))["status"] == "completed"
    assert (await row(database, paused))["status"] == "paused"
    await audit(database, kit)


async def test_a_report_waits_for_no_tree_but_its_own(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    # Enough of them that some go together.
    roots = [root, *[await kit.root(root.agent_id) for _ in range(6)]]
    members = [done(await kit.spawn_group(one, "g", 2, start_background=False))["spawned_run_ids"] for one in roots]
    reports: list[asyncio.Task[httpx2.Response]] = []
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        waiting = [asyncio.create_task(report(kit.api, member, "completed")) for member in members[0]]
        for first, second in members[1:]:
            reports.append(asyncio.create_task(report(kit.api, first, "completed")))
            await asyncio.sleep(0.02)
            reports.append(asyncio.create_task(report(kit.api, second, "paused")))
        answers = await asyncio.wait_for(asyncio.gather(*reports), WELL_BEFORE_S)
        assert not any(one.done() for one in waiting)
    answers += await asyncio.wait_for(asyncio.gather(*waiting), WELL_BEFORE_S)
    assert {answer.status_code for answer in answers} == {200}
    assert [(await row(database, member))["status"] for member in members[0]] == ["completed", "completed"]
    await audit(database, kit)
