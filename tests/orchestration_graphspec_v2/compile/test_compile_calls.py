"""Compiling over HTTP: with the tenant's catalog, its flags and the policy of the agent that would run the graph."""

from typing import Any

import pytest

from kernel.store.engine import Database
from tests.kit import ALL_SCOPES, Kit, done, refused
from tests.orchestration_graphspec_v2.compile.drafts import (
    EXAMPLES,
    Document,
    draw,
    example,
    group,
    line,
    node,
    spawn,
)


async def compiled(kit: Kit, document: Any, agent_id: str | None = None) -> dict[str, Any]:
    return done(await kit.api.post("/graphs/compile", {"graph": document, "agent_id": agent_id}))


def told(answer: dict[str, Any], severity: str = "error") -> list[tuple[str, str | None]]:
    return [(item["code"], item["node_id"]) for item in answer["diagnostics"] if item["severity"] == severity]


async def with_worker(kit: Kit, **policy: Any) -> str:
    await kit.agent("worker")
    return await kit.orchestrator(may_spawn=["worker"], **policy)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_examples_compile_for_an_orchestrator_that_may(kit: Kit, name: str) -> None:
    answer = await compiled(kit, example(name), await with_worker(kit))
    assert answer["valid"], answer["diagnostics"]
    assert answer["diagnostics"] == []
    assert answer["ir"]["entry"] == "start"
    assert len(answer["ir"]["digest"]) == 64


# What policy refuses: the policy of the orchestrator, the graph, the node, and a graph that it does not refuse.
DENIED: dict[str, tuple[dict[str, Any], Document, str | None, Document]] = {
    "scope_exceeds_policy": (
        {"allowed_scope_subset": ["write"]},
        line(spawn()),
        "n0",
        line(spawn(scope_subset=["write"])),
    ),
    "max_depth_exceeded": ({"max_depth": 0}, line(spawn()), "n0", line(node("transform"))),
    "max_fanout_exceeded": ({"max_fanout": 3}, line(group(4)), "n0", line(group(3))),
    "max_children_total_exceeded": (
        {"max_children_total": 5},
        line(group(3), group(3)),
        None,
        line(group(3), group(2)),
    ),
    "scope_required": ({}, line(spawn(scope_subset=[])), "n0", line(spawn())),
    "target_not_allowlisted": ({}, line(spawn(target_agent_slug="stranger")), "n0", line(spawn())),
    "target_not_published": ({}, line(spawn(target_agent_slug="draft")), "n0", line(spawn())),
    "target_not_found": ({}, line(spawn(target_agent_slug="nobody")), "n0", line(spawn())),
}


@pytest.mark.parametrize("code", DENIED)
async def test_what_policy_refuses_is_a_finding_at_its_node(kit: Kit, code: str) -> None:
    policy, bad, node_id, good = DENIED[code]
    await kit.agent("worker")
    await kit.agent("stranger")
    await kit.agent("draft", publish=False)
    agent_id = await kit.orchestrator(may_spawn=["worker", "draft"], **policy)
    answer = await compiled(kit, bad, agent_id)
    assert not answer["valid"]
    assert answer["ir"] is None
    assert told(answer) == [(code, node_id)]
    neighbour = await compiled(kit, good, agent_id)
    assert neighbour["valid"], neighbour["diagnostics"]


async def test_a_finding_of_a_limit_has_its_numbers(kit: Kit) -> None:
    answer = await compiled(kit, line(group(4)), await with_worker(kit, max_fanout=3))
    (finding,) = answer["diagnostics"]
    assert (finding["limit"], finding["observed"], finding["requested"]) == (3, 0, 4)
    assert finding["edge_id"] is None
    assert "'n0'" in finding["message"]


async def test_an_empty_allowlist_is_told_at_every_spawn(kit: Kit) -> None:
    await kit.agent("worker")
    answer = await compiled(kit, line(spawn(), group()), await kit.orchestrator())
    assert told(answer) == [("allowlist_empty", "n0"), ("allowlist_empty", "n1")]


async def test_faults_of_form_and_denials_are_told_together(kit: Kit) -> None:
    document = draw({"s": spawn(scope_subset=["admin"]), "lost": node("transform")}, "start > s", "s > end")
    answer = await compiled(kit, document, await with_worker(kit, allowed_scope_subset=["read"], max_depth=0))
    assert told(answer) == [("unreachable_node", "lost"), ("max_depth_exceeded", "s"), ("scope_exceeds_policy", "s")]


async def test_a_target_may_be_named_by_its_id(kit: Kit) -> None:
    agent_id = await with_worker(kit)
    worker = done(await kit.api.get("/agents"))["items"][0]["agent_id"]
    by_id = line(spawn(target_agent_id=worker, target_agent_slug=None))
    assert (await compiled(kit, by_id, agent_id))["valid"]
    assert told(await compiled(kit, by_id, await kit.orchestrator("other"))) == [("allowlist_empty", "n0")]


