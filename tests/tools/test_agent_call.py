"""agent_call: an agent's run as a function call, that ends in time whatever becomes of anybody."""

import asyncio
import threading
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from kernel.domain.errors import DatabaseUnavailableError
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.policy.opa import OpaEngine
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.time_out_runs import time_out_runs
from kernel.store.engine import Database
from kernel.tools.invoke import invoke as call_tool
from kernel.tools.parts import ToolCall, ToolParts
from kernel.wakeups import Wakeups
from service.dependencies import Services
from tests.kit import Api, Kit, Run, done, reason_codes, refused
from tests.orchestration_runtime_primitives.work.crew import (
    PLENTY,
    audit,
    claim,
    complete,
    fence,
    heartbeat,
    until_nobody_borrows,
)
from tests.tools.workshop import calling, invoke, make_tool, statuses, take_up, until, work_off

LONG = {"target_agent_slug": "worker", "execution": {"timeout_s": 600}}
SHORT = {"target_agent_slug": "worker", "execution": {"timeout_s": 1}}


@pytest.fixture
async def root(kit: Kit) -> Run:
    """A run that may call `worker` by the tool `ask`."""
    root, _ = await kit.team(**PLENTY)
    done(await make_tool(kit, config=LONG))
    return root


async def test_a_call_is_answered_with_the_output_of_a_child(kit: Kit, root: Run, database: Database) -> None:
    call = calling(kit, root, given={"question": "why"})
    run = await take_up(kit)
    assert run["input"] == {"question": "why", "context": run["input"]["context"]}
    assert run["context"]["parent_run_id"] == root.run_id
    done(await complete(kit, run, output={"answer": 42}))
    answer = done(await call)
    assert answer == {
        "mode": "sync",
        "target_agent_id": answer["target_agent_id"],
        "target_agent_slug": "worker",
        "run_id": run["run_id"],
        "status": "completed",
        "output": {"answer": 42},
        "context": {name: value for name, value in run["context"].items() if name != "token"},
    }
    assert answer["context"]["depth"] == 1
    assert sorted(answer["context"]["requested_scopes"]) == sorted(["agents.execute", "read", "runs.read", "write"])
    await audit(database, kit)


async def test_a_child_that_fails_or_is_cancelled_is_told(kit: Kit, root: Run) -> None:
    call = calling(kit, root)
    done(await complete(kit, await take_up(kit), "failed", error={"code": "broken"}))
    answer = done(await call)
    assert (answer["status"], answer["error"]) == ("failed", {"code": "broken"})
    assert "output" not in answer
    call = calling(kit, root)
    run = await take_up(kit)
    body = {"caller_run_id": root.run_id, "run_id": run["run_id"], "reason": "enough"}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    answer = done(await call)
    assert (answer["status"], answer["error"]) == ("cancelled", "cancelled: enough")


async def test_a_call_is_decided_as_a_spawn_of_its_caller_and_recorded(kit: Kit) -> None:
    worker = await kit.agent("worker")
    await kit.agent("stranger")
    boss = await kit.orchestrator("boss", may_spawn=["worker"], max_fanout=1, allowed_scope_subset=["read"])
    root = await kit.root(boss)
    done(await make_tool(kit, "everything"))
    done(await make_tool(kit, "ask", config={"target_agent_id": worker, "scope_subset": ["read"]}))
    done(await make_tool(kit, "stranger", config={"target_agent_slug": "stranger", "scope_subset": ["read"]}))
    problem = refused(await invoke(kit, root, "everything"), 403, "policy_denied")
    assert reason_codes(problem) == ["scope_exceeds_policy"]
    problem = refused(await invoke(kit, root, "stranger"), 403, "policy_denied")
    assert reason_codes(problem) == ["target_not_allowlisted"]
    record = done(await kit.api.get(f"/policies/decisions/{problem['decision_id']}"))
    assert (record["action"], record["outcome"], record["caller_run_id"]) == ("agent_call", "deny", root.run_id)
    assert record["input"]["request"]["count"] == 1
    call = calling(kit, root)
    run = await work_off(kit)
    assert run["context"]["requested_scopes"] == ["read"]
    assert done(await call)["status"] == "completed"
    # The child counts: there is room for one.
    problem = refused(await invoke(kit, root), 403, "policy_denied")
    assert reason_codes(problem) == ["max_fanout_exceeded"]
    tree = done(await kit.api.get(f"/agents/runs/{root.run_id}/tree"))
    assert tree["node_count"] == 2


