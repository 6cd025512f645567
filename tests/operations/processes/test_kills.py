"""Any process of a deployment may die at any moment: nothing that was acknowledged is lost, and the rest goes on."""

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import httpx2
import pytest

from kernel.store import migrate
from load.audit import audit
from tests.kit import Api, Kit, Run, done
from tests.operations.processes.fleet import Fleet
from tests.operations.processes.traffic import Traffic, flowing

# One fleet for all of these tests: it takes seconds to start.
pytestmark = pytest.mark.xdist_group("fleet")

DRAIN_S = 20.0
MANY = 300


@pytest.fixture
async def api(fleet: Fleet) -> AsyncIterator[Api]:
    url = fleet.apis[0].url
    assert url is not None
    async with httpx2.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        yield Api(client, fleet.secret("admin-token"))


async def drained(auditor: asyncpg.Connection) -> float:
    """Wait for the end of every drain; the seconds that it took."""
    started = time.monotonic()
    async with asyncio.timeout(DRAIN_S):
        while await auditor.fetchval("SELECT count(*) FROM cancellations WHERE drained_at IS NULL"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return time.monotonic() - started


async def check_kept(auditor: asyncpg.Connection, traffic: Traffic) -> None:
    rows = await auditor.fetch("SELECT run_id::text, parent_run_id::text, spawn_key, status FROM agent_runs")
    by_key = {(row["parent_run_id"], row["spawn_key"]): row for row in rows}
    for key, run_id in traffic.spawned.items():
        assert by_key[key]["run_id"] == run_id
    status = {row["run_id"]: row["status"] for row in rows}
    assert {status[run_id] for run_id in traffic.completed} == {"completed"}
    kept = {str(row[0]) for row in await auditor.fetch("SELECT cancellation_id FROM cancellations")}
    assert set(traffic.fenced) <= kept
    assert not [run_id for run_id in traffic.fenced.values() if status[run_id] in {"queued", "running", "paused"}]


async def roots_of(kit: Kit, count: int) -> list[Run]:
    await kit.agent("worker")
    orchestrator = await kit.orchestrator(
        may_spawn=["worker", "orchestrator"], max_fanout=100_000, max_children_total=100_000
    )
    return [await kit.root(orchestrator) for _ in range(count)]


async def test_each_process_is_killed_in_turn_and_nothing_acknowledged_is_lost(
    fleet: Fleet, api: Api, auditor: asyncpg.Connection
) -> None:
    kit = await Kit.make(api)
    callers = await roots_of(kit, 3)
    urls = [part.url for part in fleet.apis if part.url is not None]
    async with flowing(urls, kit.api.token, callers) as traffic:
        await traffic.more(10)
        for part in (fleet.apis[1], fleet.opa, fleet.apis[0], fleet.reconciler):
            await part.kill()
            if part is not fleet.opa:  # without policy nothing is spawned, and nothing needs to be
                await traffic.more(5)
            await part.start()
            await traffic.more(10)
    assert traffic.fenced
    assert traffic.completed
    await drained(auditor)
    await check_kept(auditor, traffic)
    assert await audit(auditor) == []

    # Either API repeats what the other has answered.
    for number, ((caller_id, key), run_id) in enumerate(list(traffic.spawned.items())[:10]):
        caller = next(caller for caller in callers if caller.run_id == caller_id)
        for url in urls:
            async with httpx2.AsyncClient(base_url=url, timeout=10.0, trust_env=False) as client:
                mine = Kit(Api(client, kit.api.token), kit.admin, kit.tenant_id, kit.slug)
                answer = await mine.spawn(caller, key)
                assert done(answer)["spawned_run_ids"] == [run_id], (number, url)
                assert answer.headers["X-Idempotency-Reused"] == "true"


async def test_while_opa_is_dead_nothing_is_permitted(fleet: Fleet, api: Api) -> None:
    kit = await Kit.make(api)
    (caller,) = await roots_of(kit, 1)
    await fleet.opa.kill()
    try:
        answer = await kit.spawn(caller, "without-policy")
        assert (answer.status_code, answer.json()["code"]) == (503, "policy_unavailable")
        ready = await api.get("/readyz")
        assert ready.status_code == 503
        assert set(ready.json()["problems"]) == {"policy_engine"}
    finally:
        await fleet.opa.start()
        await fleet.apis[0].answers()
    assert done(await kit.spawn(caller, "without-policy"))["idempotent"] is False


async def test_a_fence_stands_without_a_reconciler_and_is_drained_by_the_next(
    fleet: Fleet, api: Api, auditor: asyncpg.Connection
) -> None:
    kit = await Kit.make(api)
    (root,) = await roots_of(kit, 1)
    done(await kit.spawn_group(root, "many", MANY))
    await fleet.reconciler.kill()
    try:
        cancelled = await kit.api.post(
            "/internal/orchestration/cancel-subtree", {"caller_run_id": root.run_id, "run_id": root.run_id}
        )
        assert done(cancelled)["state"] == "draining"
        # Covered at once, whoever drains it when.
        assert (await kit.spawn(root, "late")).status_code == 409
        claimed = await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 10})
        assert done(claimed)["runs"] == []
    finally:
        await fleet.reconciler.start()
    await drained(auditor)
    left = await auditor.fetchval(
        "SELECT count(*) FROM agent_runs WHERE root_run_id = $1::uuid AND status <> 'cancelled'", root.run_id
    )
    assert left == 0
    assert await audit(auditor) == []


async def test_a_process_goes_on_while_the_next_version_is_rolled_out_and_not_on_a_schema_that_is_behind(
    fleet: Fleet, api: Api, auditor: asyncpg.Connection
) -> None:
    head = await auditor.fetchval(f"SELECT version_num FROM {migrate.VERSION_TABLE}")
    try:
        for version, status, problems in (("9999", 200, set()), ("0001", 503, {"migrations"})):
            await auditor.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = $1", version)
            ready = await api.get("/readyz")
            assert ready.status_code == status, (version, ready.text)
            assert set(ready.json()["problems"]) == problems
    finally:
        await auditor.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = $1", head)


async def test_the_deployed_opa_decides_and_does_nothing_else(fleet: Fleet) -> None:
    assert fleet.opa.url is not None
    async with httpx2.AsyncClient(base_url=fleet.opa.url, timeout=10.0, trust_env=False) as client:
        mine = {"Authorization": f"Bearer {fleet.secret('opa-token')}"}
        for method, path, status in (
            ("POST", "/v1/data/orchestration/main/decision", 200),
            ("POST", "/v1/data/orchestration/main/decisions", 200),
            ("GET", "/health", 200),
            ("GET", "/v1/status", 200),
            ("GET", "/v1/data/orchestration/main/decision", 401),
            ("POST", "/v1/data/system", 401),
            ("GET", "/v1/policies", 401),
            ("PUT", "/v1/policies/mine", 401),
            ("PUT", "/v1/data/mine", 401),
            ("POST", "/v1/query", 401),
            ("GET", "/v1/config", 401),
            ("GET", "/metrics", 401),
        ):
            answer = await client.request(method, path, headers=mine, json={} if method != "GET" else None)
            assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
            if status == 200:
                for other in ({}, {"Authorization": f"Bearer {fleet.secret('bundle-token')}"}):
                    answer = await client.request(method, path, headers=other, json={})
                    assert answer.status_code == 401, f"{method} {path} with {other}"
