"""Claiming work: who gets what, in which turn, and how a worker waits."""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from time import perf_counter
from uuid import UUID

import httpx2
import pytest

from kernel.commands.claim_work import ClaimedRun, ClaimWork, ClaimWorkCommand
from kernel.domain.principal import Principal
from kernel.reconcilers.expire_leases import expire_leases
from kernel.store import leases, trees
from kernel.store.engine import Database, ReadSession
from kernel.store.leases import Described
from kernel.wakeups import Wakeups
from service.dependencies import Services
from tests.faults.scale import scaled
from tests.kit import Kit, done, refused
from tests.orchestration_runtime_primitives.trees.forest import Forest
from tests.orchestration_runtime_primitives.work.crew import (
    PLENTY,
    WELL_BEFORE_S,
    audit,
    claim,
    claim_one,
    complete,
    fence,
    ids,
    let_expire,
    row,
    spawn_one,
    until_nobody_borrows,
)


def principal_of(kit: Kit) -> Principal:
    return Principal(kind="tenant", tenant_id=UUID(kit.tenant_id), scopes=frozenset({"agents.execute"}))


def command_of(services: Services, wakeups: Wakeups) -> ClaimWorkCommand:
    return ClaimWorkCommand(services.database, services.tokens, wakeups, token_s=3600)


async def test_a_claim_hands_over_all_that_a_worker_needs(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root, "a", parent_node_id="n1", mapped_input_payload={"x": 1}, timeout_s=500)
    run = await claim_one(kit, lease_s=20)
    assert (run["run_id"], run["agent_slug"], run["attempt"]) == (run_id, "worker", 1)
    assert run["input"] == {"x": 1, "context": run["context"]}
    assert run["context"] == {
        "tenant_id": kit.tenant_id,
        "run_id": run_id,
        "root_run_id": root.run_id,
        "parent_run_id": root.run_id,
        "parent_node_id": "n1",
        "depth": 1,
        "spawn_key": "a",
        "orchestration_group_id": None,
        "requested_scopes": ["read"],
        "surface": "option_b_runtime_primitives",
        "token": run["run_token"],
    }
    assert run["deadline"].endswith("Z")
    assert run["run_deadline"] > run["deadline"]
    stored = await row(database, run_id)
    assert (stored["status"], stored["started_seq"]) == ("running", 3)
    assert await claim(kit) == []
    await audit(database, kit)


async def test_the_token_of_a_claimed_run_acts_as_that_run(kit: Kit) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root, "a", target="orchestrator", scope_subset=["agents.execute", "read"])
    (run,) = await claim(kit, "orchestrator")
    api = kit.api.acting_with(run["run_token"])
    body = {"target_agent_slug": "worker", "scope_subset": ["read"], "idempotency_key": "b"}
    done(await api.post("/internal/orchestration/spawn-run", {**body, "caller_run_id": run_id}))
    refused(
        await api.post("/internal/orchestration/spawn-run", {**body, "caller_run_id": root.run_id}), 403, "forbidden"
    )


async def test_two_claimers_never_get_the_same_run(kit: Kit, database: Database) -> None:
    await kit.agent("worker")
    orchestrator = await kit.orchestrator(may_spawn=["worker"], **PLENTY)
    roots = [await kit.root(orchestrator) for _ in range(3)]
    for root in roots:
        done(await kit.spawn_group(root, "g", 20))

    async def work() -> list[str]:
        got: list[str] = []
        while runs := await claim(kit, max_runs=3, wait_s=0.2):
            got.extend(ids(runs))
        return got

    taken = [run_id for got in await asyncio.gather(*(work() for _ in range(12))) for run_id in got]
    assert len(taken) == 60
    assert len(set(taken)) == 60
    await audit(database, kit)


async def test_a_tree_of_many_queued_runs_does_not_starve_a_tree_of_three(kit: Kit) -> None:
    await kit.agent("worker")
    orchestrator = await kit.orchestrator(may_spawn=["worker"], **PLENTY)
    large, small = await kit.root(orchestrator), await kit.root(orchestrator)
    done(await kit.spawn_group(large, "g", 300))
    done(await kit.spawn_group(small, "g", 3))
    singles = [await claim_one(kit) for _ in range(6)]
    assert sum(run["context"]["root_run_id"] == small.run_id for run in singles) == 3
    # The first come first, within a tree.
    firsts = [run["context"]["spawn_key"] for run in singles if run["context"]["root_run_id"] == small.run_id]
    assert firsts == ["g:0", "g:1", "g:2"]


