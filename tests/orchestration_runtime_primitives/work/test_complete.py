"""Completing work: what the holder of a lease may report, and how often."""

import asyncio
from uuid import UUID, uuid4

import pytest

from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.time_out_runs import time_out_runs
from kernel.store.engine import Database
from tests.kit import Kit, done, refused
from tests.orchestration_runtime_primitives.work.crew import (
    audit,
    claim,
    claim_one,
    complete,
    fence,
    row,
    spawn_one,
)


@pytest.mark.parametrize(
    ("status", "payload"),
    [
        ("completed", {"output": {"answer": 42}}),
        ("completed", {"output": "a string"}),
        ("completed", {}),
        ("failed", {"error": {"message": "no"}}),
        ("cancelled", {}),
    ],
)
async def test_the_holder_of_a_lease_ends_its_run(
    kit: Kit, database: Database, status: str, payload: dict[str, object]
) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root, timeout_s=600)
    run = await claim_one(kit)
    answer = done(await complete(kit, run, status, **payload))
    assert (answer["run_id"], answer["status"]) == (run["run_id"], status)
    assert answer["finalized_at"].endswith("Z")
    stored = await row(database, run["run_id"])
    assert (stored["status"], stored["finalized_seq"]) == (status, 4)
    assert {name: stored[name] for name in ("output", "error") if stored[name] is not None} == payload
    async with database.read() as session:
        event = await session.driver.fetchrow(
            "SELECT type, data, subjects FROM run_events WHERE root_run_id = $1 AND seq = 4", UUID(root.run_id)
        )
        deadlines = await session.driver.fetchval(
            "SELECT count(*) FROM run_deadlines WHERE run_id = $1", UUID(run["run_id"])
        )
    assert event["type"] == "orchestration.child_lifecycle"
    assert event["data"] == {"child_run_id": run["run_id"], "status": status, "orchestration_group_id": None}
    assert deadlines == 0
    await audit(database, kit)


async def test_a_repeat_by_the_same_lease_answers_as_the_first_time(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    first = await complete(kit, run, output={"b": 1, "a": 2})
    again = await complete(kit, run, output={"a": 2, "b": 1})
    assert done(again) == done(first)
    assert "X-Idempotency-Reused" not in first.headers
    assert again.headers["X-Idempotency-Reused"] == "true"
    refused(await complete(kit, run, output={"a": 3}), 409, "lease_lost")
    refused(await complete(kit, run, "failed"), 409, "lease_lost")
    await audit(database, kit)


async def test_many_completions_at_once_end_the_run_once(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    responses = await asyncio.gather(*(complete(kit, run, output=1) for _ in range(8)))
    assert [response.status_code for response in responses] == [200] * 8
    assert sum("X-Idempotency-Reused" in response.headers for response in responses) == 7
    await audit(database, kit)


async def test_nobody_else_completes_it(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root, "a", target="orchestrator", scope_subset=["agents.execute"])
    await spawn_one(kit, root, "b", target="orchestrator", scope_subset=["agents.execute"])
    run, other = await claim(kit, "orchestrator", max_runs=2)
    refused(await complete(kit, {**run, "lease": other["lease"]}), 409, "lease_lost")
    refused(await complete(kit, {**run, "lease": str(uuid4())}), 409, "lease_lost")
    refused(await complete(kit, {**run, "run_id": str(uuid4())}), 404, "not_found")
    body = {"run_id": run["run_id"], "lease": run["lease"], "status": "completed"}
    refused(await kit.api.acting_with(other["run_token"]).post("/work/complete", body), 403, "forbidden")
    done(await kit.api.acting_with(run["run_token"]).post("/work/complete", body))
    assert (await row(database, other["run_id"]))["status"] == "running"


async def test_under_a_fence_only_the_acknowledgement_is_accepted(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    cancellation_id = await fence(database, kit, root.run_id, root.run_id, reason="wrong turn", grace_s=90)
    for status in ("completed", "failed"):
        problem = refused(await complete(kit, run, status), 409, "run_cancelled")
        assert problem["reason"] == "wrong turn"
    assert (await row(database, run["run_id"]))["status"] == "running"
    assert done(await complete(kit, run, "cancelled"))["status"] == "cancelled"
    again = await complete(kit, run, "cancelled")
    assert again.headers["X-Idempotency-Reused"] == "true"
    async with database.read() as session:
        counted = await session.driver.fetchval(
            "SELECT cancelled_count FROM cancellations WHERE cancellation_id = $1", cancellation_id
        )
    assert counted == 1
    await audit(database, kit)


async def test_an_acknowledgement_after_the_drain_is_answered_as_done(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    await fence(database, kit, root.run_id, root.run_id)
    await DrainCancellations(database).run_once()
    assert done(await complete(kit, run, "cancelled"))["status"] == "cancelled"


async def test_completions_and_a_fence_at_once_let_nothing_complete_above_the_fence(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team(max_fanout=100, max_children_total=100)
    done(await kit.spawn_group(root, "g", 30))
    runs = await claim(kit, max_runs=100)
    work = [asyncio.create_task(complete(kit, run)) for run in runs]
    await asyncio.sleep(0.02)
    await fence(database, kit, root.run_id, root.run_id)
    for response in await asyncio.gather(*work):
        if not response.is_success:
            refused(response, 409, "run_cancelled")
    async with database.read() as session:
        escaped = await session.driver.fetchval(
            "SELECT count(*) FROM agent_runs r JOIN cancellations c USING (tenant_id, root_run_id)"
            " WHERE r.root_run_id = $1 AND r.status = 'completed' AND r.finalized_seq > c.fence_seq",
            UUID(root.run_id),
        )
    assert escaped == 0
    await audit(database, kit)


async def pass_deadline(database: Database, run_id: str) -> None:
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE run_deadlines SET deadline = clock_timestamp() - interval '1 s' WHERE run_id = $1", UUID(run_id)
        )


async def test_a_run_past_its_deadline_has_failed_and_its_group_counts_it(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root, timeout_s=60)
    run = await claim_one(kit)
    await pass_deadline(database, run_id)
    assert (await time_out_runs(database).run_once()).settled >= 1
    stored = await row(database, run_id)
    assert (stored["status"], stored["error"]["code"]) == ("failed", "timed_out")
    refused(await complete(kit, run), 409, "lease_lost")
    assert (await time_out_runs(database).run_once()).settled == 0
    await audit(database, kit)


async def test_a_queued_run_past_its_deadline_has_failed_too(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root, timeout_s=60)
    await pass_deadline(database, run_id)
    await time_out_runs(database).run_once()
    assert (await row(database, run_id))["status"] == "failed"
    assert await claim(kit) == []
    await audit(database, kit)


async def test_completion_and_timeout_at_once_have_one_winner(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    for number in range(6):
        await spawn_one(kit, root, f"r{number}", timeout_s=60)
    runs = await claim(kit, max_runs=10)

    async def time_out() -> None:
        for run in runs:
            await pass_deadline(database, run["run_id"])
            await time_out_runs(database).run_once()

    responses, _ = await asyncio.gather(asyncio.gather(*(complete(kit, run) for run in reversed(runs))), time_out())
    for run, response in zip(reversed(runs), responses, strict=True):
        stored = await row(database, run["run_id"])
        assert stored["status"] == ("completed" if response.is_success else "failed")
    await audit(database, kit)
