"""A tenant that has too much in flight, or active, is told so; its neighbours notice nothing."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from uuid import UUID

import pytest

from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.domain.errors import SpawnKeyConflictError, TenantSaturatedError
from kernel.policy.opa import OpaEngine
from kernel.store.engine import Database
from service.dependencies import Services
from tests.kit import Kit, done, refused
from tests.orchestration_runtime_primitives.orders import order


async def test_beyond_its_own_bound_of_active_runs_a_tenant_waits_and_others_do_not(
    kit: Kit, services: Services
) -> None:
    other = await Kit.make(kit.admin)
    root, _ = await kit.team()
    other_root, _ = await other.team()
    combiner = SpawnCombiner(services.pipeline, active_runs=services.active_runs)
    await combiner.spawn(order(kit, root, "a"))
    done(await kit.admin.call("PATCH", f"/tenants/{kit.tenant_id}", {"max_active_runs": 2}))
    await services.active_runs.refresh()
    with pytest.raises(TenantSaturatedError) as refusal:
        await combiner.spawn(order(kit, root, "b"))
    assert refusal.value.members == {"limit": 2, "observed": 2}
    answer = await kit.api.post(f"/agents/{root.agent_id}/runs", {"requested_scopes": []})
    refused(answer, 429, "tenant_saturated")
    assert int(answer.headers["Retry-After"]) >= 1
    await combiner.spawn(order(other, other_root, "a"))
    # A higher bound makes room again, from the next refresh on.
    done(await kit.admin.call("PATCH", f"/tenants/{kit.tenant_id}", {"max_active_runs": 1_000}))
    await services.active_runs.refresh()
    await combiner.spawn(order(kit, root, "b"))


async def test_what_was_granted_before_is_answered_beyond_the_bound_of_active_runs(
    kit: Kit, services: Services
) -> None:
    root, _ = await kit.team()
    started = {"requested_scopes": ["read"], "idempotency_key": "root"}
    path = f"/agents/{root.agent_id}/runs"
    first_root = done(await kit.api.post(path, started))["run_id"]
    combiner = SpawnCombiner(services.pipeline, active_runs=services.active_runs)
    first = await combiner.spawn(order(kit, root, "a"))
    done(await kit.admin.call("PATCH", f"/tenants/{kit.tenant_id}", {"max_active_runs": 1}))
    await services.active_runs.refresh()
    again = await combiner.spawn(order(kit, root, "a"))
    assert (again.idempotent, again.run_ids) == (True, first.run_ids)
    with pytest.raises(SpawnKeyConflictError):
        await combiner.spawn(replace(order(kit, root, "a"), timeout_s=5))
    with pytest.raises(TenantSaturatedError):
        await combiner.spawn(order(kit, root, "b"))
    assert done(await kit.api.post(path, started))["run_id"] == first_root
    refused(await kit.api.post(path, started | {"idempotency_key": "other"}), 429, "tenant_saturated")


async def test_dry_runs_and_starts_count_as_in_flight_too(kit: Kit, services: Services) -> None:
    other = await Kit.make(kit.admin)
    root, _ = await kit.team()
    other_root, _ = await other.team()
    with ExitStack() as stack:
        for _ in range(services.settings.tenant_max_in_flight):
            stack.enter_context(services.combiner.in_flight.one_of(UUID(kit.tenant_id)))
        body = {
            "caller_run_id": root.run_id,
            "target_agent_slug": "worker",
            "scope_subset": ["read"],
            "idempotency_key": "a",
        }
        for path, asked in (
            ("/internal/orchestration/spawn-run", body),
            ("/internal/orchestration/spawn-run?dry_run=true", body),
            (f"/agents/{root.agent_id}/runs", {"requested_scopes": []}),
        ):
            answer = await kit.api.post(path, asked)
            refused(answer, 429, "tenant_saturated")
            assert int(answer.headers["Retry-After"]) >= 1
        done(await other.spawn(other_root, "a"))
        await other.root(other_root.agent_id)
    done(await kit.spawn(root, "a"))


async def test_orders_of_one_tenant_beyond_what_may_be_in_flight_are_refused_at_once(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    other = await Kit.make(kit.admin)
    root, _ = await kit.team(max_fanout=100, max_children_total=100)
    other_root, _ = await other.team()
    combiner = SpawnCombiner(SpawnPipeline(database, opa_engine), lanes=1, max_waiting_per_tenant=4)
    outcomes = await asyncio.gather(
        *(combiner.spawn(order(kit, root, f"k{number}")) for number in range(12)),
        combiner.spawn(order(other, other_root, "k")),
        return_exceptions=True,
    )
    refusals = [outcome for outcome in outcomes if isinstance(outcome, TenantSaturatedError)]
    assert len(refusals) == 8
    assert not isinstance(outcomes[-1], BaseException)
    # The room is given back: a second wave finds as much.
    again = await asyncio.gather(*(combiner.spawn(order(kit, root, f"again{number}")) for number in range(4)))
    assert len({run_id for spawned in again for run_id in spawned.run_ids}) == 4
    await combiner.drain()


async def test_a_client_that_goes_away_loses_nothing_and_leaks_nothing(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team()
    combiner = SpawnCombiner(SpawnPipeline(database, opa_engine))
    waiting = asyncio.create_task(combiner.spawn(order(kit, root, "left")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await combiner.drain()
    found = await combiner.spawn(order(kit, root, "left"))
    assert found.idempotent


async def test_totals_are_read_from_the_trees(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    done(await kit.spawn_group(root, "g", 3))
    active = ActiveRuns(database, default_bound=4)
    await active.refresh()
    with pytest.raises(TenantSaturatedError) as refusal:
        active.check(UUID(kit.tenant_id))
    assert refusal.value.members == {"limit": 4, "observed": 4}