@pytest.mark.torture
async def test_a_tree_of_a_hundred_thousand_does_not_either(kit: Kit, database: Database) -> None:
    worker = await kit.agent("worker")
    orchestrator = await kit.orchestrator(may_spawn=["worker"], **PLENTY)
    large, small = await kit.root(orchestrator), await kit.root(orchestrator)
    await Forest(database, kit).grow(large.run_id, worker, parents=[-1] * scaled(100_000))
    done(await kit.spawn_group(small, "g", 3))
    singles = [await claim_one(kit) for _ in range(6)]
    assert sum(run["context"]["root_run_id"] == small.run_id for run in singles) == 3


async def test_one_claim_takes_from_every_tree_in_turn(kit: Kit) -> None:
    await kit.agent("worker")
    orchestrator = await kit.orchestrator(may_spawn=["worker"], **PLENTY)
    roots = [await kit.root(orchestrator) for _ in range(3)]
    for root in roots:
        done(await kit.spawn_group(root, "g", 4))
    runs = await claim(kit, max_runs=6)
    shares = [sum(run["context"]["root_run_id"] == root.run_id for run in runs) for root in roots]
    assert shares == [2, 2, 2]


async def test_one_agent_of_many_queued_runs_does_not_starve_another(kit: Kit) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn_group(root, "g", 50))
    for number in range(3):
        await spawn_one(kit, root, f"o{number}", target="orchestrator")
    singles = [(await claim(kit, "worker", "orchestrator"))[0] for _ in range(6)]
    assert sum(run["agent_slug"] == "orchestrator" for run in singles) == 3


async def test_a_busy_tree_does_not_keep_a_claimer_from_the_others(kit: Kit, database: Database) -> None:
    await kit.agent("worker")
    orchestrator = await kit.orchestrator(may_spawn=["worker"])
    roots = [await kit.root(orchestrator) for _ in range(2)]
    for root in roots:
        await spawn_one(kit, root)
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(roots[0].run_id))
        first = await asyncio.wait_for(claim(kit), 3)
        assert [run["context"]["root_run_id"] for run in first] == [roots[1].run_id]
        # With nothing left but the busy tree, the claimer queues for its lock like everybody else.
        second = asyncio.create_task(claim(kit))
        await asyncio.sleep(0.05)
        assert not second.done()
    assert [run["context"]["root_run_id"] for run in await second] == [roots[0].run_id]


async def test_a_waiting_claim_is_woken_by_a_spawn(kit: Kit) -> None:
    root, _ = await kit.team()
    waiting = asyncio.create_task(claim(kit, wait_s=20))
    await asyncio.sleep(0.05)
    run_id = await spawn_one(kit, root)
    assert ids(await asyncio.wait_for(waiting, WELL_BEFORE_S)) == [run_id]


async def test_a_waiting_claim_notices_what_another_process_queued(kit: Kit, services: Services) -> None:
    root, _ = await kit.team()
    elsewhere = Wakeups(services.database, asyncio.Event(), poll_s=0.05)
    waiting = asyncio.create_task(
        command_of(services, elsewhere).execute(principal_of(kit), ClaimWork(("worker",), wait_s=20))
    )
    await asyncio.sleep(0.02)
    run_id = await spawn_one(kit, root)
    assert [str(run.run_id) for run in await asyncio.wait_for(waiting, WELL_BEFORE_S)] == [run_id]
    await elsewhere.stop()


async def test_a_wait_without_work_ends_empty_and_not_before_its_time(kit: Kit) -> None:
    await kit.agent("worker")
    started = perf_counter()
    assert await asyncio.wait_for(claim(kit, wait_s=0.3), WELL_BEFORE_S) == []
    assert perf_counter() - started > 0.25


async def test_a_wait_that_ends_looks_once_more(kit: Kit, services: Services) -> None:
    root, _ = await kit.team()
    # Its poller looks at nothing within this test, and nothing else tells it of the spawn.
    elsewhere = Wakeups(services.database, asyncio.Event(), poll_s=60)
    command = command_of(services, elsewhere)
    waiting = asyncio.create_task(command.execute(principal_of(kit), ClaimWork(("worker",), wait_s=2)))
    await asyncio.sleep(0.2)
    run_id = await spawn_one(kit, root)
    assert [str(run.run_id) for run in await asyncio.wait_for(waiting, WELL_BEFORE_S)] == [run_id]
    await elsewhere.stop()


async def test_waiting_claimers_hold_no_connection(kit: Kit, database: Database) -> None:
    await kit.agent("worker")
    waiting = [asyncio.create_task(claim(kit, wait_s=1)) for _ in range(8)]
    await asyncio.sleep(0.1)
    await until_nobody_borrows(database)
    assert not any(task.done() for task in waiting)
    assert await asyncio.gather(*waiting) == [[]] * 8


