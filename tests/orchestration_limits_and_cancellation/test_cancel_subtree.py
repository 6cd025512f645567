"""Cancelling over HTTP: what is covered, what is answered, and by whom it may be asked for."""

import asyncio
import uuid
from typing import Any
from uuid import UUID

import pytest

from kernel.commands.draining import Drain, Progress
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.store import drains, trees
from kernel.store.engine import Database
from load.audit import audit
from tests.faults.clocks import set_back
from tests.kit import Kit, Run, done, refused
from tests.orchestration_runtime_primitives.work.crew import fence

CANCEL = "/internal/orchestration/cancel-subtree"


async def cancel(kit: Kit, caller: Run | str, run_id: str, **more: object) -> dict[str, Any]:
    api = kit.api.acting_with(caller.token) if isinstance(caller, Run) else kit.api
    caller_id = caller.run_id if isinstance(caller, Run) else caller
    return done(await api.post(CANCEL, {"caller_run_id": caller_id, "run_id": run_id, **more}))


async def status_of(kit: Kit, run_id: str) -> str:
    status: str = done(await kit.api.get(f"/agents/runs/{run_id}"))["status"]
    return status


async def child(kit: Kit, caller: Run | str, key: str, target: str = "worker", **more: object) -> str:
    run_id: str = done(await kit.spawn(caller, key, target, **more))["spawned_run_ids"][0]
    return run_id


async def test_a_cancelled_run_takes_everything_below_it_along_and_nothing_beside_it(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = await child(kit, root, "branch", "orchestrator")
    leaf = await child(kit, branch, "leaf")
    beside = await child(kit, root, "beside")
    answer = await cancel(kit, root, branch)
    assert answer["cancelled_count"] == 2
    assert set(answer["cancelled_run_ids"]) == {branch, leaf}
    assert answer["scanned_count"] == 2
    assert answer["state"] == "drained"
    assert answer["reason"] == "cancelled_by_orchestration"
    assert answer["include_root"] is True
    assert answer["run_id"] == branch
    assert [await status_of(kit, run_id) for run_id in (branch, leaf, beside)] == ["cancelled", "cancelled", "queued"]
    assert await status_of(kit, root.run_id) == "running"


async def test_a_cancelled_run_tells_why(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = await child(kit, root, "branch", "orchestrator")
    leaf = await child(kit, branch, "leaf")
    answer = await cancel(kit, root, branch, reason="changed my mind")
    run = done(await kit.api.get(f"/agents/runs/{leaf}"))
    assert run["cancellation"] == {"cancellation_id": answer["cancellation_id"], "reason": "changed my mind"}


@pytest.mark.parametrize("acknowledges", [False, True])
async def test_a_run_names_the_fence_that_cancelled_it_and_not_the_first_that_was_set_over_it(
    kit: Kit, database: Database, *, acknowledges: bool
) -> None:
    root, _ = await kit.team()
    leased = await child(kit, root, "leased")
    (work,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 900}))["runs"]
    first = await cancel(kit, root, leased, grace_s=600, reason="first")
    second = await cancel(kit, root, root.run_id, grace_s=60 if acknowledges else 0, reason="second")
    assert second["cancellation_id"] != first["cancellation_id"]
    held = {"run_id": leased, "lease": work["lease"]}
    if acknowledges:
        # Until the end is written down, the run tells what its worker hears.
        (told,) = done(await kit.api.post("/work/heartbeat", {"leases": [held]}))["leases"]
        run = done(await kit.api.get(f"/agents/runs/{leased}"))
        assert run["cancellation"] == {"cancellation_id": told["cancellation_id"], "reason": told["reason"]}
        done(await kit.api.post("/work/complete", {**held, "status": "cancelled"}))
    run = done(await kit.api.get(f"/agents/runs/{leased}"))
    assert run["cancellation"] == {"cancellation_id": second["cancellation_id"], "reason": "second"}
    (told,) = done(await kit.api.post("/work/heartbeat", {"leases": [held]}))["leases"]
    problem = refused(await kit.api.post("/work/complete", {**held, "status": "failed"}), 409, "run_cancelled")
    assert [told["reason"], problem["reason"]] == ["second"] * 2
    async with database.read() as session:
        assert await audit(session.driver, tenant_id=uuid.UUID(kit.tenant_id)) == []