async def test_the_target_must_be_published_whatever_the_policy_lifts(kit: Kit) -> None:
    worker = await kit.agent("worker")
    boss = await kit.orchestrator("boss", may_spawn=["worker"], enforce_published_only=False)
    root = await kit.root(boss)
    done(await make_tool(kit))
    done(await kit.api.post(f"/agents/{worker}/unpublish"))
    problem = refused(await invoke(kit, root), 403, "policy_denied")
    assert reason_codes(problem) == ["target_not_published"]
    assert (await kit.spawn(root, "a")).is_success


async def test_what_is_called_exists_and_is_active(kit: Kit, root: Run) -> None:
    refused(await invoke(kit, root, "nothing"), 404, "not_found")
    refused(await invoke(kit, str(uuid4())), 404, "not_found")
    done(await kit.api.call("PATCH", "/tools/ask", {"is_active": False}))
    problem = refused(await invoke(kit, root), 409, "conflict")
    assert "not active" in problem["detail"]
    done(await kit.api.call("PATCH", "/tools/ask", {"is_active": True}))
    call = calling(kit, root)
    await work_off(kit)
    done(await call)


async def test_a_runs_token_calls_as_that_run_only(kit: Kit, root: Run) -> None:
    other = await kit.root(root.agent_id)
    refused(await invoke(kit, Run(other.run_id, root.token, root.agent_id)), 403, "forbidden")


async def test_a_caller_that_has_ended_calls_nobody(kit: Kit, root: Run, database: Database) -> None:
    other = await kit.root(root.agent_id)
    done(await kit.api.post(f"/agents/runs/{other.run_id}/status", {"status": "completed"}))
    refused(await invoke(kit, other.run_id), 409, "caller_not_active")
    await fence(database, kit, root.run_id, root.run_id)
    refused(await invoke(kit, root), 409, "run_cancelled")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": {}}, "caller_run_id"),
        ({"caller_run_id": "x", "input": {}}, "caller_run_id"),
        ({"caller_run_id": str(uuid4())}, "input"),
        ({"caller_run_id": str(uuid4()), "input": []}, "input"),
        ({"caller_run_id": str(uuid4()), "input": {}, "idempotency_key": ""}, "idempotency_key"),
        ({"caller_run_id": str(uuid4()), "input": {}, "mode": "async"}, "mode"),
    ],
)
async def test_a_malformed_call_is_told_by_field(kit: Kit, body: dict[str, Any], field: str) -> None:
    problem = refused(await kit.api.post("/tools/ask/invoke", body), 400, "invalid_request")
    assert field in [error["field"] for error in problem["errors"]]


