"""How graph workers hold, keep, leave and take up runs."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from kernel.graph.langgraph_runtime import LangGraphRuntime
from kernel.store import graph_runs
from service.dependencies import Services
from service.graph_worker import MAX_FAILURES, GraphWorker, working
from tests.graphs import Definition, ended, graph, graph_agent, joined, node, play, start
from tests.kit import Kit, Run, done, refused

WAITING = 60


def one_child() -> Definition:
    return graph(
        [
            node("one", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
            node("wait", "join"),
            node("end", "end", output={"status": "nodes.wait.status"}),
        ],
        "start -> one",
        "one -> wait",
        *joined("wait"),
    )


@pytest.fixture
async def second_worker(services: Services, database_url: str) -> AsyncIterator[GraphWorker]:
    async with working(services, database_url) as worker:
        yield worker


async def children(services: Services, run: Run, status: str) -> int:
    async with services.database.read() as session:
        count: int = await session.driver.fetchval(
            "SELECT count(*) FROM agent_runs WHERE parent_run_id = $1 AND status = $2", UUID(run.run_id), status
        )
    return count


async def test_graphs_that_wait_hold_no_connection_and_keep_nobody_from_working(kit: Kit, services: Services) -> None:
    await kit.agent("worker")
    agent_id = await graph_agent(kit, one_child())
    quick = await graph_agent(kit, graph([], "start -> end"), slug="quick")
    runs = await asyncio.gather(*(start(kit, agent_id) for _ in range(WAITING)))
    async with asyncio.timeout(60):
        while sum([await children(services, run, "queued") for run in runs]) < WAITING:  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.05)
    # More wait than nodes may be at work at once.
    assert services.settings.graph_active_nodes < WAITING
    assert (await ended(kit, (await start(kit, quick)).run_id))["status"] == "completed"
    async with asyncio.timeout(30):
        while services.database.in_use() > 2:  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.05)
    await play(kit, *["completed"] * WAITING, within_s=60)
    statuses = {(await ended(kit, run.run_id))["status"] for run in runs}
    assert statuses == {"completed"}


async def test_a_run_that_a_worker_leaves_is_taken_up_where_it_was(
    kit: Kit, services: Services, graph_worker: GraphWorker, database_url: str
) -> None:
    await kit.agent("worker")
    run = await start(kit, await graph_agent(kit, one_child()))
    (child,) = await play(kit, "hold")
    await graph_worker.stop()
    await graph_worker.start()
    report = {"run_id": child["run_id"], "lease": child["lease"], "status": "completed"}
    done(await kit.api.post("/work/complete", report))
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"status": "completed"}
    assert await children(services, run, "completed") == 1
    async with services.database.read() as session:
        attempt = await session.driver.fetchval("SELECT attempt FROM run_leases WHERE run_id = $1", UUID(run.run_id))
        kept = await session.driver.fetchval(
            "SELECT count(*) FROM langgraph.checkpoints WHERE thread_id = $1", f"{kit.tenant_id}:{run.run_id}"
        )
    assert attempt == 2
    assert kept == 0


@pytest.mark.usefixtures("second_worker")
async def test_two_workers_never_execute_one_run_twice(kit: Kit, services: Services) -> None:
    await kit.agent("worker")
    agent_id = await graph_agent(kit, one_child())
    runs = await asyncio.gather(*(start(kit, agent_id) for _ in range(20)))
    await play(kit, *["completed"] * 20)
    for run in runs:
        assert (await ended(kit, run.run_id))["status"] == "completed"
        assert await children(services, run, "completed") == 1


async def test_a_surface_that_is_off_takes_no_new_graph_and_lets_the_running_one_end(kit: Kit) -> None:
    await kit.agent("worker")
    agent_id = await graph_agent(kit, one_child())
    run = await start(kit, agent_id)
    (child,) = await play(kit, "hold")
    flags = {"option_a_graphspec_v2": False, "option_b_runtime_primitives": True}
    done(await kit.api.put(f"/tenants/{kit.tenant_id}/flags", flags))
    body = {"requested_scopes": ["read"]}
    problem = refused(await kit.api.post(f"/agents/{agent_id}/runs", body), 403, "policy_denied")
    assert [reason["code"] for reason in problem["reasons"]] == ["surface_disabled"]
    report = {"run_id": child["run_id"], "lease": child["lease"], "status": "completed"}
    done(await kit.api.post("/work/complete", report))
    assert (await ended(kit, run.run_id))["status"] == "completed"


async def test_a_run_past_its_timeout_stops_its_graph(kit: Kit, graph_worker: GraphWorker) -> None:
    await kit.agent("worker")
    run = await start(kit, await graph_agent(kit, one_child()), timeout_s=1)
    finished = await ended(kit, run.run_id)
    assert finished["status"] == "failed"
    async with asyncio.timeout(10):
        while graph_worker.holds(UUID(run.run_id)):  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.05)


KEPT = """
SELECT (SELECT count(*) FROM langgraph.checkpoints WHERE thread_id = $1) AS checkpoints,
  (SELECT count(*) FROM langgraph.checkpoint_blobs WHERE thread_id = $1) AS blobs,
  (SELECT count(*) FROM langgraph.checkpoint_writes WHERE thread_id = $1) AS writes