async def test_a_repeat_cancels_nothing_and_names_the_same_cancellation(kit: Kit) -> None:
    root, _ = await kit.team()
    branch = await child(kit, root, "branch")
    first = await cancel(kit, root, branch)
    again = await cancel(kit, root, branch)
    assert again["cancelled_count"] == 0
    assert again["cancelled_run_ids"] == []
    assert again["cancellation_id"] == first["cancellation_id"]
    assert again["state"] == "drained"


async def test_a_run_that_cancelled_itself_may_repeat_that_and_nothing_else(kit: Kit) -> None:
    root, _ = await kit.team()
    branch = await child(kit, root, "branch")
    first = await cancel(kit, root, root.run_id)
    assert first["cancelled_count"] == 2
    again = await cancel(kit, root, root.run_id)
    assert again["cancelled_count"] == 0
    api = kit.api.acting_with(root.token)
    refused(await api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": branch}), 409, "run_cancelled")
    refused(await kit.spawn(root, "late"), 409, "run_cancelled")


async def test_a_run_that_has_ended_cancels_nothing(kit: Kit) -> None:
    root, _ = await kit.team()
    branch = await child(kit, root, "branch")
    done(await kit.api.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"}))
    problem = refused(
        await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": branch}), 409, "caller_not_active"
    )
    assert root.run_id in problem["detail"]
    assert await status_of(kit, branch) == "queued"


async def test_without_the_root_the_run_lives_on_and_may_spawn_anew(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = await child(kit, root, "branch", "orchestrator")
    leaf = await child(kit, branch, "leaf")
    answer = await cancel(kit, root, root.run_id, include_root=False)
    assert answer["cancelled_count"] == 2
    assert answer["include_root"] is False
    assert await status_of(kit, root.run_id) == "running"
    assert await status_of(kit, leaf) == "cancelled"
    fresh = await child(kit, root, "fresh")
    assert await status_of(kit, fresh) == "queued"
    again = await cancel(kit, root, root.run_id, include_root=False)
    assert again["cancelled_run_ids"] == [fresh]


async def test_without_the_root_a_repeat_is_one_as_long_as_the_run_has_spawned_nothing_more(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    beside = await child(kit, root, "beside", "orchestrator")
    branch = await child(kit, root, "branch", "orchestrator")
    await child(kit, branch, "a")
    first = await cancel(kit, root, branch, include_root=False)
    assert first["cancelled_count"] == 1
    # What others spawn since is no child of the run.
    await child(kit, beside, "b")
    body = {"caller_run_id": root.run_id, "run_id": branch, "include_root": False}
    repeat = await kit.api.post(CANCEL, body)
    again = done(repeat)
    assert repeat.headers["X-Idempotency-Reused"] == "true"
    assert (again["cancellation_id"], again["cancelled_count"]) == (first["cancellation_id"], 0)
    # The run itself is not covered by it.
    assert (await cancel(kit, root, branch))["cancelled_run_ids"] == [branch]


async def test_without_the_root_a_shorter_grace_is_no_repeat(kit: Kit) -> None:
    root, _ = await kit.team()
    leased = await child(kit, root, "leased")
    done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 300}))
    first = await cancel(kit, root, root.run_id, include_root=False, grace_s=600)
    assert first["state"] == "draining"
    again = await cancel(kit, root, root.run_id, include_root=False, grace_s=900)
    assert again["cancellation_id"] == first["cancellation_id"]
    at_once = await cancel(kit, root, root.run_id, include_root=False)
    assert at_once["cancelled_run_ids"] == [leased]


async def test_where_many_were_spawned_since_a_new_fence_is_set_without_looking_at_all_of_them(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.store.drains.MAX_LATER", 3)
    root, _ = await kit.team(max_depth=5)
    branch = await child(kit, root, "branch", "orchestrator")
    first = await cancel(kit, root, branch, include_root=False)
    done(await kit.spawn_group(root, "g", 3))
    again = await cancel(kit, root, branch, include_root=False)
    assert (again["cancellation_id"] == first["cancellation_id"], again["cancelled_count"]) == (False, 0)


async def test_of_the_fences_on_an_orchestrators_groups_only_that_on_the_runs_own_is_read(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    members = []
    for prefix in "abc":
        group = done(await kit.spawn_group(root, prefix, 2, join_mode="fail_fast", start_background=False))
        members.append(group["spawned_run_ids"])
        done(await kit.api.post(f"/agents/runs/{members[-1][0]}/status", {"status": "failed"}))
    tenant_id = uuid.UUID(kit.tenant_id)
    async with database.read() as session:
        _, above_root = await drains.fences_above(session, tenant_id, uuid.UUID(root.run_id))
        _, above_loser = await drains.fences_above(session, tenant_id, uuid.UUID(members[1][1]))
        loser = {uuid.UUID(members[1][1]): (uuid.UUID(root.run_id), 0)}
        (over,) = (await drains.fences_of_ends(session, tenant_id, loser)).values()
    assert above_root == {}
    assert [above.fence for above in above_loser.values()] == [over]


async def test_only_fences_cancel_so_a_finished_run_has_active_descendants_to_cancel(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = await child(kit, root, "branch", "orchestrator", start_background=False)
    leaf = await child(kit, branch, "leaf")
    done(await kit.api.post(f"/agents/runs/{branch}/status", {"status": "completed"}))
    assert await status_of(kit, leaf) == "queued"
    answer = await cancel(kit, root, branch)
    assert answer["cancelled_run_ids"] == [leaf]
    assert await status_of(kit, branch) == "completed"


async def test_cancelling_what_has_ended_with_all_below_it_cancels_nothing(kit: Kit) -> None:
    root, _ = await kit.team()
    branch = await child(kit, root, "branch", start_background=False)
    done(await kit.api.post(f"/agents/runs/{branch}/status", {"status": "completed"}))
    answer = await cancel(kit, root, branch)
    assert (answer["cancelled_count"], answer["state"]) == (0, "drained")
    assert await status_of(kit, branch) == "completed"


async def test_a_group_closes_with_its_orchestrator_and_has_no_decision(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = await child(kit, root, "branch", "orchestrator")
    group = done(await kit.spawn_group(branch, "g", 3))
    await cancel(kit, root, branch)
    tree = done(await kit.api.get(f"/agents/runs/{root.run_id}/tree"))["tree"]
    (shown,) = tree["children"][0]["groups"]
    assert (shown["group_id"], shown["status"]) == (group["orchestration_group_id"], "cancelled")
    assert {member["status"] for member in shown["members"]} == {"cancelled"}


async def test_cancelled_members_count_as_failures_of_a_group_that_goes_on(kit: Kit) -> None:
    root, _ = await kit.team()
    group = done(await kit.spawn_group(root, "g", 3, join_mode="fail_fast"))
    answer = await cancel(kit, root, group["spawned_run_ids"][1])
    assert answer["cancelled_count"] == 1
    joined = done(
        await kit.api.post(
            "/internal/orchestration/join",
            {"caller_run_id": root.run_id, "orchestration_group_id": group["orchestration_group_id"]},
        )
    )
    assert joined["status"] == "failed"
    assert await status_of(kit, group["spawned_run_ids"][0]) == "cancelled"


async def test_a_run_token_cancels_at_and_below_its_run_only(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5)
    answer = done(await kit.spawn(root, "branch", "orchestrator", start_background=False))
    branch = Run(answer["spawned_run_ids"][0], answer["run_tokens"][answer["spawned_run_ids"][0]], "")
    beside = await child(kit, root, "beside")
    # The token lacks agents.execute here, so the tenant's acts for it; its reach is the caller's.
    for caller, target in ((branch.run_id, beside), (branch.run_id, root.run_id)):
        problem = refused(await kit.api.post(CANCEL, {"caller_run_id": caller, "run_id": target}), 403, "forbidden")
        assert problem["reasons"][0]["code"] == "outside_remit"
        assert problem["decision_id"]
    refused(
        await kit.api.acting_with(root.token).post(CANCEL, {"caller_run_id": branch.run_id, "run_id": branch.run_id}),
        403,
        "forbidden",
    )
    assert await status_of(kit, beside) == "queued"


async def test_what_is_anothers_does_not_exist(kit: Kit, api: Any) -> None:
    root, _ = await kit.team()
    other = await Kit.make(api)
    theirs, _ = await other.team()
    answer = await cancel(other, theirs, theirs.run_id)
    for caller, target in (
        (root.run_id, theirs.run_id),
        (theirs.run_id, root.run_id),
        (root.run_id, str(uuid.uuid4())),
    ):
        refused(await kit.api.post(CANCEL, {"caller_run_id": caller, "run_id": target}), 404, "not_found")
    path = f"/internal/orchestration/cancellations/{answer['cancellation_id']}"
    refused(await kit.api.get(path), 404, "not_found")
    assert done(await other.api.get(path))["state"] == "drained"


@pytest.mark.parametrize(
    "wrong", [{"grace_s": -1}, {"grace_s": 3601}, {"wait_s": 300.5}, {"include_root": "maybe"}, {"unknown": 1}]
)
async def test_what_is_malformed_is_refused(kit: Kit, wrong: dict[str, object]) -> None:
    root, _ = await kit.team()
    body = {"caller_run_id": root.run_id, "run_id": root.run_id, **wrong}
    problem = refused(await kit.api.post(CANCEL, body), 400, "invalid_request")
    assert problem["errors"][0]["field"] == next(iter(wrong))


async def test_a_cancellation_can_be_looked_at(kit: Kit) -> None:
    root, _ = await kit.team()
    branch = await child(kit, root, "branch")
    answer = await cancel(kit, root, branch, reason="enough")
    shown = done(await kit.api.get(f"/internal/orchestration/cancellations/{answer['cancellation_id']}"))
    assert shown["state"] == "drained"
    assert shown["cancelled_count"] == 1
    assert shown["reason"] == "enough"
    assert shown["run_id"] == branch
    assert shown["drained_at"] >= shown["fenced_at"]


async def test_a_leased_run_keeps_its_grace_and_reads_as_cancelled_at_once(kit: Kit) -> None:
    root, _ = await kit.team()
    leased = await child(kit, root, "leased")
    (work,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))["runs"]
    waiting = await child(kit, root, "waiting")
    assert work["run_id"] == leased
    answer = await cancel(kit, root, root.run_id, include_root=False, grace_s=600)
    assert answer["cancelled_run_ids"] == [waiting]
    assert answer["state"] == "draining"
    assert await status_of(kit, leased) == "cancelled"
    body = {"run_id": leased, "lease": work["lease"]}
    assert (await kit.api.post("/work/complete", {**body, "status": "completed"})).status_code == 409
    done(await kit.api.post("/work/complete", {**body, "status": "cancelled"}))
    assert await status_of(kit, leased) == "cancelled"


async def test_what_a_fence_has_looked_at_is_told_while_it_drains_and_is_never_less_than_it_has_cancelled(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    monkeypatch.setattr("kernel.store.drains.CHUNK_RUNS", 2)

    async def counts(cancellation_id: str) -> tuple[int, int]:
        shown = done(await kit.api.get(f"/internal/orchestration/cancellations/{cancellation_id}"))
        assert shown["state"] == "draining"
        return shown["cancelled_count"], shown["scanned_count"]

    root, _ = await kit.team()
    leased = [await child(kit, root, key) for key in "ab"]
    works = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 2, "lease_s": 900}))["runs"]
    only_leased = await cancel(kit, root, leased[0], grace_s=600)
    assert await counts(only_leased["cancellation_id"]) == (0, only_leased["scanned_count"]) == (0, 1)
    done(await kit.spawn_group(root, "g", 5))
    with_others = await cancel(kit, root, root.run_id, include_root=False, grace_s=60)
    assert await counts(with_others["cancellation_id"]) == (5, with_others["scanned_count"]) == (5, 7)

    # Without a grace: after one chunk of several, and where a run ends before the drain has looked at any.
    other = await kit.root(root.agent_id)
    done(await kit.spawn_group(other, "g", 5))
    chunked = await fence(database, kit, other.run_id, other.run_id)
    async with database.read() as session:
        target = await drains.open_fence(session, uuid.UUID(kit.tenant_id), chunked)
    assert target is not None
    await Drain(database).execute(target, timeout_s=0)
    assert await counts(str(chunked)) == (2, 6)
    third = await kit.root(root.agent_id)
    await child(kit, third, "c")
    (work,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 900}))["runs"]
    quick = await fence(database, kit, third.run_id, third.run_id, grace_s=600)
    done(await kit.api.post("/work/complete", {k: work[k] for k in ("run_id", "lease")} | {"status": "cancelled"}))
    assert await counts(str(quick)) == (1, 1)
    assert {work["run_id"] for work in works} == set(leased)