async def test_the_input_is_held_against_its_schema(kit: Kit, root: Run, database: Database) -> None:
    schema = {
        "type": "object",
        "properties": {"questions": {"type": "array", "items": {"type": "string", "pattern": "^w"}}},
        "required": ["questions"],
    }
    done(await make_tool(kit, config=LONG, input_schema=schema))
    problem = refused(await invoke(kit, root, given={"questions": ["why", 7, "no"]}), 400, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == ["input.questions[1]", "input.questions[2]"]
    problem = refused(await invoke(kit, root), 400, "invalid_request")
    assert "'questions' is a required property" in problem["detail"]
    assert len(await statuses(database, kit)) == 1
    call = calling(kit, root, given={"questions": ["why"]})
    await work_off(kit)
    assert done(await call)["status"] == "completed"


async def test_an_output_that_is_not_what_the_tool_promises_is_a_failure(kit: Kit, root: Run) -> None:
    schema = {"properties": {"items": {"items": {"type": "integer"}}}, "required": ["items"]}
    done(await make_tool(kit, config=LONG, output_schema=schema))
    call = calling(kit, root)
    await work_off(kit, {"items": [1, "two"]})
    answer = done(await call)
    assert answer["status"] == "failed"
    assert answer["error"] == "output.items[1]: 'two' is not of type 'integer'"
    assert "output" not in answer
    call = calling(kit, root)
    await work_off(kit, {"items": [1, 2]})
    assert done(await call)["status"] == "completed"


async def test_a_new_version_is_used_from_then_on(kit: Kit, root: Run) -> None:
    await kit.agent("other")
    boss = await kit.orchestrator("boss", may_spawn=["other", "worker"])
    root = await kit.root(boss)
    before = calling(kit, root, idempotency_key="before")
    run = await take_up(kit)
    done(await make_tool(kit, config={"target_agent_slug": "other"}))
    after = calling(kit, root, idempotency_key="after")
    done(await complete(kit, await take_up(kit, "other")))
    assert done(await after)["target_agent_slug"] == "other"
    # What was called by the earlier version goes on, and its key still stands for it.
    again = calling(kit, root, idempotency_key="before")
    done(await complete(kit, run))
    assert done(await before)["target_agent_slug"] == "worker"
    assert done(await again) == done(await before)


async def test_a_repeat_answers_the_first_result_or_waits_for_it(kit: Kit, root: Run, database: Database) -> None:
    calls = [calling(kit, root, given={"n": 1}, idempotency_key="k") for _ in range(5)]
    run = await take_up(kit)
    # Not only those that came at once: this one finds the child at work.
    calls.append(calling(kit, root, given={"n": 1}, idempotency_key="k"))
    done(await complete(kit, run, output={"n": 2}))
    responses = await asyncio.gather(*calls)
    assert [done(response)["run_id"] for response in responses] == [run["run_id"]] * 6
    assert sum("x-idempotency-reused" not in response.headers for response in responses) == 1
    done(await kit.api.call("PATCH", "/tools/ask", {"is_active": False}))
    done(await kit.api.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"}))
    repeat = await invoke(kit, root.run_id, given={"n": 1}, idempotency_key="k")
    assert done(repeat) == done(responses[0])
    assert repeat.headers["x-idempotency-reused"] == "true"
    problem = refused(await invoke(kit, root.run_id, given={"n": 2}, idempotency_key="k"), 409, "spawn_key_conflict")
    assert problem["fields"] == ["input"]
    assert len(await statuses(database, kit)) == 2


async def test_a_call_and_a_spawn_with_equal_keys_are_two_things(kit: Kit, root: Run) -> None:
    spawned = done(await kit.spawn(root, "k"))["spawned_run_ids"]
    first = await take_up(kit)
    call = calling(kit, root, idempotency_key="k")
    second = await work_off(kit)
    assert done(await call)["run_id"] == second["run_id"]
    assert [first["run_id"]] == spawned


async def test_a_call_that_is_never_answered_ends_at_its_timeout_with_all_below_it(
    kit: Kit, database: Database
) -> None:
    boss = await kit.orchestrator("worker", may_spawn=["worker"], **PLENTY)
    root = await kit.root(boss)
    done(await make_tool(kit, config=SHORT))
    call = calling(kit, root, idempotency_key="k")
    child = await take_up(kit)
    below = Run(child["run_id"], child["run_token"], boss)
    done(await kit.spawn_group(below, "g", 3))
    answer = done(await call)
    assert answer["status"] == "failed"
    assert answer["error"] == "agent_call timed out after 1s"
    assert "output" not in answer
    assert answer["run_id"] == child["run_id"]
    stored = await statuses(database, kit)
    assert stored.pop(root.run_id) == "running"
    assert set(stored.values()) == {"cancelled"}
    assert len(stored) == 4
    (told,) = await heartbeat(kit, child)
    assert (told["status"], told["reason"]) == ("cancel", "agent_call_timed_out")
    refused(await complete(kit, child), 409, "run_cancelled")
    repeat = await invoke(kit, root, idempotency_key="k")
    assert done(repeat) == answer
    await audit(database, kit)


async def test_a_call_that_nobody_takes_up_ends_at_its_timeout(kit: Kit, root: Run, database: Database) -> None:
    done(await make_tool(kit, config=SHORT))
    answer = done(await invoke(kit, root))
    assert (answer["status"], answer["error"]) == ("failed", "agent_call timed out after 1s")
    assert await claim(kit) == []
    stored = await statuses(database, kit)
    assert stored[answer["run_id"]] == "cancelled"
    await audit(database, kit)


async def test_a_caller_that_is_cancelled_while_it_waits_takes_its_child_along(
    kit: Kit, root: Run, database: Database
) -> None:
    call = calling(kit, root)
    child = await take_up(kit)
    body = {"caller_run_id": root.run_id, "run_id": root.run_id, "reason": "changed my mind"}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    answer = done(await call)
    assert (answer["status"], answer["error"]) == ("cancelled", "cancelled: changed my mind")
    assert (await statuses(database, kit))[child["run_id"]] == "cancelled"
    refused(await complete(kit, child), 409, "run_cancelled")


async def test_a_call_is_refused_where_its_surface_is_switched_off(kit: Kit, root: Run) -> None:
    waiting = calling(kit, root, idempotency_key="before")
    child = await take_up(kit)
    flags = f"/tenants/{kit.tenant_id}/flags"
    done(await kit.api.put(flags, {"option_a_graphspec_v2": True, "option_b_runtime_primitives": False}))
    problem = refused(await invoke(kit, root), 403, "policy_denied")
    assert reason_codes(problem) == ["surface_disabled"]
    # What is under way ends, and can be repeated.
    done(await complete(kit, child, output={"n": 1}))
    answer = done(await waiting)
    assert answer["output"] == {"n": 1}
    assert done(await invoke(kit, root, idempotency_key="before")) == answer


async def test_a_timeout_that_its_process_did_not_live_to_see_is_kept(kit: Kit, database: Database) -> None:
    boss = await kit.orchestrator("worker", may_spawn=["worker"], **PLENTY)
    root = await kit.root(boss)
    done(await make_tool(kit, config=LONG))
    call = calling(kit, root, idempotency_key="k")
    child = await take_up(kit)
    done(await kit.spawn(Run(child["run_id"], child["run_token"], boss), "below"))
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE run_deadlines SET deadline = now() - interval '1 second' WHERE run_id = $1", UUID(child["run_id"])
        )
    # As another process does it: nobody here is woken but by the poller.
    await time_out_runs(database).run_once()
    await DrainCancellations(database).run_once()
    assert done(await call)["error"] == "agent_call timed out after 600s"
    stored = await statuses(database, kit)
    assert stored.pop(root.run_id) == "running"
    assert list(stored.values()) == ["cancelled", "cancelled"]
    await audit(database, kit)


async def test_a_caller_that_hangs_up_cancels_what_it_called(kit: Kit, api_url: str, database: Database) -> None:
    boss = await kit.orchestrator("worker", may_spawn=["worker"], **PLENTY)
    root = await kit.root(boss)
    done(await make_tool(kit, config=LONG))
    async with httpx2.AsyncClient(base_url=api_url, timeout=30.0) as client:
        mine = Kit(Api(client, kit.api.token), kit.admin, kit.tenant_id, kit.slug)
        call = calling(mine, root, idempotency_key="k")
        child = await take_up(kit)
        done(await kit.spawn(Run(child["run_id"], child["run_token"], boss), "below"))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    async def cancelled() -> bool:
        stored = await statuses(database, kit)
        return list(stored.values()).count("cancelled") == 2

    await until(cancelled)
    answer = done(await invoke(kit, root, idempotency_key="k"))
    assert (answer["status"], answer["error"]) == ("cancelled", "cancelled: agent_call_abandoned")
    await audit(database, kit)


async def test_who_hangs_up_cancels_nothing_that_somebody_else_waits_for(
    kit: Kit, root: Run, services: Services, database: Database
) -> None:
    parts = ToolParts(services.database, services.engine, services.combiner, services.wakeups)
    principal = _run_of(kit, root)
    call = ToolCall("ask", UUID(root.run_id), {}, idempotency_key="k")
    first, second = (asyncio.create_task(call_tool(parts, principal, call)) for _ in range(2))
    run = await take_up(kit)

    async def both_wait() -> bool:
        return _awaited(services.wakeups, run) == 2

    await until(both_wait)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await statuses(database, kit))[run["run_id"]] == "running"
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert (await statuses(database, kit))[run["run_id"]] == "cancelled"


