"""A busy route answers alike, whether its handler is called directly or by way of FastAPI."""

from typing import Any

import httpx2
import pytest

from service import direct_route
from service.routers import cancellations, join, replan, spawning, work
from tests.kit import Kit, refused

DIRECT = [
    "/internal/orchestration/spawn-run",
    "/internal/orchestration/spawn-group",
    "/internal/orchestration/join",
    "/internal/orchestration/cancel-subtree",
    "/internal/orchestration/evaluate-and-replan",
    "/work/claim",
    "/work/heartbeat",
    "/work/complete",
]


async def _order(kit: Kit) -> dict[str, Any]:
    await kit.agent("worker")
    root = await kit.root(await kit.orchestrator(may_spawn=["worker"]))
    return {
        "caller_run_id": root.run_id,
        "target_agent_slug": "worker",
        "scope_subset": ["read"],
        "idempotency_key": "one",
    }


async def _post(kit: Kit, content: bytes, content_type: str, *, query: str = "", token: str = "") -> httpx2.Response:
    return await kit.api.client.post(
        "/internal/orchestration/spawn-run" + query,
        content=content,
        headers={"Content-Type": content_type, "Authorization": f"Bearer {token or kit.api.token}"},
    )


def test_the_busiest_routes_are_direct() -> None:
    routes = [
        route
        for resource in (spawning, join, cancellations, replan, work)
        for route in resource.router.routes
        if isinstance(route, direct_route.DirectRoute)
    ]
    planned = {route.path for route in routes if direct_route.plan_of(route) is not None}
    assert planned >= set(DIRECT)


@pytest.mark.parametrize(
    "body",
    [
        {"target_agent_slug": None},
        {"idempotency_key": ""},
        {"scope_subset": "read"},
        {"unknown": 1},
        {"caller_run_id": "no id"},
        {"start_background": "perhaps"},
        {"mapped_input_payload": []},
    ],
    ids=lambda body: next(iter(body)),
)
async def test_what_is_not_valid_is_told_alike(kit: Kit, body: dict[str, Any]) -> None:
    order = await _order(kit) | body
    direct = await kit.api.post("/internal/orchestration/spawn-run", order)
    usual = await kit.api.call("POST", "/internal/orchestration/spawn-run?dry_run=0", order)
    assert direct.status_code == usual.status_code == 400
    assert direct.json() == usual.json()


async def test_the_same_order_by_both_ways_is_one_run(kit: Kit) -> None:
    order = await _order(kit)
    direct = await kit.api.post("/internal/orchestration/spawn-run", order)
    usual = await kit.api.post("/internal/orchestration/spawn-run?dry_run=0", order)
    assert direct.status_code == usual.status_code == 200
    assert direct.json()["spawned_run_ids"] == usual.json()["spawned_run_ids"]
    assert (direct.json()["idempotent"], usual.json()["idempotent"]) == (False, True)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b"\xff", b"[]", b"null", b'"text"'])
async def test_a_body_that_is_no_object_is_refused(kit: Kit, content: bytes) -> None:
    direct = await _post(kit, content, "application/json")
    usual = await _post(kit, content, "application/json", query="?dry_run=1")
    assert direct.status_code == usual.status_code == 400
    assert direct.json() == usual.json()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_refused(kit: Kit, content_type: str) -> None:
    problem = refused(await _post(kit, b"{}", content_type), 400, "invalid_request")
    assert "Content-Type" in problem["detail"]


async def test_a_body_that_is_no_json_is_said_to_be_none_and_where(kit: Kit) -> None:
    problem = refused(await _post(kit, b'{"a": x}', "application/json"), 400, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == ["body"]
    assert "at character 6" in problem["detail"]


async def test_who_is_calling_comes_before_what_is_wrong_with_the_body(kit: Kit) -> None:
    reader = await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": ["runs.read"]})
    for token, status in (("nobody", 401), (reader.json()["token"], 403)):
        for query in ("", "?dry_run=true", "?dry_run=1"):
            for content in (b"{}", b"{", b"[]"):
                assert (await _post(kit, content, "application/json", query=query, token=token)).status_code == status
    headers = {"Authorization": "Bearer nobody", "Content-Type": "application/json"}
    for path in ("/agents", "/tenants", "/tools/ask/invoke"):
        assert (await kit.api.client.post(path, content=b"{", headers=headers)).status_code == 401
