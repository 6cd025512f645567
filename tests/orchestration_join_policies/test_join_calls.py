"""The call itself: who may join, what may be changed, and how it waits."""

import asyncio
from collections.abc import Iterable
from time import perf_counter
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
import structlog

from kernel.commands.join import JoinCommand, JoinGroup
from kernel.domain.fences import Fence
from kernel.domain.principal import Principal
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.store.engine import Database, ReadSession
from kernel.store.fences import RunKey, covered
from kernel.wakeups import Wakeups
from service.dependencies import Services
from tests.kit import Kit, done, refused
from tests.orchestration_join_policies.join_calls import Group, group_of
from tests.orchestration_runtime_primitives.work.crew import WELL_BEFORE_S, audit, fence, until_nobody_borrows


async def test_an_undecided_group_takes_other_parameters_and_is_judged_anew(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 3)
    done(await group.end(0))
    changed = await group.read(mode="quorum", quorum_threshold=2, timeout_s=500)
    assert (changed["status"], changed["mode"], changed["quorum_threshold"]) == ("running", "quorum", 2)
    assert changed["timeout_s"] == 500
    decided = await group.read(quorum_threshold=1)
    assert (decided["status"], decided["complete"]) == ("completed", True)
    async with database.read() as session:
        told = await session.driver.fetch(
            "SELECT seq, data FROM run_events WHERE root_run_id = $1 AND type = 'orchestration.join_decision'"
            " ORDER BY seq",
            UUID(group.root.run_id),
        )
    assert [(row["data"]["complete"], row["data"]["status"]) for row in told] == [
        (False, "running"),
        (False, "running"),
        (True, "completed"),
    ]
    # The change decided it, so the change's number is the one that is stored.
    assert decided["decided_seq"] == told[1]["seq"]
    assert told[1]["data"]["quorum_threshold"] == 1
    await audit(database, kit)


async def test_a_repeated_spawn_answers_with_the_first_terms_whatever_the_group_was_given_since(kit: Kit) -> None:
    root, _ = await kit.team(join_timeout_s=70)
    wanted = {"join_mode": "all", "start_background": False}
    first = done(await kit.spawn_group(root, "g", 2, **wanted))
    assert (first["timeout_s"], first["join_mode"], first["quorum_threshold"]) == (70, "all", None)
    group = Group(kit, root, first["orchestration_group_id"], first["spawned_run_ids"])
    changed = await group.read(mode="quorum", quorum_threshold=1, timeout_s=500)
    assert (changed["timeout_s"], changed["mode"], changed["quorum_threshold"]) == (500, "quorum", 1)
    # Nor does the policy of today, from which the first call took its timeout.
    done(await kit.api.put(f"/agents/{root.agent_id}/orchestrator-policy", {"join_timeout_s": 30}))
    response = await kit.spawn_group(root, "g", 2, **wanted)
    again = done(response)
    assert response.headers["X-Idempotency-Reused"] == "true"
    # Only the members' tokens are new.
    assert {**again, "idempotent": False, "run_tokens": None} == {**first, "run_tokens": None}
    # What was asked for is told as it was asked for.
    named = {"join_mode": "quorum", "quorum_threshold": 2, "timeout_s": 90}
    second = done(await kit.spawn_group(root, "h", 2, **named))
    body = {"caller_run_id": root.run_id, "orchestration_group_id": second["orchestration_group_id"]}
    done(await kit.api.post("/internal/orchestration/join", {**body, "mode": "first_success", "timeout_s": 5}))
    assert {**done(await kit.spawn_group(root, "h", 2, **named)), "idempotent": False} == second


async def test_the_same_parameters_again_change_nothing(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 2, join_mode="quorum", quorum_threshold=1, timeout_s=90)
    for _ in range(2):
        await group.read(mode="quorum", quorum_threshold=1, timeout_s=90)
    async with database.read() as session:
        seq = await session.driver.fetchval("SELECT seq FROM run_trees WHERE root_run_id = $1", UUID(group.root.run_id))
    assert seq == 2


async def test_the_timeout_runs_from_the_groups_start(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 1)
    await group.read(timeout_s=1_000)
    async with database.read() as session:
        seconds = await session.driver.fetchval(
            "SELECT extract(epoch FROM deadline - created_at)::int FROM orchestration_groups WHERE group_id = $1",
            UUID(group.group_id),
        )
    assert seconds == 1_000


@pytest.mark.parametrize(
    "more", [{"mode": "quorum"}, {"mode": "quorum", "quorum_threshold": 3}, {"quorum_threshold": 3}]
)
async def test_a_quorum_that_is_missing_or_above_the_size_is_refused(kit: Kit, more: dict[str, object]) -> None:
    group = await group_of(kit, 2)
    problem = refused(await group.join(**more), 400, "invalid_request")
    assert problem["errors"][0]["field"] == "quorum_threshold"