async def test_waits_end_when_the_service_stops(kit: Kit, services: Services) -> None:
    await kit.agent("worker")
    own = Wakeups(services.database, asyncio.Event())
    command = command_of(services, own)
    waiting = asyncio.create_task(command.execute(principal_of(kit), ClaimWork(("worker",), wait_s=60)))
    await asyncio.sleep(0.05)
    await own.stop()
    assert await asyncio.wait_for(waiting, 2) == []
    # And none begins.
    assert await asyncio.wait_for(command.execute(principal_of(kit), ClaimWork(("worker",), wait_s=60)), 2) == []


async def test_a_worker_that_hung_up_is_leased_nothing(kit: Kit, api_url: str) -> None:
    root, _ = await kit.team()
    async with httpx2.AsyncClient(base_url=api_url) as client:
        body = {"agent_slugs": ["worker"], "wait_s": 20}
        hung_up = asyncio.create_task(
            client.post("/work/claim", json=body, headers={"Authorization": f"Bearer {kit.api.token}"})
        )
        await asyncio.sleep(0.1)
        hung_up.cancel()
        await asyncio.gather(hung_up, return_exceptions=True)
    await asyncio.sleep(0.05)
    run_id = await spawn_one(kit, root)
    assert (await claim_one(kit, wait_s=2))["run_id"] == run_id


async def test_a_worker_that_hung_up_during_the_wait_for_a_lock_is_leased_nothing(
    kit: Kit, database: Database, services: Services
) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root)
    command = command_of(services, services.wakeups)
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        hung_up = asyncio.create_task(command.execute(principal_of(kit), ClaimWork(("worker",))))
        await asyncio.sleep(0.1)
        hung_up.cancel()
        await asyncio.gather(hung_up, return_exceptions=True)
    await until_nobody_borrows(database)
    assert (await row(database, run_id))["started_seq"] is None
    assert (await claim_one(kit))["run_id"] == run_id


