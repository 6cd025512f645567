"""The registry of tools: versions, what is checked when a tool is made, and the catalogue."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from kernel.tools.configs import CONFIGS, check
from kernel.tools.templates import CATALOGUE
from tests.kit import Api, Kit, done, refused
from tests.tools.workshop import make_pipeline, make_tool

FIELDS = {
    "tool_id",
    "slug",
    "is_active",
    "version",
    "name",
    "implementation_type",
    "config",
    "input_schema",
    "output_schema",
    "created_at",
    "updated_at",
}


@pytest.fixture
async def worker(kit: Kit) -> str:
    return await kit.agent("worker")


async def test_a_tool_is_made_and_read(kit: Kit, worker: str) -> None:
    schema = {"type": "object", "required": ["question"]}
    response = await make_tool(
        kit, config={"target_agent_id": worker, "scope_subset": ["write", "read", "read"]}, input_schema=schema
    )
    assert response.status_code == 201
    made = response.json()
    assert set(made) == FIELDS
    assert made["version"] == 1
    assert made["is_active"]
    assert made["config"] == {
        "target_agent_id": worker,
        "execution": {"timeout_s": 60},
        "scope_subset": ["read", "write"],
    }
    assert made["input_schema"] == schema
    assert made["output_schema"] is None
    read = done(await kit.api.get("/tools/ask"))
    assert read.pop("versions") == [
        {name: made[name] for name in made if name not in {"tool_id", "slug", "is_active", "updated_at"}}
    ]
    assert read == made


async def test_the_same_slug_makes_the_next_version_and_leaves_the_others_alone(kit: Kit, worker: str) -> None:
    first = done(await make_tool(kit))
    pipeline_id = await make_pipeline(kit)
    second = done(await make_tool(kit, kind="rag_retrieval", config={"pipeline_id": pipeline_id}))
    assert (second["tool_id"], second["version"]) == (first["tool_id"], 2)
    assert second["config"] == {"pipeline_id": pipeline_id, "top_k": 5}
    tool = done(await kit.api.get("/tools/ask"))
    assert tool["implementation_type"] == "rag_retrieval"
    assert [version["version"] for version in tool["versions"]] == [2, 1]
    assert tool["versions"][1]["config"] == first["config"]


async def test_what_is_null_is_not_there(kit: Kit, worker: str) -> None:
    config = {"target_agent_id": None, "target_agent_slug": "worker", "scope_subset": None}
    for execution in ({}, {"timeout_s": None}, None):
        tool = done(await make_tool(kit, config={**config, "execution": execution}, input_schema=None))
        assert tool["config"] == {"target_agent_slug": "worker", "execution": {"timeout_s": 60}}
    pipeline_id = await make_pipeline(kit)
    tool = done(await make_tool(kit, kind="rag_retrieval", config={"pipeline_id": pipeline_id, "top_k": None}))
    assert tool["config"] == {"pipeline_id": pipeline_id, "top_k": 5}


async def test_versions_made_at_once_are_consecutive(kit: Kit, worker: str) -> None:
    made = [done(response) for response in await asyncio.gather(*(make_tool(kit) for _ in range(12)))]
    assert sorted(tool["version"] for tool in made) == list(range(1, 13))
    assert len({tool["tool_id"] for tool in made}) == 1


async def test_a_new_version_of_an_inactive_tool_stays_inactive(kit: Kit, worker: str) -> None:
    done(await make_tool(kit))
    assert not done(await kit.api.call("PATCH", "/tools/ask", {"is_active": False}))["is_active"]
    assert not done(await make_tool(kit))["is_active"]
    assert done(await kit.api.call("PATCH", "/tools/ask", {"is_active": True}))["is_active"]


async def test_tools_are_listed_in_pages_by_slug(kit: Kit, worker: str) -> None:
    for slug in ("b", "a", "a-b", "a.b", "c"):
        done(await make_tool(kit, slug))
    listed: list[str] = []
    cursor, page = "", {}
    for _ in range(3):
        page = done(await kit.api.get(f"/tools?limit=2{cursor}"))
        listed += [tool["slug"] for tool in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert page["next_cursor"] is None
    assert listed == ["a", "a-b", "a.b", "b", "c"]


async def test_an_unknown_tool_is_not_found(kit: Kit) -> None:
    refused(await kit.api.get("/tools/nothing"), 404, "not_found")
    refused(await kit.api.call("PATCH", "/tools/nothing", {"is_active": True}), 404, "not_found")
    # No text of the database's has the character, so none may come to it.
    call = {"caller_run_id": str(uuid4()), "input": {}}
    for method, path, body in (
        ("GET", "/tools/a%00b", None),
        ("PATCH", "/tools/a%00b", {"is_active": True}),
        ("POST", "/tools/a%00b/invoke", call),
    ):
        problem = refused(await kit.api.call(method, path, body), 400, "invalid_request")
        assert problem["errors"][0]["field"] == "slug"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"slug": "No Slug"}, "slug"),
        ({"slug": "templates"}, "slug"),
        ({"name": ""}, "name"),
        ({"implementation_type": "code"}, "implementation_type"),
        ({"config": []}, "config"),
        ({"config": {}}, "config"),
        ({"config": {"target_agent_slug": "worker", "target_agent_id": str(uuid4())}}, "config"),
        ({"config": {"target_agent_slug": "worker", "mode": "async"}}, "config.mode"),
        ({"config": {"target_agent_slug": "worker", "execution": {"timeout_s": 0}}}, "config.execution.timeout_s"),
        ({"config": {"target_agent_slug": "worker", "execution": {"retries": 1}}}, "config.execution.retries"),
        ({"config": {"target_agent_slug": "worker", "scope_subset": ["a", "*"]}}, "config.scope_subset[1]"),
        ({"config": {"target_agent_slug": "draft"}}, "config.target_agent_slug"),
        ({"implementation_type": "rag_retrieval", "config": {"top_k": 3}}, "config.pipeline_id"),
        ({"implementation_type": "rag_retrieval", "config": {"pipeline_id": "x"}}, "config.pipeline_id"),
        (
            {"implementation_type": "rag_retrieval", "config": {"pipeline_id": str(uuid4()), "top_k": 101}},
            "config.top_k",
        ),
        ({"input_schema": {"type": "objekt"}}, "input_schema.type"),
        ({"output_schema": {"properties": {"a": {"minimum": "1"}}}}, "output_schema.properties.a.minimum"),
        ({"input_schema": {"$ref": "https://example.com/schema"}}, "input_schema.$ref"),
        ({"input_schema": {"items": {"$ref": "#/$defs/none"}}}, "input_schema.items.$ref"),
        ({"input_schema": {"properties": {"a": {"pattern": "(?=a)"}}}}, "input_schema.properties.a.pattern"),
        ({"input_schema": {"patternProperties": {"a": {}}}}, "input_schema.patternProperties"),
        ({"input_schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "input_schema.$schema"),
        ({"input_schema": {"description": "x" * 32_768}}, "input_schema"),
        ({"surplus": 1}, "surplus"),
    ],
)
async def test_what_is_wrong_with_a_tool_is_told_by_field(
    kit: Kit, worker: str, changed: dict[str, Any], field: str
) -> None:
    await kit.agent("draft", publish=False)
    body = {
        "slug": "ask",
        "name": "Ask",
        "implementation_type": "agent_call",
        "config": {"target_agent_slug": "worker"},
        **changed,
    }
    problem = refused(await kit.api.post("/tools", body), 400, "invalid_request")
    assert field in [error["field"] for error in problem["errors"]], problem
    refused(await kit.api.get("/tools/ask"), 404, "not_found")


async def test_what_a_tool_is_configured_with_exists(kit: Kit) -> None:
    missing = str(uuid4())
    for config in ({"target_agent_slug": "nobody"}, {"target_agent_id": missing}):
        problem = refused(await make_tool(kit, config=config), 404, "not_found")
        assert problem["detail"].startswith(f"config.{next(iter(config))}: ")
    refused(await make_tool(kit, kind="rag_retrieval", config={"pipeline_id": missing}), 404, "not_found")


async def test_a_tool_is_not_made_on_an_inactive_pipeline(kit: Kit) -> None:
    pipeline_id = await make_pipeline(kit)
    done(await kit.api.call("PATCH", f"/retrieval/pipelines/{pipeline_id}", {"is_active": False}))
    problem = refused(
        await make_tool(kit, kind="rag_retrieval", config={"pipeline_id": pipeline_id}), 400, "invalid_request"
    )
    assert problem["errors"][0]["field"] == "config.pipeline_id"


async def test_the_registry_needs_its_scope(kit: Kit) -> None:
    token = done(await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": ["agents.execute", "runs.read"]}))[
        "token"
    ]
    api = kit.api.acting_with(token)
    for method, path in (
        ("POST", "/tools"),
        ("GET", "/tools"),
        ("GET", "/tools/ask"),
        ("PATCH", "/tools/ask"),
        ("GET", "/tools/templates"),
        ("POST", "/retrieval/pipelines"),
        ("GET", "/retrieval/pipelines"),
        ("GET", f"/retrieval/pipelines/{uuid4()}"),
        ("PATCH", f"/retrieval/pipelines/{uuid4()}"),
        ("PUT", f"/retrieval/pipelines/{uuid4()}/documents"),
        ("PUT", f"/retrieval/pipelines/{uuid4()}/documents/a"),
        ("GET", f"/retrieval/pipelines/{uuid4()}/documents/a"),
        ("DELETE", f"/retrieval/pipelines/{uuid4()}/documents/a"),
    ):
        bodies: dict[str, object] = {"PATCH": {"is_active": True}, "PUT": {"text": "a"}}
        refused(await api.call(method, path, bodies.get(method)), 403, "forbidden")
    catalog = done(await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": ["catalog.write"]}))["token"]
    body = {"caller_run_id": str(uuid4()), "input": {}}
    refused(await kit.api.acting_with(catalog).post("/tools/ask/invoke", body), 403, "forbidden")


async def test_an_admin_that_names_no_real_tenant_is_told(kit: Kit, api: Api) -> None:
    body = {"name": "p"}
    problem = refused(await api.post("/retrieval/pipelines", body, **{"X-Tenant-ID": str(uuid4())}), 404, "not_found")
    assert "tenant" in problem["detail"]


async def test_the_catalogue_is_read_only(kit: Kit) -> None:
    templates = done(await kit.api.get("/tools/templates"))["templates"]
    assert {template["implementation_type"] for template in templates} == {"agent_call", "rag_retrieval"}
    for template in templates:
        assert set(template) == {
            "name",
            "description",
            "implementation_type",
            "config_schema",
            "input_schema",
            "example",
        }
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/tools/templates", "/tools/templates/agent-call", "/tools/templates/agent-call/invoke"):
            response = await kit.api.call(method, path, {})
            refused(response, 405, "method_not_allowed")
            assert response.headers["allow"] == "GET"


async def test_nothing_is_deleted_or_replaced_by_its_slug(kit: Kit, worker: str) -> None:
    done(await make_tool(kit))
    for method in ("DELETE", "PUT", "POST"):
        refused(await kit.api.call(method, "/tools/ask", {}), 405, "method_not_allowed")


def test_every_example_of_the_catalogue_is_valid() -> None:
    for template in CATALOGUE:
        check(CONFIGS[template.implementation_type], template.example["config"], where="config")
        assert template.example["implementation_type"] == template.implementation_type


async def test_an_example_of_the_catalogue_makes_a_tool(kit: Kit) -> None:
    await kit.agent("researcher")
    (example,) = [t for t in done(await kit.api.get("/tools/templates"))["templates"] if t["name"] == "Agent call"]
    assert (await kit.api.post("/tools", example["example"])).status_code == 201