@pytest.mark.parametrize("more", [{"join_mode": "quorum"}, {"join_mode": "quorum", "quorum_threshold": 3}])
async def test_a_group_is_not_spawned_with_a_quorum_that_is_missing_or_above_its_size(
    kit: Kit, more: dict[str, object]
) -> None:
    root, _ = await kit.team()
    problem = refused(await kit.spawn_group(root, "g", 2, **more), 400, "invalid_request")
    assert "quorum_threshold" in problem["detail"]


async def test_a_group_without_members_is_joined_as_empty_at_once(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 0)
    async with asyncio.timeout(WELL_BEFORE_S):
        joined = await group.read(wait_s=20)
    assert (joined["status"], joined["complete"], joined["decided_seq"]) == ("empty", True, None)
    assert (joined["member_run_ids"], joined["running_count"]) == ([], 0)
    await audit(database, kit)


async def test_what_does_not_exist_is_not_found(kit: Kit) -> None:
    group = await group_of(kit, 1)
    for body in (
        {"caller_run_id": group.root.run_id, "orchestration_group_id": str(uuid4())},
        {"caller_run_id": str(uuid4()), "orchestration_group_id": group.group_id},
    ):
        refused(await kit.api.post("/internal/orchestration/join", body), 404, "not_found")
    other = await Kit.make(kit.admin)
    body = {"caller_run_id": group.root.run_id, "orchestration_group_id": group.group_id}
    refused(await other.api.post("/internal/orchestration/join", body), 404, "not_found")