"""


async def kept(services: Services, kit: Kit, run: Run) -> tuple[int, int, int]:
    async with services.database.read() as session:
        row = await session.driver.fetchrow(KEPT, f"{kit.tenant_id}:{run.run_id}")
    return row["checkpoints"], row["blobs"], row["writes"]


async def test_a_step_keeps_what_it_has_made_and_no_more(kit: Kit, services: Services) -> None:
    await kit.agent("worker")
    length = 8
    names = [f"t{number}" for number in range(length)]
    definition = graph(
        [
            *(node(name, "transform", expressions={"n": "input"}) for name in names),
            node("one", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
            node("wait", "join"),
        ],
        *(f"{source} -> {target}" for source, target in itertools.pairwise(["start", *names, "one", "wait"])),
        *joined("wait"),
    )
    run = await start(kit, await graph_agent(kit, definition))
    await play(kit, "hold")
    # LangGraph keeps the input, and begins; then each node has what it has made, and where the graph goes on.
    nodes = length + 2
    async with asyncio.timeout(10):
        while (found := await kept(services, kit, run))[0] < nodes + 2:  # noqa: ASYNC110 - it happens elsewhere
            await asyncio.sleep(0.02)
    assert found == (nodes + 2, 2 * nodes + 3, 0)


async def test_what_is_done_is_kept_while_its_neighbours_wait(
    kit: Kit, services: Services, graph_worker: GraphWorker
) -> None:
    await kit.agent("worker")
    definition = graph(
        [
            node("one", "spawn_group", targets=[{"target_agent_slug": "worker"}], scope_subset=["read"]),
            node("part", "parallel"),
            node("wait", "join"),
            node("aside", "spawn_run", target_agent_slug="other", scope_subset=["read"]),
            node("end", "end", output={"join": "nodes.wait.status", "aside": "nodes.aside.status"}),
        ],
        "start -> one",
        "one -> part",
        "part -> wait",
        "part -> aside",
        "aside -> end",
        *joined("wait"),
    )
    await kit.agent("other")
    run = await start(kit, await graph_agent(kit, definition, may_spawn=["worker", "other"]))
    await play(kit, "completed", slug="other")
    await graph_worker.stop()
    await graph_worker.start()
    await play(kit, "completed")
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"join": "completed", "aside": "spawned"}, finished
    assert await children(services, run, "completed") == 2


async def test_a_graph_that_fails_by_what_nobody_has_foreseen_ends(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def broken(*_: object, **__: object) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("nobody has foreseen this")

    agent_id = await graph_agent(kit, graph([], "start -> end"))
    monkeypatch.setattr(LangGraphRuntime, "run", broken)
    finished = await ended(kit, (await start(kit, agent_id)).run_id)
    assert (finished["status"], finished["error"]["code"]) == ("failed", "internal_error")
    assert tries == MAX_FAILURES


async def test_checkpoints_of_a_run_that_ended_without_a_worker_are_found(
    kit: Kit, services: Services, graph_worker: GraphWorker
) -> None:
    await kit.agent("worker")
    run = await start(kit, await graph_agent(kit, one_child()))
    await play(kit, "hold")
    await graph_worker.stop()
    body = {"caller_run_id": run.run_id, "run_id": run.run_id, "wait_s": 10}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    async with services.database.read() as session:
        left = await graph_runs.left_behind(session, ended_s=0.0, limit=10_000)
    await graph_worker.start()
    assert (UUID(kit.tenant_id), UUID(run.run_id)) in left