async def test_a_caller_that_goes_away_while_its_child_is_made_leaves_none_behind(
    kit: Kit, root: Run, services: Services, database: Database
) -> None:
    parts = ToolParts(services.database, services.engine, services.combiner, services.wakeups)
    for delay in range(12):
        call = asyncio.create_task(call_tool(parts, _run_of(kit, root), ToolCall("ask", UUID(root.run_id), {})))
        await asyncio.sleep(delay / 1000)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    stored = await statuses(database, kit)
    assert stored.pop(root.run_id) == "running"
    assert set(stored.values()) <= {"cancelled"}
    await audit(database, kit)


async def test_a_graph_calls_through_its_own_surface_and_leaves_its_child_alone(
    kit: Kit, root: Run, services: Services, database: Database
) -> None:
    parts = ToolParts(services.database, services.engine, services.combiner, services.wakeups)
    call = ToolCall(
        "ask",
        UUID(root.run_id),
        {"n": 1},
        idempotency_key="node",
        surface=Surface.GRAPHSPEC_V2,
        parent_node_id="node",
        cancel_when_abandoned=False,
    )
    waiting = asyncio.create_task(call_tool(parts, _run_of(kit, root), call))
    run = await take_up(kit)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await statuses(database, kit))[run["run_id"]] == "running"
    done(await complete(kit, run, output={"n": 2}))
    # Resumed, it has its answer.
    answer = await call_tool(parts, _run_of(kit, root), call)
    assert answer.repeated
    assert answer.body["output"] == {"n": 2}
    async with database.read() as session:
        row = await session.driver.fetchrow(
            "SELECT surface, parent_node_id FROM agent_runs WHERE run_id = $1", UUID(run["run_id"])
        )
    assert tuple(row) == ("option_a_graphspec_v2", "node")