async def test_a_group_beyond_the_callers_reach_is_forbidden_and_the_refusal_on_record(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    spawned = done(
        await kit.spawn(root, "a", target="orchestrator", scope_subset=["agents.execute"], start_background=False)
    )
    (child,) = spawned["spawned_run_ids"]
    group = await group_of(kit, 1, root=root)
    body = {"caller_run_id": child, "orchestration_group_id": group.group_id}
    by_child = kit.api.acting_with(spawned["run_tokens"][child])
    for api in (kit.api, by_child):
        refused(await api.post("/internal/orchestration/join", body), 403, "forbidden")
    refused(
        await by_child.post("/internal/orchestration/join", {**body, "caller_run_id": root.run_id}), 403, "forbidden"
    )
    async with database.read() as session:
        outcomes = await session.driver.fetch(
            "SELECT outcome FROM policy_decisions WHERE caller_run_id = $1 AND action = 'join'", UUID(child)
        )
    assert [row["outcome"] for row in outcomes] == ["deny", "deny"]
    await audit(database, kit)


async def test_a_refusal_is_told_in_the_callers_tree_until_that_has_ended(kit: Kit, database: Database) -> None:
    caller, _ = await kit.team()
    group = await group_of(kit, 1, root=await kit.root(caller.agent_id))
    done(await group.end(0))
    path = f"/agents/runs/{caller.run_id}/events?limit=1000"
    body = {"caller_run_id": caller.run_id, "orchestration_group_id": group.group_id}
    refused(await kit.api.post("/internal/orchestration/join", body), 403, "forbidden")
    assert done(await kit.api.get(path))["events"][-1]["type"] == "orchestration.policy_deny"
    done(await kit.api.post(f"/agents/runs/{caller.run_id}/status", {"status": "completed"}))
    told = done(await kit.api.get(path))
    assert told["end"]
    refused(await kit.api.post("/internal/orchestration/join", body), 403, "forbidden")
    assert done(await kit.api.get(path)) == told
    async with database.read() as session:
        recorded = await session.driver.fetchval(
            "SELECT count(*) FROM policy_decisions WHERE caller_run_id = $1 AND action = 'join' AND outcome = 'deny'",
            UUID(caller.run_id),
        )
    assert recorded == 2


async def test_an_ended_caller_reads_a_decision_and_waits_for_none(kit: Kit) -> None:
    root, _ = await kit.team()
    decided, open_ = await group_of(kit, 1, root=root), await group_of(kit, 1, root=root, prefix="h")
    done(await decided.end(0))
    done(await kit.api.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"}))
    assert (await decided.read())["status"] == "completed"
    refused(await open_.join(), 409, "caller_not_active")
    assert (await decided.read(mode="first_success"))["mode"] == "all"


async def test_a_caller_under_a_fence_that_leaves_the_group_alone_is_refused(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    group = await group_of(kit, 1, root=root)
    await fence(database, kit, root.run_id, root.run_id)
    assert (await group.read())["status"] == "cancelled"


@pytest.mark.parametrize("look", [1, 2])
async def test_a_group_whose_fence_is_drained_during_a_look_reads_as_cancelled_all_the_same(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    group = await group_of(kit, 2)
    await fence(database, kit, group.root.run_id, group.root.run_id)
    looks = 0

    async def drained_first(session: ReadSession, runs: Iterable[tuple[UUID, UUID, UUID]]) -> dict[RunKey, Fence]:
        nonlocal looks
        looks += 1
        if looks == look:
            await DrainCancellations(database).run_once()
        return await covered(session, runs)

    monkeypatch.setattr("kernel.commands.join.fences", SimpleNamespace(covered=drained_first))
    joined = await group.read()
    assert looks >= look
    assert (joined["status"], joined["complete"], joined["failure_count"]) == ("cancelled", True, 2)


async def test_a_waiting_join_is_woken_by_the_decision(kit: Kit) -> None:
    group = await group_of(kit, 2)
    waiting = [asyncio.create_task(group.read(wait_s=20)) for _ in range(3)]
    await asyncio.sleep(0.1)
    done(await group.end(0))
    done(await group.end(1))
    answers = await asyncio.wait_for(asyncio.gather(*waiting), WELL_BEFORE_S)
    assert [answer["status"] for answer in answers] == ["completed"] * 3


async def test_a_wait_without_a_decision_ends_undecided_and_not_before_its_time(kit: Kit) -> None:
    group = await group_of(kit, 1)
    started = perf_counter()
    assert (await asyncio.wait_for(group.read(wait_s=0.3), WELL_BEFORE_S))["complete"] is False
    assert perf_counter() - started > 0.25


async def test_a_wait_in_vain_tells_how_the_group_stands_at_its_end(kit: Kit) -> None:
    group = await group_of(kit, 3)
    waiting = asyncio.create_task(group.read(wait_s=2))
    await asyncio.sleep(0.2)
    done(await group.end(0))
    done(await group.end(1, "failed"))
    assert not waiting.done()
    joined = await asyncio.wait_for(waiting, WELL_BEFORE_S)
    assert (joined["success_count"], joined["failure_count"], joined["running_count"]) == (1, 1, 1)


@pytest.mark.parametrize("poll_s", [0.05, 3_600], ids=["by another process", "by this process"])
async def test_a_waiting_join_hears_that_its_orchestrator_is_under_a_fence(
    kit: Kit, database: Database, services: Services, poll_s: float
) -> None:
    group = await group_of(kit, 1)
    own = Wakeups(services.database, asyncio.Event(), poll_s=poll_s)
    command = JoinCommand(services.database, services.engine, own)
    principal = Principal(kind="tenant", tenant_id=UUID(kit.tenant_id), scopes=frozenset({"agents.execute"}))
    request = JoinGroup(UUID(group.root.run_id), UUID(group.group_id), wait_s=20)
    waiting = asyncio.create_task(command.execute(principal, request))
    await asyncio.sleep(0.2)
    await fence(database, kit, group.root.run_id, group.root.run_id, grace_s=60)
    if poll_s > 1:
        own.fence_set()
    joined = await asyncio.wait_for(waiting, WELL_BEFORE_S)
    assert joined.status == "cancelled"
    await own.stop()


async def test_waiting_joins_hold_no_connection_and_notice_other_processes(kit: Kit, services: Services) -> None:
    group = await group_of(kit, 1)
    elsewhere = Wakeups(services.database, asyncio.Event(), poll_s=0.05)
    command = JoinCommand(services.database, services.engine, elsewhere)
    principal = Principal(kind="tenant", tenant_id=UUID(kit.tenant_id), scopes=frozenset({"agents.execute"}))
    request = JoinGroup(UUID(group.root.run_id), UUID(group.group_id), wait_s=20)
    waiting = asyncio.create_task(command.execute(principal, request))
    await asyncio.sleep(0.1)
    await until_nobody_borrows(services.database)
    done(await group.end(0))
    assert (await asyncio.wait_for(waiting, WELL_BEFORE_S)).complete
    await elsewhere.stop()


async def test_a_look_that_fails_does_not_end_the_looking(
    kit: Kit, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = await group_of(kit, 1)
    elsewhere = Wakeups(services.database, asyncio.Event(), poll_s=0.05)
    with elsewhere.awaiting_group(UUID(kit.tenant_id), UUID(group.group_id)) as waiter, monkeypatch.context() as broken:
        broken.setattr("kernel.wakeups.CLOSED", "SELECT nothing FROM nowhere")
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(WELL_BEFORE_S):
                while not logs:  # noqa: ASYNC110 - a poller tells nobody of its looks
                    await asyncio.sleep(0.01)
        broken.undo()
        done(await group.end(0))
        assert await waiter.wait(WELL_BEFORE_S)
    await elsewhere.stop()


async def test_changes_and_ends_at_once_decide_a_group_once(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 6)
    await asyncio.gather(
        *(group.end(member, "failed" if member % 2 else "completed") for member in range(6)),
        *(group.join(mode=mode) for mode in ("first_success", "all", "fail_fast")),
        return_exceptions=True,
    )
    async with database.read() as session:
        decisions = await session.driver.fetch(
            "SELECT data FROM run_events WHERE root_run_id = $1 AND type = 'orchestration.join_decision'",
            UUID(group.root.run_id),
        )
    assert sum(row["data"]["complete"] for row in decisions) == 1
    answers = [await group.read() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["complete"]
