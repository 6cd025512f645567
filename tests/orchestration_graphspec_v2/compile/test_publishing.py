"""A graph that is published compiles."""

import asyncio
from typing import Any

from kernel.store.engine import Database
from tests.kit import Kit, done, refused
from tests.orchestration_graphspec_v2.compile.drafts import Document, draw, group, line, node, spawn


async def graph_agent(kit: Kit, document: Document | None, **policy: Any) -> str:
    await kit.agent("worker")
    body = {"slug": "grapher", "name": "grapher", "kind": "graph", "graph_definition": document}
    agent_id: str = done(await kit.api.post("/agents", body))["agent_id"]
    done(await kit.api.put(f"/agents/{agent_id}/orchestrator-policy", policy))
    done(await kit.api.put(f"/agents/{agent_id}/allowlist", {"entries": [{"target_agent_slug": "worker"}]}))
    return agent_id


async def patch(kit: Kit, agent_id: str, **changes: Any) -> Any:
    return await kit.api.call("PATCH", f"/agents/{agent_id}", changes)


async def test_a_graph_that_compiles_is_published_as_it_was_given(kit: Kit, database: Database) -> None:
    document = line(spawn())
    agent_id = await graph_agent(kit, document)
    answer = done(await kit.api.post(f"/agents/{agent_id}/publish"))
    assert answer["status"] == "published"
    assert answer["graph_definition"] == document
    async with database.read() as session:
        outcomes = await session.driver.fetch(
            "SELECT action, outcome FROM policy_decisions WHERE tenant_id = $1", kit.tenant_id
        )
    assert [tuple(row) for row in outcomes] == [("compile_graph", "allow")]


async def test_a_graph_with_errors_is_not_published_and_every_finding_is_told(kit: Kit, database: Database) -> None:
    agent_id = await graph_agent(kit, draw({"g": group(4), "x": node("join")}, "start > g", "g > end"), max_fanout=2)
    problem = refused(await kit.api.post(f"/agents/{agent_id}/publish"), 422, "graph_invalid")
    codes = {(item["code"], item["node_id"]) for item in problem["diagnostics"]}
    assert {
        ("max_fanout_exceeded", "g"),
        ("unreachable_node", "x"),
        ("join_without_group", "x"),
        ("missing_branch_handle", "x"),
    } == codes
    assert "and 5 more" in problem["detail"]
    assert done(await kit.api.get(f"/agents/{agent_id}"))["status"] == "draft"
    async with database.read() as session:
        outcome = await session.driver.fetchval(
            "SELECT outcome FROM policy_decisions WHERE tenant_id = $1 AND decision_id = $2",
            kit.tenant_id,
            problem["decision_id"],
        )
    assert outcome == "deny"


async def test_an_agent_without_its_graph_is_not_published(kit: Kit) -> None:
    agent_id = await graph_agent(kit, None)
    problem = refused(await kit.api.post(f"/agents/{agent_id}/publish"), 422, "graph_invalid")
    assert [item["code"] for item in problem["diagnostics"]] == ["graph_missing"]


async def test_a_published_graph_is_changed_only_to_one_that_compiles(kit: Kit) -> None:
    agent_id = await graph_agent(kit, line(spawn()))
    done(await kit.api.post(f"/agents/{agent_id}/publish"))
    broken = line(spawn(scope_subset=[]))
    problem = refused(await patch(kit, agent_id, graph_definition=broken, name="other"), 422, "graph_invalid")
    assert [item["code"] for item in problem["diagnostics"]] == ["scope_required"]
    refused(await patch(kit, agent_id, graph_definition=None), 422, "graph_invalid")
    stored = done(await kit.api.get(f"/agents/{agent_id}"))
    assert (stored["graph_definition"], stored["name"], stored["status"]) == (line(spawn()), "grapher", "published")
    assert done(await patch(kit, agent_id, graph_definition=line(group())))["graph_definition"] == line(group())


async def test_a_draft_may_be_broken_and_a_published_graph_renamed_without_compiling(kit: Kit) -> None:
    agent_id = await graph_agent(kit, line(spawn()))
    done(await kit.api.post(f"/agents/{agent_id}/publish"))
    done(await kit.api.put(f"/agents/{agent_id}/allowlist", {"entries": []}))
    assert done(await patch(kit, agent_id, name="renamed"))["status"] == "published"
    refused(await kit.api.post(f"/agents/{agent_id}/publish"), 422, "graph_invalid")
    assert done(await kit.api.post(f"/agents/{agent_id}/unpublish"))["status"] == "draft"
    assert done(await patch(kit, agent_id, graph_definition={"nodes": []}))["graph_definition"] == {"nodes": []}


async def test_an_external_agent_takes_no_graph(kit: Kit) -> None:
    agent_id = await kit.agent("worker")
    refused(await patch(kit, agent_id, graph_definition=line(spawn())), 400, "invalid_request")
    assert done(await patch(kit, agent_id, name="renamed", graph_definition=None))["name"] == "renamed"


async def test_no_race_leaves_a_published_graph_that_does_not_compile(kit: Kit) -> None:
    agent_id = await graph_agent(kit, line(spawn()))
    good, bad = line(spawn()), line(spawn(scope_subset=[]))
    for _ in range(10):
        answers = await asyncio.gather(
            kit.api.post(f"/agents/{agent_id}/publish"),
            patch(kit, agent_id, graph_definition=bad),
            patch(kit, agent_id, graph_definition=good),
            kit.api.post(f"/agents/{agent_id}/publish"),
        )
        assert all(answer.status_code in {200, 409, 422} for answer in answers)
        stored = done(await kit.api.get(f"/agents/{agent_id}"))
        assert stored["status"] == "draft" or stored["graph_definition"] == good
        done(await kit.api.post(f"/agents/{agent_id}/unpublish"))


async def test_an_unknown_agent_is_not_found(kit: Kit) -> None:
    other = await Kit.make(kit.admin)
    theirs = await other.agent("theirs")
    refused(await kit.api.post(f"/agents/{theirs}/publish"), 404, "not_found")
    refused(await patch(kit, theirs, name="mine"), 404, "not_found")