async def test_a_call_without_a_key_ends_with_the_service_and_one_with_a_key_goes_on(
    kit: Kit, root: Run, database: Database, services: Services, opa_engine: OpaEngine
) -> None:
    wakeups = Wakeups(database, asyncio.Event())
    parts = ToolParts(database, opa_engine, services.combiner, wakeups)
    principal, run_id = _run_of(kit, root), UUID(root.run_id)
    calls = [
        asyncio.create_task(call_tool(parts, principal, ToolCall("ask", run_id, {}, idempotency_key=key)))
        for key in ("k", None)
    ]

    async def both_wait() -> bool:
        return len(await statuses(database, kit)) == 3 and len(wakeups._for_runs.keys) == 2

    await until(both_wait)
    await wakeups.stop()
    for call in calls:
        with pytest.raises(DatabaseUnavailableError, match="shutting down"):
            await call
    assert sorted((await statuses(database, kit)).values()) == ["cancelled", "queued", "running"]


@pytest.mark.torture
async def test_many_calls_wait_at_once_and_hold_nothing(
    kit: Kit, root: Run, api_url: str, database: Database, calls_at_once: int
) -> None:
    limits, threads = httpx2.Limits(max_connections=None), threading.active_count()
    async with httpx2.AsyncClient(base_url=api_url, timeout=120.0, limits=limits) as client:
        mine = Kit(Api(client, kit.api.token), kit.admin, kit.tenant_id, kit.slug)
        calls = [calling(mine, root, given={"n": n}) for n in range(calls_at_once)]

        async def all_made() -> bool:
            return len(await statuses(database, kit)) == calls_at_once + 1

        await until(all_made, 6000)
        # Nothing is borrowed between two looks of the poller, and nobody sits in a thread.
        await until_nobody_borrows(database)
        assert threading.active_count() - threads < calls_at_once // 4
        served = 0
        while served < calls_at_once:
            runs = await claim(kit, max_runs=100, wait_s=5)
            answers = [complete(kit, run, output={"n": run["input"]["n"]}) for run in runs]
            for start in range(0, len(answers), 20):
                for response in await asyncio.gather(*answers[start : start + 20]):
                    done(response)
            served += len(runs)
        answered = [done(response) for response in await asyncio.gather(*calls)]
    assert [answer["output"] for answer in answered] == [{"n": n} for n in range(calls_at_once)]
    assert len({answer["run_id"] for answer in answered}) == calls_at_once


def _run_of(kit: Kit, run: Run) -> Principal:
    return Principal(
        kind="run",
        tenant_id=UUID(kit.tenant_id),
        scopes=frozenset({"agents.execute"}),
        run_id=UUID(run.run_id),
        root_run_id=UUID(run.run_id),
    )


def _awaited(wakeups: Wakeups, run: dict[str, Any]) -> int:
    (waiting,) = [waiters for key, waiters in wakeups._for_runs._by_key.items() if str(key[1]) == run["run_id"]]
    return len(waiting)