async def test_what_acknowledges_is_listed_with_what_is_drained(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    leased = [await child(kit, root, key) for key in "abc"]
    works = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 3}))["runs"]
    waiting = await child(kit, root, "waiting")
    waits = asyncio.create_task(cancel(kit, root, root.run_id, include_root=False, grace_s=600, wait_s=30))
    async with asyncio.timeout(10):
        while await status_of(kit, leased[0]) != "cancelled":  # noqa: ASYNC110 - a fence is told to nobody
            await asyncio.sleep(0.02)
    for work in works:
        body = {"run_id": work["run_id"], "lease": work["lease"], "status": "cancelled"}
        done(await kit.api.post("/work/complete", body))
    await DrainCancellations(database).run_once()
    answer = await waits
    assert (answer["cancelled_count"], set(answer["cancelled_run_ids"])) == (4, {waiting, *leased})
    events = done(await kit.api.get(f"/agents/runs/{root.run_id}/events?limit=1000"))["events"]
    told = [event for event in events if event["data"].get("status") == "cancelled"]
    assert {event["subject"] for event in told} == set(leased)
    assert {event["data"]["cancellation_id"] for event in told} == {answer["cancellation_id"]}


async def test_of_overlapping_graces_the_earliest_end_wins(kit: Kit) -> None:
    root, _ = await kit.team()
    leased = await child(kit, root, "leased")
    done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))
    slow = await cancel(kit, root, leased, grace_s=600)
    longer = await cancel(kit, root, leased, grace_s=900)
    assert longer["cancellation_id"] == slow["cancellation_id"]
    now = await cancel(kit, root, leased)
    assert now["cancellation_id"] != slow["cancellation_id"]
    assert now["cancelled_run_ids"] == [leased]


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_lies_neither_prolongs_a_grace_nor_ends_it(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    set_back(monkeypatch, hours)
    root, _ = await kit.team()
    leased = await child(kit, root, "leased")
    (work,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 900}))["runs"]
    slow = await cancel(kit, root, leased, grace_s=600)
    leases = [{"run_id": leased, "lease": work["lease"]}]
    (told,) = done(await kit.api.post("/work/heartbeat", {"leases": leases}))["leases"]
    assert 0 < told["grace_s"] <= 600
    again = await cancel(kit, root, leased, grace_s=601)
    assert again["cancellation_id"] == slow["cancellation_id"]
    now = await cancel(kit, root, leased)
    assert (now["cancelled_run_ids"], now["state"]) == ([leased], "drained")


