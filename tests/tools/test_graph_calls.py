"""Graphs call tools: through the same kernel, and once however often they are resumed."""

from collections.abc import AsyncIterator

import pytest

from kernel.reconcilers.expire_leases import expire_leases
from kernel.store.engine import Database
from service.dependencies import Services
from service.graph_worker import GraphWorker, working
from tests.graphs import ended, graph, graph_agent, node, start
from tests.kit import Kit, Run, done
from tests.orchestration_runtime_primitives.work.crew import complete, let_expire
from tests.tools.workshop import invoke, library, make_tool, search, statuses, take_up

CALLING = graph(
    [
        node("ask", "tool_call", {"question": "input.question"}, tool_slug="ask", input={"tone": "kind"}),
        node("end", "end", output={"said": "nodes.ask.output", "status": "nodes.ask.status"}),
    ],
    "start -> ask",
    "ask -> end",
)


@pytest.fixture
async def graph_worker(services: Services, database_url: str) -> AsyncIterator[GraphWorker]:
    async with working(services, database_url) as worker:
        yield worker


async def test_a_node_calls_an_agent_and_goes_on_with_its_answer(
    kit: Kit, graph_worker: GraphWorker, database: Database
) -> None:
    await kit.agent("worker")
    done(await make_tool(kit))
    run = await start(kit, await graph_agent(kit, CALLING), {"question": "why"})
    child = await take_up(kit)
    assert child["input"]["question"] == "why"
    assert child["input"]["tone"] == "kind"
    assert (child["context"]["parent_run_id"], child["context"]["parent_node_id"]) == (run.run_id, "ask")
    done(await complete(kit, child, output={"answer": 42}))
    finished = await ended(kit, run.run_id)
    assert finished["output"] == {"said": {"answer": 42}, "status": "completed"}, finished
    items = done(await kit.api.get(f"/policies/decisions?action=agent_call&run={run.run_id}"))["items"]
    assert [item["surface"] for item in items] == ["option_a_graphspec_v2"]


async def test_a_graph_that_is_resumed_finds_the_child_that_it_called(
    kit: Kit, services: Services, database_url: str, database: Database
) -> None:
    await kit.agent("worker")
    done(await make_tool(kit))
    async with working(services, database_url):
        run = await start(kit, await graph_agent(kit, CALLING), {"question": "why"})
        child = await take_up(kit)
    # The worker is gone; its lease has been given back, or will expire.
    assert (await statuses(database, kit))[child["run_id"]] == "running"
    done(await complete(kit, child, output={"answer": 42}))
    await release(database, run)
    async with working(services, database_url):
        finished = await ended(kit, run.run_id)
    assert finished["output"]["said"] == {"answer": 42}, finished
    assert len(await statuses(database, kit)) == 2


async def test_a_node_searches_a_pipeline(kit: Kit, graph_worker: GraphWorker) -> None:
    _, root = await library(kit, {"cats": "Cats sleep", "dogs": "Dogs bark"})
    definition = graph(
        [
            node("look", "tool_call", {"query": "input.query"}, tool_slug="search"),
            node("end", "end", output={"found": "nodes.look.results[].document_id"}),
        ],
        "start -> look",
        "look -> end",
    )
    run = await start(kit, await graph_agent(kit, definition), {"query": "bark"})
    assert (await ended(kit, run.run_id))["output"] == {"found": ["dogs"]}
    assert [result["document_id"] for result in await search(kit, root, "bark")] == ["dogs"]


async def test_what_is_called_may_be_a_graph(kit: Kit, graph_worker: GraphWorker, database: Database) -> None:
    definition = graph([node("end", "end", output={"heard": "input.question"})], "start -> end")
    await graph_agent(kit, definition, slug="echo")
    root = await kit.root(await kit.orchestrator(may_spawn=["echo"]))
    done(await make_tool(kit, config={"target_agent_slug": "echo"}))
    answer = done(await invoke(kit, root, given={"question": "why"}))
    assert (answer["status"], answer["output"]) == ("completed", {"heard": "why"})
    assert answer["context"]["parent_run_id"] == root.run_id


async def test_a_graph_that_waits_for_a_call_is_cancelled_with_all_below_it(
    kit: Kit, graph_worker: GraphWorker, database: Database
) -> None:
    await kit.agent("worker")
    done(await make_tool(kit))
    run = await start(kit, await graph_agent(kit, CALLING), {"question": "why"})
    child = await take_up(kit)
    body = {"caller_run_id": run.run_id, "run_id": run.run_id}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    assert (await ended(kit, run.run_id))["status"] == "cancelled"
    assert (await statuses(database, kit))[child["run_id"]] == "cancelled"


async def test_a_call_of_a_graph_that_is_never_answered_ends_at_its_timeout(
    kit: Kit, graph_worker: GraphWorker, database: Database
) -> None:
    await kit.agent("worker")
    done(await make_tool(kit, config={"target_agent_slug": "worker", "execution": {"timeout_s": 1}}))
    run = await start(kit, await graph_agent(kit, CALLING), {"question": "why"})
    assert (await ended(kit, run.run_id))["output"] == {"said": None, "status": "failed"}
    stored = await statuses(database, kit)
    assert sorted(stored.values()) == ["cancelled", "completed"]


async def test_a_call_that_is_refused_fails_the_graph_and_says_why(kit: Kit, graph_worker: GraphWorker) -> None:
    await kit.agent("worker")
    done(await make_tool(kit, input_schema={"required": ["answer"]}))
    run = await start(kit, await graph_agent(kit, CALLING), {"question": "why"})
    finished = await ended(kit, run.run_id)
    assert finished["status"] == "failed"
    assert finished["error"]["code"] == "invalid_request"
    assert finished["error"]["node_id"] == "ask"
    assert "'answer' is a required property" in finished["error"]["message"]


async def release(database: Database, run: Run) -> None:
    """Have a run that a stopped worker held be claimed again, as the loop that expires leases would."""
    await let_expire(database, run.run_id)
    await expire_leases(database).run_once()
