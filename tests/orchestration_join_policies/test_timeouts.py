"""Groups past their timeout."""

import asyncio
from uuid import UUID

import pytest

from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.loop import Loop
from kernel.reconcilers.time_out_joins import time_out_joins
from kernel.store.engine import Database
from service.dependencies import Services
from tests.kit import Kit, done
from tests.orchestration_join_policies.join_calls import group_of, let_time_out
from tests.orchestration_runtime_primitives.work.crew import audit, fence


async def test_an_overdue_group_has_timed_out_and_its_members_are_cancelled(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 3)
    done(await group.end(0))
    await let_time_out(database, group)
    assert (await time_out_joins(database).run_once()).settled >= 1
    joined = await group.read()
    assert (joined["status"], joined["complete"]) == ("timed_out", True)
    assert (joined["success_count"], joined["failure_count"], joined["running_count"]) == (1, 2, 0)
    assert joined["cancellation_propagated"] == {
        "count": 2,
        "run_ids": group.members[1:],
        "reason": "join_timed_out",
    }
    async with database.read() as session:
        told = await session.driver.fetchrow(
            "SELECT seq, data FROM run_events WHERE root_run_id = $1 AND type = 'orchestration.join_decision'",
            UUID(group.root.run_id),
        )
    assert (told["seq"], told["data"]["status"]) == (joined["decided_seq"], "timed_out")
    await DrainCancellations(database).run_once()
    assert {**await group.read(), "cancellation_propagated": None} == {**joined, "cancellation_propagated": None}
    await audit(database, kit)


async def test_a_group_is_timed_out_within_a_second_of_its_deadline(kit: Kit, services: Services) -> None:
    group = await group_of(kit, 1, timeout_s=1)
    loop = Loop("test_time_out_joins", time_out_joins(services.database, services.wakeups), interval_s=0.2)
    await loop.start()
    try:
        joined = await group.read(wait_s=2)
    finally:
        await loop.stop()
    assert joined["status"] == "timed_out"


async def test_a_group_under_a_fence_is_closed_and_not_timed_out(kit: Kit, database: Database) -> None:
    group = await group_of(kit, 1)
    await let_time_out(database, group)
    await fence(database, kit, group.root.run_id, group.root.run_id)
    await time_out_joins(database).run_once()
    joined = await group.read()
    assert (joined["status"], joined["decided_seq"]) == ("cancelled", None)
    await audit(database, kit)


@pytest.mark.parametrize("attempt", range(3))
async def test_a_timeout_and_the_last_completion_at_once_have_one_winner(
    kit: Kit, database: Database, attempt: int
) -> None:
    group = await group_of(kit, 2)
    done(await group.end(0))

    async def time_out() -> None:
        await let_time_out(database, group)
        await asyncio.gather(*(time_out_joins(database).run_once() for _ in range(3)))

    response, _ = await asyncio.gather(group.end(1), time_out())
    joined = await group.read()
    # The member's report succeeds just where it came first.
    assert joined["status"] == ("completed" if response.is_success else "timed_out")
    async with database.read() as session:
        decisions = await session.driver.fetchval(
            "SELECT count(*) FROM run_events WHERE root_run_id = $1 AND type = 'orchestration.join_decision'",
            UUID(group.root.run_id),
        )
    assert decisions == 1
    await audit(database, kit)