async def test_few_active_runs_among_many_that_have_ended_are_drained_before_the_answer(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=5, max_fanout=2_000, max_children_total=5_000)
    branch = await child(kit, root, "branch", "orchestrator")
    done(await kit.spawn_group(branch, "old", 700))
    await cancel(kit, root, branch, include_root=False, wait_s=30)
    done(await kit.spawn_group(branch, "new", 60))
    answer = await cancel(kit, root, branch)
    assert (answer["state"], answer["cancelled_count"]) == ("drained", 61)
    assert answer["scanned_count"] == 761


async def test_a_caller_that_waits_for_a_drain_in_a_tree_that_is_held_hears_how_far_it_is(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await kit.team(max_fanout=1_000, max_children_total=1_000)
    done(await kit.spawn_group(root, "many", 300))
    execute, begun, holds = Drain.execute, asyncio.Event(), asyncio.Event()

    async def after_the_holder(self: Drain, *arguments: Any, **more: Any) -> Progress:
        begun.set()
        await holds.wait()
        return await execute(self, *arguments, **more)

    monkeypatch.setattr(Drain, "execute", after_the_holder)
    waits = asyncio.create_task(cancel(kit, root, root.run_id, wait_s=2))
    await begun.wait()
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        holds.set()
        answer = await waits
    assert (answer["state"], answer["cancelled_count"]) == ("draining", 0)
    await DrainCancellations(database).run_once()
    told = done(await kit.api.get(f"/internal/orchestration/cancellations/{answer['cancellation_id']}"))
    assert (told["state"], told["cancelled_count"]) == ("drained", 301)