class Describing:
    """Holds answers back between the commit of their leases and the moment at which they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._describe = leases.describe
        monkeypatch.setattr(leases, "describe", self._held)

    async def _held(self, session: ReadSession, tenant_id: UUID, run_ids: Iterable[UUID]) -> dict[UUID, Described]:
        self.reached.set()
        await self.go_on.wait()
        return await self._describe(session, tenant_id, run_ids)


@pytest.mark.parametrize("attempts", [0, 1])
async def test_what_was_leased_to_a_worker_that_hung_up_is_queued_again_as_though_it_had_not_been(
    kit: Kit, database: Database, services: Services, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root)
    for _ in range(attempts):
        await claim_one(kit)
        await let_expire(database, run_id)
        await expire_leases(database).run_once()
    describing = Describing(monkeypatch)
    command = command_of(services, services.wakeups)
    hung_up = asyncio.create_task(command.execute(principal_of(kit), ClaimWork(("worker",), lease_s=3_600)))
    await asyncio.wait_for(describing.reached.wait(), WELL_BEFORE_S)
    assert (await row(database, run_id))["status"] == "running"
    hung_up.cancel()
    await asyncio.gather(hung_up, return_exceptions=True)
    # Woken by what comes back, not by its own patience.
    waiting = asyncio.create_task(claim(kit, wait_s=60))
    describing.go_on.set()
    (again,) = await asyncio.wait_for(waiting, WELL_BEFORE_S)
    assert (again["run_id"], again["attempt"]) == (run_id, attempts + 1)
    events = done(await kit.api.get(f"/agents/runs/{root.run_id}/events?limit=1000"))["events"]
    told = [e["data"]["status"] for e in events if e["subject"] == run_id and "status" in e["data"]]
    assert told[-3:] == ["running", "queued", "running"]
    assert (await complete(kit, again)).status_code == HTTPStatus.OK
    await audit(database, kit)


async def test_what_was_leased_to_a_worker_that_hung_up_goes_to_one_beside_it(
    kit: Kit, database: Database, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await kit.team()
    keys = ("a", "b", "c")
    run_ids = [await spawn_one(kit, root, key) for key in keys]
    describing = Describing(monkeypatch)
    command = command_of(services, services.wakeups)

    def claiming(max_runs: int) -> asyncio.Task[list[ClaimedRun]]:
        return asyncio.create_task(command.execute(principal_of(kit), ClaimWork(("worker",), max_runs=max_runs)))

    first = claiming(1)
    await asyncio.wait_for(describing.reached.wait(), WELL_BEFORE_S)
    # These come while the first is under way, and so leave together.
    hung_up, beside = claiming(1), claiming(2)
    for _ in range(1_000):
        if sum(map(len, command._lanes._queues.values())) == 2:
            break
        await asyncio.sleep(0.01)
    describing.go_on.set()
    await asyncio.wait_for(first, WELL_BEFORE_S)
    describing.reached.clear()
    describing.go_on.clear()
    await asyncio.wait_for(describing.reached.wait(), WELL_BEFORE_S)
    hung_up.cancel()
    describing.go_on.set()
    claimed = await asyncio.wait_for(asyncio.gather(first, beside), WELL_BEFORE_S)
    assert sorted(str(run.run_id) for runs in claimed for run in runs) == sorted(run_ids)
    assert {run.attempt for runs in claimed for run in runs} == {1}
    await audit(database, kit)


async def test_what_a_fence_covers_meanwhile_is_cancelled_when_it_is_given_back(
    kit: Kit, database: Database, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root)
    describing = Describing(monkeypatch)
    command = command_of(services, services.wakeups)
    hung_up = asyncio.create_task(command.execute(principal_of(kit), ClaimWork(("worker",), lease_s=3_600)))
    await asyncio.wait_for(describing.reached.wait(), WELL_BEFORE_S)
    await fence(database, kit, root.run_id, run_id, grace_s=3_600)
    hung_up.cancel()
    await asyncio.gather(hung_up, return_exceptions=True)
    describing.go_on.set()
    for _ in range(1_000):
        if (await row(database, run_id))["status"] == "cancelled":
            break
        await asyncio.sleep(0.01)
    assert (await row(database, run_id))["status"] == "cancelled"
    await audit(database, kit)


async def test_what_a_fence_covers_is_not_claimed(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    covered, free = await spawn_one(kit, root, "a"), await spawn_one(kit, root, "b")
    await fence(database, kit, root.run_id, covered)
    assert ids(await claim(kit, max_runs=10)) == [free]
    assert (await row(database, covered))["started_seq"] is None


@pytest.mark.parametrize("max_runs", [1, 2])
async def test_what_a_fence_covers_does_not_hide_what_is_queued_behind_it(
    kit: Kit, database: Database, max_runs: int
) -> None:
    root, _ = await kit.team(**PLENTY)
    keys = [f"covered{number}" for number in range(3)]
    covered = [await spawn_one(kit, root, key) for key in keys]
    free = [await spawn_one(kit, root, f"free{number}") for number in range(2)]
    for run_id in covered:
        await fence(database, kit, root.run_id, run_id)
    claimed = ids(await claim(kit, max_runs=max_runs))
    assert claimed
    assert claimed == free[: len(claimed)]


@pytest.mark.parametrize("max_runs", [1, 40])
async def test_a_fence_and_claims_at_once_leave_nothing_started_above_the_fence(
    kit: Kit, database: Database, max_runs: int
) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn_group(root, "g", 40))

    async def work() -> None:
        while await claim(kit, max_runs=max_runs):
            pass

    workers = [asyncio.create_task(work()) for _ in range(4)]
    await asyncio.sleep(0.02)
    await fence(database, kit, root.run_id, root.run_id)
    await asyncio.gather(*workers)
    async with database.read() as session:
        escaped = await session.driver.fetchval(
            "SELECT count(*) FROM agent_runs r JOIN cancellations c USING (tenant_id, root_run_id)"
            " WHERE r.root_run_id = $1 AND r.started_seq > c.fence_seq",
            UUID(root.run_id),
        )
    assert escaped == 0
    await audit(database, kit)


async def test_a_runs_token_claims_nothing(kit: Kit) -> None:
    root, _ = await kit.team()
    problem = refused(
        await kit.api.acting_with(root.token).post("/work/claim", {"agent_slugs": ["worker"]}), 403, "forbidden"
    )
    assert "tenant's token" in problem["detail"]


async def test_an_agent_that_does_not_exist_is_named(kit: Kit) -> None:
    problem = refused(await kit.api.post("/work/claim", {"agent_slugs": ["nobody"]}), 404, "not_found")
    assert "nobody" in problem["detail"]


@pytest.mark.parametrize(
    "more", [{"max_runs": 0}, {"max_runs": 101}, {"lease_s": 0}, {"wait_s": -1}, {"agent_slugs": []}]
)
async def test_a_malformed_claim_is_refused(kit: Kit, more: dict[str, object]) -> None:
    body = {"agent_slugs": ["worker"], **more}
    problem = refused(await kit.api.post("/work/claim", body), 400, "invalid_request")
    assert problem["errors"][0]["field"] == next(iter(more))


async def test_another_tenants_work_is_not_handed_out(kit: Kit, api: object) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    other = await Kit.make(kit.admin)
    await other.agent("worker")
    assert await claim(other) == []
    run = await claim_one(kit)
    refused(await complete(other, run), 404, "not_found")