async def test_a_target_of_another_tenant_is_not_found(kit: Kit) -> None:
    other = await Kit.make(kit.admin)
    foreign = await other.agent("worker")
    agent_id = await kit.orchestrator(may_spawn=["worker"])
    answer = await compiled(kit, line(spawn(target_agent_id=foreign, target_agent_slug=None)), agent_id)
    assert told(answer) == [("target_not_found", "n0")]


async def test_a_surface_that_is_off_is_told_with_or_without_an_agent(kit: Kit) -> None:
    agent_id = await with_worker(kit)
    flags = {"option_a_graphspec_v2": False, "option_b_runtime_primitives": True}
    done(await kit.api.put(f"/tenants/{kit.tenant_id}/flags", flags))
    assert told(await compiled(kit, line(spawn()), agent_id)) == [("surface_disabled", None)]
    assert told(await compiled(kit, line(spawn()))) == [("surface_disabled", None)]
    done(await kit.api.put(f"/tenants/{kit.tenant_id}/flags", {**flags, "option_a_graphspec_v2": True}))
    assert (await compiled(kit, line(spawn()), agent_id))["valid"]


async def test_without_an_agent_its_policy_is_deferred_and_the_catalog_is_not(kit: Kit) -> None:
    await kit.agent("worker")
    answer = await compiled(kit, line(spawn()))
    assert answer["valid"]
    assert ("target_not_allowlisted", "n0") in told(answer, "deferred")
    assert ("max_children_total_exceeded", None) in told(answer, "deferred")
    assert "surface_disabled" not in [code for code, _ in told(answer, "deferred")]
    assert told(await compiled(kit, line(spawn(target_agent_slug="nobody")))) == [("target_not_found", "n0")]


async def test_a_group_of_unknown_size_defers_its_counts(kit: Kit) -> None:
    answer = await compiled(kit, line(group(1, for_each="input.items")), await with_worker(kit, max_fanout=1))
    assert answer["valid"]
    assert told(answer, "deferred") == [("max_children_total_exceeded", None), ("max_fanout_exceeded", "n0")]


async def test_a_compilation_is_on_record(kit: Kit, database: Database) -> None:
    agent_id = await with_worker(kit, max_fanout=1)
    allowed = await compiled(kit, line(spawn()), agent_id)
    denied = await compiled(kit, line(group(2)), agent_id)
    async with database.read() as session:
        rows = await session.driver.fetch(
            "SELECT decision_id::text, action, surface, outcome, reasons, input FROM policy_decisions"
            " WHERE decision_id = ANY($1::uuid[]) ORDER BY created_at",
            [allowed["decision_id"], denied["decision_id"]],
        )
    assert [(row["action"], row["surface"], row["outcome"]) for row in rows] == [
        ("compile_graph", "option_a_graphspec_v2", "allow"),
        ("compile_graph", "option_a_graphspec_v2", "deny"),
    ]
    assert [reason["code"] for reason in rows[1]["reasons"]] == ["max_fanout_exceeded"]
    assert rows[1]["input"]["graph"]["spawns"][0]["node_id"] == "n0"


@pytest.mark.parametrize(
    ("scopes", "may"), [(["catalog.write"], True), (["agents.execute"], True), (["runs.read", "policy.write"], False)]
)
async def test_compiling_needs_one_of_two_scopes(kit: Kit, scopes: list[str], may: bool) -> None:
    assert set(scopes) <= set(ALL_SCOPES)
    answer = done(await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": scopes}))
    response = await kit.api.acting_with(answer["token"]).post("/graphs/compile", {"graph": line(node("transform"))})
    if may:
        assert done(response)["valid"]
    else:
        refused(response, 403, "forbidden")


async def test_an_unknown_agent_is_not_found(kit: Kit) -> None:
    other = await Kit.make(kit.admin)
    body = {"graph": line(node("transform")), "agent_id": await other.agent("theirs")}
    refused(await kit.api.post("/graphs/compile", body), 404, "not_found")


async def test_a_body_without_a_graph_is_refused(kit: Kit) -> None:
    refused(await kit.api.post("/graphs/compile", {}), 400, "invalid_request")
    refused(await kit.api.post("/graphs/compile", {"graph": {}, "extra": 1}), 400, "invalid_request")


async def test_the_schema_tells_every_type_with_its_fields(kit: Kit) -> None:
    schema = done(await kit.api.get("/graphs/schema"))
    nodes = {item["title"]: item for item in schema["properties"]["nodes"]["items"]["oneOf"]}
    assert len(nodes) == 13
    assert nodes["start"]["properties"]["type"]["enum"] == ["start", "input"]
    definition = schema["$defs"]["SpawnRunConfig"]
    assert definition["additionalProperties"] is False
    assert {"target_agent_slug", "scope_subset", "failure_policy"} <= definition["properties"].keys()
    assert {"source_handle", "sourceHandle"} <= schema["$defs"]["Edge"]["properties"].keys()
