"""A service that is killed again and again carries its graphs to the end that they would have had."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import httpx2
import pytest
from sqlalchemy import make_url

from tests.conftest import Servers
from tests.faults.scale import TORTURE
from tests.graphs import ended, graph, graph_agent, joined, node, play, start
from tests.kit import ADMIN_TOKEN, Kit, done
from tests.orchestration_graphspec_v2.runtime.gate import gate
from tests.orchestration_graphspec_v2.runtime.process import ServiceProcess, Stubborn

CHILDREN, KILLS = (1_000, 20) if TORTURE else (100, 2)
QUORUM = CHILDREN * 6 // 10
LEASE_S = 2
# So slow that the kills come while children are at work.
AT_ONCE, PACE_S = 5, 0.25
SEED = 20_261_122


@pytest.fixture
async def process(servers: Servers, worker_id: str, tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    url = make_url(servers.postgres)
    name = f"crashes_{worker_id}"
    connection = await asyncpg.connect(
        host=str(url.query["host"]), port=int(str(url.query["port"])), user=url.username, database=url.database
    )
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    process = ServiceProcess(
        {
            "REMIT_DATABASE_URL": url.set(database=name).render_as_string(hide_password=False),
            "REMIT_OPA_URL": servers.opa_url,
            "REMIT_OPA_TOKEN": servers.opa_token,
            "REMIT_OPA_BINARY": str(servers.opa_binary),
            "REMIT_GRAPH_LEASE_S": str(LEASE_S),
        },
        tmp_path,
    )
    await process.start()
    yield process
    await process.stop()


@pytest.mark.torture
@pytest.mark.timeout(900)
async def test_a_quorum_of_many_children_is_joined_whenever_the_service_is_killed(
    process: ServiceProcess, record_property: Callable[[str, object], None]
) -> None:
    async with httpx2.AsyncClient(base_url=process.url, timeout=30.0) as client:
        kit = await Kit.make(Stubborn(client, ADMIN_TOKEN))
        await kit.agent("worker")
        definition = graph(
            [
                node(
                    "fan",
                    "spawn_group",
                    targets=[{"target_agent_slug": "worker"}],
                    for_each="input.items",
                    scope_subset=["read"],
                    join_mode="quorum",
                    quorum_threshold=QUORUM,
                    timeout_s=3_600,
                ),
                node("wait", "join"),
                node("after", "spawn_run", target_agent_slug="worker", scope_subset=["read"]),
                node("end", "end", output={"join": "nodes.wait"}),
            ],
            "start -> fan",
            "fan -> wait",
            *joined("wait", "after"),
            "after -> end",
        )
        agent_id = await graph_agent(kit, definition)
        run = await start(kit, agent_id, {"items": list(range(CHILDREN))})
        over = asyncio.Event()
        working = asyncio.create_task(work(kit, over))
        dice = random.Random(SEED)
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(0.0, 1.5))
            await process.kill()
            await process.start()
        finished = await ended(kit, run.run_id, within_s=600)
        over.set()
        await working
        tree = done(await kit.api.post("/internal/orchestration/query-tree", {"run_id": run.run_id, "rollup": True}))
    assert finished["status"] == "completed", finished
    told = finished["output"]["join"]
    assert (told["status"], told["success_count"]) == ("completed", QUORUM)
    counted = Counter(tree["rollup"]["by_status"])
    # The graph's run, its members, and the one child that came after them.
    assert counted.total() == 1 + CHILDREN + 1
    assert counted["completed"] in {1 + QUORUM, 1 + QUORUM + 1}
    assert counted["failed"] == 0
    record_property("children", CHILDREN)
    record_property("kills", KILLS)


@pytest.mark.torture
@pytest.mark.timeout(180)
async def test_a_replan_whose_process_is_killed_takes_one_attempt(process: ServiceProcess) -> None:
    async with httpx2.AsyncClient(base_url=process.url, timeout=30.0) as client:
        kit = await Kit.make(Stubborn(client, ADMIN_TOKEN))
        await kit.agent("worker")
        definition = graph(
            [
                node("fan", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
                node("wait", "join"),
                node("first", "replan"),
                node("second", "replan"),
                node("end", "end", output={"first": "nodes.first.attempts", "second": "nodes.second.attempts"}),
            ],
            "start -> fan",
            "fan -> wait",
            *joined("wait", "first"),
            "first:replan -> second",
            "first:continue -> end",
            "second:replan -> end",
            "second:continue -> end",
        )
        agent_id = await graph_agent(kit, definition)
        # The steps before: of the input, start, fan and wait.
        async with gate(process.environment["REMIT_DATABASE_URL"], kit.tenant_id, step=4) as closed:
            run = await start(kit, agent_id)
            await play(kit, "failed")
            await closed.reached()
            await process.kill()
            await closed.turn_away()
        await process.start()
        finished = await ended(kit, run.run_id, within_s=60)
    assert finished["status"] == "completed", finished
    assert finished["output"] == {"first": 1, "second": 2}


async def work(kit: Kit, over: asyncio.Event) -> None:
    """Complete what there is to do, a little at a time, until all is over."""
    while not over.is_set():
        body = {"agent_slugs": ["worker"], "max_runs": AT_ONCE, "lease_s": 5, "wait_s": 1}
        for one in done(await kit.api.post("/work/claim", body))["runs"]:
            report = {"run_id": one["run_id"], "lease": one["lease"], "status": "completed"}
            response = await kit.api.post("/work/complete", report)
            # Others may have won, or the lease was lost with the service.
            assert response.is_success or response.json()["code"] in {"run_cancelled", "lease_lost"}, response.text
        await asyncio.sleep(PACE_S)
