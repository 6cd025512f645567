"""What every call has in common: who may make it, what it carries, what is refused before it does anything."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from kernel.store.engine import Database
from load.audit import audit
from service.dependencies import Services
from service.tokens import KeyRing, Tokens
from tests.kit import ADMIN_TOKEN, ALL_SCOPES, Api, Kit, Run, done, refused

SPAWN = "/internal/orchestration/spawn-run"
TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
"""
MIB = 1024 * 1024


async def rows_of(database: Database, kit: Kit) -> dict[str, int]:
    """How many rows a tenant has, by table."""
    async with database.read() as session:
        tables = [row["relname"] for row in await session.driver.fetch(TABLES)]
        return {
            table: await session.driver.fetchval(f"SELECT count(*) FROM {table} WHERE tenant_id = $1", kit.tenant_id)
            for table in tables
        }


@pytest.fixture
async def unchanged(kit: Kit, database: Database) -> AsyncIterator[Run]:
    """A root run of a team; whatever the test does, it leaves no row behind."""
    root, _ = await kit.team()
    before = await rows_of(database, kit)
    yield root
    assert await rows_of(database, kit) == before


def body_of(root: Run, **more: object) -> dict[str, object]:
    return {
        "caller_run_id": root.run_id,
        "target_agent_slug": "worker",
        "scope_subset": ["read"],
        "idempotency_key": "key",
        **more,
    }


async def send(kit: Kit, content: bytes, path: str = SPAWN, **headers: str) -> httpx2.Response:
    """A body as it is, with the tenant's token."""
    return await kit.api.client.post(
        path,
        content=content,
        headers={"Authorization": f"Bearer {kit.api.token}", "Content-Type": "application/json", **headers},
    )


# ---------------------------------------------------------------------------------------------------- who may call


def forged(services: Services, kit: Kit, directory: Path, kind: str) -> str:  # noqa: PLR0911 - one kind a return
    """A token that must not pass."""
    scopes = ["agents.execute"]
    tenant_id = uuid.UUID(kit.tenant_id)
    good = services.tokens.issue_tenant(tenant_id, scopes, ["*"], 3600).token
    head, claims, signature = good.split(".")
    match kind:
        case "expired":
            return services.tokens.issue_tenant(tenant_id, scopes, ["*"], -60).token
        case "foreign key":
            foreign = Tokens(KeyRing(directory), admin_token="x", run_token_ttl_s=60)
            return foreign.issue_tenant(tenant_id, scopes, ["*"], 3600).token
        case "foreign key under our kid":
            ring = KeyRing(directory)
            ring.signing_kid = jwt.get_unverified_header(good)["kid"]
            foreign = Tokens(ring, admin_token="x", run_token_ttl_s=60)
            return foreign.issue_tenant(tenant_id, scopes, ["*"], 3600).token
        case "altered claims":
            changed = jwt.decode(good, options={"verify_signature": False}) | {"ten": str(uuid.uuid4())}
            other = jwt.encode(changed, "0" * 64, algorithm="HS256").split(".")[1]
            return f"{head}.{other}.{signature}"
        case "altered signature":
            return f"{head}.{claims}.{'A' * len(signature)}"
        case "unsigned":
            changed = jwt.decode(good, options={"verify_signature": False})
            return jwt.encode(changed, "", algorithm="none", headers=jwt.get_unverified_header(good) | {"alg": "none"})
        case "signed with the public key":
            kid = jwt.get_unverified_header(good)["kid"]
            changed = jwt.decode(good, options={"verify_signature": False})
            return jwt.encode(changed, kid.encode() * 4, algorithm="HS256", headers={"kid": kid})
        case "nearly the admin's":
            return ADMIN_TOKEN + "x"
        case "not ASCII":
            return "tökén"
        case _:
            return kind


@pytest.mark.parametrize(
    "kind",
    [
        *("expired", "foreign key", "foreign key under our kid", "altered claims", "altered signature", "unsigned"),
        *("signed with the public key", "nearly the admin's", "not ASCII", "nonsense", "a.b.c"),
    ],
)
async def test_a_token_that_does_not_verify_is_401(
    kit: Kit, services: Services, unchanged: Run, tmp_path: Path, kind: str
) -> None:
    header = f"Bearer {forged(services, kit, tmp_path, kind)}".encode()
    for method, path in (("POST", SPAWN), ("GET", "/agents"), ("POST", f"/agents/{unchanged.agent_id}/runs")):
        answer = await kit.api.client.request(
            method, path, json=body_of(unchanged) if method == "POST" else None, headers={b"Authorization": header}
        )
        refused(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic dTpw", "Token x"])
async def test_a_call_without_a_bearer_token_is_401(kit: Kit, unchanged: Run, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    refused(await kit.api.client.post(SPAWN, json=body_of(unchanged), headers=headers), 401, "unauthenticated")


async def test_a_token_ends_when_it_expires_however_often_it_was_used(kit: Kit, services: Services) -> None:
    issued = services.tokens.issue_tenant(uuid.UUID(kit.tenant_id), ["catalog.write"], ["*"], 5)
    api = kit.api.acting_with(issued.token)
    assert (await api.get("/agents")).status_code == 200
    deadline = issued.expires_at + timedelta(seconds=30)
    while (answer := await api.get("/agents")).status_code == 200:
        assert datetime.now(UTC) < deadline
        await asyncio.sleep(0.2)  # time itself is awaited
    refused(answer, 401, "unauthenticated")
    assert datetime.now(UTC) >= issued.expires_at


def routes(root: Run, kit: Kit) -> dict[str, tuple[str, str, object, set[str]]]:
    """Calls, by name, with the scopes of which one is enough."""
    policy = {"max_depth": 1}
    return {
        "spawn": ("POST", SPAWN, body_of(root), {"agents.execute"}),
        "start": ("POST", f"/agents/{root.agent_id}/runs", {"requested_scopes": []}, {"agents.execute"}),
        "report": ("POST", f"/agents/runs/{root.run_id}/status", {"status": "paused"}, {"agents.execute"}),
        "claim": ("POST", "/work/claim", {"agent_slugs": ["worker"]}, {"agents.execute"}),
        "agents": ("GET", "/agents", None, {"catalog.write"}),
        "agent": ("POST", "/agents", {"slug": "new", "name": "new", "kind": "external"}, {"catalog.write"}),
        "publish": ("POST", f"/agents/{root.agent_id}/publish", None, {"catalog.write"}),
        "policy": ("PUT", f"/agents/{root.agent_id}/orchestrator-policy", policy, {"catalog.write"}),
        "allowlist": ("PUT", f"/agents/{root.agent_id}/allowlist", {"entries": []}, {"catalog.write"}),
        "flags": ("PUT", f"/tenants/{kit.tenant_id}/flags", {}, {"policy.write"}),
    }


# Those that name something of a tenant's by its id.
NAMING = ("spawn", "start", "report", "publish", "policy", "allowlist", "flags")
ROUTES = ("spawn", "start", "report", "claim", "agents", "agent", "publish", "policy", "allowlist", "flags")


@pytest.mark.parametrize("name", ROUTES)
async def test_a_tenants_token_without_the_scope_is_403(kit: Kit, unchanged: Run, name: str) -> None:
    method, path, body, enough = routes(unchanged, kit)[name]
    for scope in sorted(set(ALL_SCOPES) - enough):
        token = done(await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": [scope]}))["token"]
        problem = refused(await kit.api.acting_with(token).call(method, path, body), 403, "forbidden")
        assert set(problem["required"]) == enough


@pytest.mark.parametrize("name", NAMING)
async def test_another_tenants_things_do_not_exist(kit: Kit, unchanged: Run, name: str) -> None:
    method, path, body, _ = routes(unchanged, kit)[name]
    stranger = await Kit.make(kit.admin)
    refused(await stranger.api.call(method, path, body), 404, "not_found")


async def test_a_tenants_token_makes_no_tenants_and_no_tokens(kit: Kit, unchanged: Run) -> None:
    refused(await kit.api.post("/tenants", {"slug": "t-other", "name": "x"}), 403, "forbidden")
    refused(await kit.api.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": ["runs.read"]}), 403, "forbidden")
    # Who may not is not told what is wrong with the body.
    for path in ("/tenants", f"/tenants/{kit.tenant_id}/tokens"):
        refused(await kit.api.post(path, {"unheard_of": 1}), 403, "forbidden")


async def test_a_tenants_bound_is_a_number_that_can_be_kept(kit: Kit) -> None:
    path = f"/tenants/{kit.tenant_id}"
    for bound in (0, -1, 2**63, 10**19, 10**30):
        problem = refused(await kit.admin.call("PATCH", path, {"max_active_runs": bound}), 400, "invalid_request")
        assert problem["errors"][0]["field"] == "max_active_runs"
    for kept in (2**63 - 1, None):
        assert done(await kit.admin.call("PATCH", path, {"max_active_runs": kept}))["max_active_runs"] == kept


async def test_a_tenants_token_names_no_other_tenant(kit: Kit, unchanged: Run) -> None:
    header = {"X-Tenant-ID": str(uuid.uuid4())}
    refused(await kit.api.call("GET", "/agents", headers=header), 400, "invalid_request")
    assert (await kit.api.call("GET", "/agents", headers={"X-Tenant-ID": kit.tenant_id})).status_code == 200


async def test_the_admin_names_the_tenant(kit: Kit, unchanged: Run) -> None:
    refused(await kit.admin.get("/agents"), 403, "forbidden")
    found = done(await kit.admin.call("GET", "/agents", headers={"X-Tenant-ID": kit.tenant_id}))
    assert unchanged.agent_id in {agent["agent_id"] for agent in found["items"]}


async def test_a_runs_token_reaches_no_further_than_its_run(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    other = await kit.root(root.agent_id)
    child = done(await kit.spawn(root, "child", start_background=False, scope_subset=["agents.execute"]))
    (child_id,) = child["spawned_run_ids"]
    before = await rows_of(database, kit)
    own = kit.api.acting_with(child["run_tokens"][child_id])
    for beyond in (root.run_id, other.run_id):
        refused(await own.post(SPAWN, body_of(root) | {"caller_run_id": beyond}), 403, "forbidden")
        answer = await own.post(f"/agents/runs/{beyond}/status", {"status": "completed"})
        assert answer.status_code in {403, 404}, answer.text
    refused(await own.post(f"/agents/{root.agent_id}/runs", {"requested_scopes": []}), 403, "forbidden")
    for path in ("/agents", f"/agents/{root.agent_id}"):
        refused(await own.get(path), 403, "forbidden")
    refused(await own.post("/work/claim", {"agent_slugs": ["worker"]}), 403, "forbidden")
    assert await rows_of(database, kit) == before


async def test_a_run_that_holds_every_scope_does_not_write_its_own_remit(kit: Kit, database: Database) -> None:
    scoped = done(await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", {"scopes": ["agents.execute"]}))["token"]
    agent_id = await kit.orchestrator()
    pipeline_id = done(await kit.api.post("/retrieval/pipelines", {"name": "kept"}))["pipeline_id"]
    # What the token may not do itself, it may not have done by a run that it starts.
    started = await kit.api.acting_with(scoped).post(f"/agents/{agent_id}/runs", {"requested_scopes": ALL_SCOPES})
    own = kit.api.acting_with(done(started)["run_token"])
    before = await rows_of(database, kit)
    tool = {"slug": "t", "name": "t", "implementation_type": "rag_retrieval", "config": {"pipeline_id": pipeline_id}}
    for method, path, body in (
        ("GET", "/agents", None),
        ("POST", "/agents", {"slug": "new", "name": "new", "kind": "external"}),
        ("PATCH", f"/agents/{agent_id}", {"name": "other"}),
        ("POST", f"/agents/{agent_id}/unpublish", None),
        ("PUT", f"/agents/{agent_id}/orchestrator-policy", {"max_fanout": 1000}),
        ("PUT", f"/agents/{agent_id}/allowlist", {"entries": [{"target_agent_slug": "orchestrator"}]}),
        ("PUT", f"/tenants/{kit.tenant_id}/flags", {"option_b_runtime_primitives": False}),
        ("GET", "/tools", None),
        ("POST", "/tools", tool),
        ("POST", "/retrieval/pipelines", {"name": "new"}),
        ("PATCH", f"/retrieval/pipelines/{pipeline_id}", {"is_active": False}),
        ("GET", "/policies/decisions", None),
    ):
        refused(await own.call(method, path, body), 403, "forbidden")
    assert await rows_of(database, kit) == before
    # Documents are what runs are there for, if they hold the scope.
    done(await own.put(f"/retrieval/pipelines/{pipeline_id}/documents/d", {"text": "kept by a run"}))


async def test_a_run_without_the_scope_to_act_does_not_act(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    child = done(await kit.spawn(root, "child", start_background=False, scope_subset=["read"]))
    (child_id,) = child["spawned_run_ids"]
    before = await rows_of(database, kit)
    own = kit.api.acting_with(child["run_tokens"][child_id])
    refused(await own.post(SPAWN, body_of(root) | {"caller_run_id": child_id}), 403, "forbidden")
    refused(await own.post(f"/agents/runs/{child_id}/status", {"status": "completed"}), 403, "forbidden")
    assert await rows_of(database, kit) == before


# ---------------------------------------------------------------------------------------------- what answers carry


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/agents", 200), ("/nowhere", 404), ("/agents/nonsense", 400)]
)
async def test_a_request_id_is_given_back(kit: Kit, path: str, status: int) -> None:
    answer = await kit.api.call("GET", path, headers={"X-Request-ID": "mine-1"})
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, "mine-1")
    assert len(answer.headers["X-Trace-ID"]) == 32


@pytest.mark.parametrize("given", [None, "", "x" * 129, "br\xf6ken", "tab\there"])
async def test_a_request_id_that_cannot_be_given_back_is_replaced(kit: Kit, given: str | None) -> None:
    headers: Mapping[Any, Any] = {} if given is None else {b"X-Request-ID": given.encode("latin-1")}
    answers = [await kit.api.client.get("/livez", headers=headers) for _ in range(2)]
    first, second = (answer.headers["X-Request-ID"] for answer in answers)
    assert first != second
    assert uuid.UUID(first).version == 7


async def test_the_trace_of_the_caller_is_gone_on_with(kit: Kit) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert (await kit.api.client.get("/livez", headers=headers)).headers["X-Trace-ID"] == trace
    for malformed in ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", "nonsense", "00-xyz-1-01"):
        answer = await kit.api.client.get("/livez", headers={"traceparent": malformed})
        assert len(bytes.fromhex(answer.headers["X-Trace-ID"])) == 16
        assert answer.headers["X-Trace-ID"] != trace


# ------------------------------------------------------------------------------------------- what is not even tried


async def test_a_body_that_is_too_large_is_413_whatever_length_it_claims(kit: Kit, unchanged: Run) -> None:
    content = json.dumps(body_of(unchanged, mapped_input_payload={"x": "y" * MIB})).encode()
    problem = refused(await send(kit, content), 413, "payload_too_large")
    assert problem["limit"] == MIB

    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(content), 65_536):
            yield content[begin : begin + 65_536]

    answer = await kit.api.client.post(
        SPAWN,
        content=chunks(),
        headers={"Authorization": f"Bearer {kit.api.token}", "Content-Type": "application/json"},
    )
    assert "content-length" not in answer.request.headers
    refused(answer, 413, "payload_too_large")
    assert answer.headers["X-Request-ID"]


async def test_a_body_just_within_the_limit_is_taken(kit: Kit) -> None:
    root, _ = await kit.team()
    frame = len(json.dumps(body_of(root, mapped_input_payload={"x": ""})).encode())
    content = json.dumps(body_of(root, mapped_input_payload={"x": "y" * (MIB - frame)})).encode()
    assert len(content) == MIB
    done(await send(kit, content))


def spoilt(root: Run) -> dict[str, bytes]:
    """Bodies that are no requests."""
    whole = json.dumps(body_of(root)).encode()
    nested = b"[" * 100_000 + b"]" * 100_000
    return {
        "bad UTF-8": whole.replace(b'"key"', b'"\xff\xfe"'),
        "a lone surrogate": whole.replace(b'"key"', b'"\\ud800"'),
        "NaN": whole[:-1] + b', "timeout_s": NaN}',
        "infinity": whole[:-1] + b', "timeout_s": Infinity}',
        "a number beyond all": whole[:-1] + b', "timeout_s": 1e999}',
        "a number beyond integers": whole[:-1] + b', "timeout_s": 100000000000000000000000}',
        "a fraction": whole[:-1] + b', "timeout_s": 1.5}',
        "nested too deep": whole[:-1] + b', "mapped_input_payload": {"x": ' + nested + b"}}",
        "a NUL in a key": json.dumps(body_of(root, idempotency_key="a\0b")).encode(),
        "a NUL in a payload": json.dumps(body_of(root, mapped_input_payload={"a": ["\0"]})).encode(),
        "a NUL in a name": json.dumps(body_of(root, mapped_input_payload={"\0": 1})).encode(),
        "an unknown field": json.dumps(body_of(root, unheard_of=1)).encode(),
        "a target twice": json.dumps(body_of(root, target_agent_id=root.agent_id)).encode(),
        "no object": b"[]",
        "nothing": b"",
        "null": b"null",
        "half": whole[: len(whole) // 2],
        "two": whole + whole,
        "a mark before it": b"\xef\xbb\xbf" + whole,
    }


@pytest.mark.parametrize("name", list(spoilt(Run("", "", ""))))
async def test_a_spoilt_body_is_400_and_nothing_happens(kit: Kit, unchanged: Run, name: str) -> None:
    problem = refused(await send(kit, spoilt(unchanged)[name]), 400, "invalid_request")
    assert problem["errors"]
    assert problem["detail"]
    assert "Value error" not in problem["detail"]


async def test_what_is_no_json_is_told_with_its_place(kit: Kit, unchanged: Run) -> None:
    problem = refused(await send(kit, b'{"a": nothing}'), 400, "invalid_request")
    (finding,) = problem["errors"]
    assert finding["field"] == "body"
    assert finding["message"].startswith("the body is not valid JSON: ")
    assert finding["message"].endswith(" at character 6")
    answer = await send(kit, json.dumps(body_of(unchanged)).encode(), **{"Content-Type": "text/plain"})
    assert refused(answer, 400, "invalid_request")["detail"] == "body: Content-Type must be application/json"


async def test_a_field_that_is_there_twice_is_not_taken_both_ways(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    twice = json.dumps(body_of(root)).encode()[:-1] + b', "idempotency_key": "other"}'
    answer = await send(kit, twice)
    # JSON leaves it open which of the two counts; what must not be is that both do.
    if answer.status_code == 200:
        assert done(answer)["lineage"]["spawn_key"] in {"key", "other"}
    else:
        refused(answer, 400, "invalid_request")
    async with database.read() as session:
        assert await audit(session.driver, tenant_id=kit.tenant_id) == []


def nested(levels: int) -> dict[str, object]:
    payload: object = "innermost"
    for level in range(levels):
        payload = {"x": payload} if level % 2 else [payload]
    return payload if isinstance(payload, dict) else {"x": payload}


async def test_a_deep_payload_that_is_taken_comes_out_again(kit: Kit) -> None:
    root, _ = await kit.team()
    deepest = nested(200)
    done(await kit.spawn(root, "deep", mapped_input_payload=deepest))
    target = {"target_agent_slug": "worker", "mapped_input_payload": deepest}
    done(await kit.spawn_group(root, "deep", 0, targets=[target]))
    done(await kit.api.post(f"/agents/{root.agent_id}/runs", {"requested_scopes": [], "input": deepest}))
    runs = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 2}))["runs"]
    assert [run["input"]["x"] for run in runs] == [deepest["x"]] * 2
    (first, _) = runs
    body = {"run_id": first["run_id"], "lease": first["lease"], "status": "completed", "output": deepest}
    done(await kit.api.post("/work/complete", body))
    assert done(await kit.api.get(f"/agents/runs/{first['run_id']}"))["output"] == deepest


@pytest.mark.parametrize("levels", [201, 254, 900])
async def test_a_payload_too_deep_to_be_handed_out_is_not_taken(kit: Kit, unchanged: Run, levels: int) -> None:
    answer = await send(kit, json.dumps(body_of(unchanged, mapped_input_payload=nested(levels))).encode())
    problem = refused(answer, 400, "invalid_request")
    assert problem["errors"][0]["field"] == "mapped_input_payload"
    assert "200 levels" in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/agents/nonsense"),
        ("POST", "/agents/00000000-0000-0000-0000/runs"),
        ("POST", "/agents/runs/nonsense/status"),
        ("GET", "/tenants/%00/flags"),
    ],
)
async def test_a_malformed_id_in_the_path_is_400(kit: Kit, unchanged: Run, method: str, path: str) -> None:
    body = {"requested_scopes": [], "status": "running"} if method == "POST" else None
    refused(await kit.api.call(method, path, body), 400, "invalid_request")


@pytest.mark.parametrize(
    "path", ["/nowhere", "/agents/x/y/z", "/internal/orchestration/no-such-thing", "//", "/%2e%2e"]
)
async def test_an_unknown_path_is_404(kit: Kit, unchanged: Run, path: str) -> None:
    for method in ("GET", "POST"):
        problem = refused(await kit.api.call(method, path), 404, "not_found")
        assert problem["detail"].startswith("there is no route to /")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/agents", "GET, POST"),
        ("GET", SPAWN, "POST"),
        ("PUT", "/livez", "GET"),
        ("PUT", "/tools/ask", "GET, PATCH"),
        ("POST", "/retrieval/pipelines/none/documents/a/b", "DELETE, GET, PUT"),
        ("DELETE", "/tools/templates", "GET"),
        ("POST", "/docs", "GET"),
    ],
)
async def test_a_method_that_is_not_there_is_405(
    kit: Kit, unchanged: Run, method: str, path: str, allowed: str
) -> None:
    answer = await kit.api.call(method, path)
    refused(answer, 405, "method_not_allowed")
    assert ", ".join(sorted(answer.headers["Allow"].split(", "))) == allowed


# ------------------------------------------------------------------------------------------------------- documents


async def test_the_documentation_needs_no_other_server(api: Api) -> None:
    page = (await api.get("/docs")).text
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(path.endswith(".js") for path in needed)
    assert any(path.endswith(".css") for path in needed)
    for path in needed:
        assert path.startswith("/")
        assert (await api.get(path)).status_code == 200


async def test_every_operation_declares_its_refusals(api: Api) -> None:
    document = done(await api.get("/openapi.json"))
    assert len(document["paths"]) > 10
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses: dict[str, dict[str, Any]] = operation["responses"]
            errors = {status for status in responses if status[0] in "45"}
            expected = (
                {"400", "500", "503"} if path in {"/livez", "/readyz", "/metrics"} else {"400", "401", "403", "404"}
            )
            assert expected <= errors, f"{method} {path}"
            if method != "get":
                assert {"409", "413"} <= errors, f"{method} {path}"
            for status in errors:
                assert "application/problem+json" in responses[status]["content"], f"{method} {path} {status}"
    not_ready = document["paths"]["/readyz"]["get"]["responses"]["503"]["content"]["application/json"]
    assert not_ready["schema"]["$ref"].endswith("/Readiness")
    assert "text/plain" in document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert {"type", "title", "status", "detail", "code"} <= set(
        document["components"]["schemas"]["Problem"]["required"]
    )


# ----------------------------------------------------------------------------------------------- starting root runs


async def test_a_root_run_started_sixteen_times_with_one_key_is_one_run(kit: Kit, database: Database) -> None:
    agent_id = await kit.orchestrator()
    body = {"requested_scopes": ["read"], "input": {"n": 1}, "idempotency_key": "once"}
    path = f"/agents/{agent_id}/runs"
    answers = await asyncio.gather(*(kit.api.post(path, body) for _ in range(16)))
    started = [done(answer) for answer in answers]
    assert len({answer["run_id"] for answer in started}) == 1
    assert sum(not answer["idempotent"] for answer in started) == 1
    for answer, content in zip(answers, started, strict=True):
        assert ("X-Idempotency-Reused" in answer.headers) is content["idempotent"]
    rows = await rows_of(database, kit)
    assert (rows["agent_runs"], rows["run_trees"], rows["root_run_keys"], rows["run_events"]) == (1, 1, 1, 1)
    problem = refused(await kit.api.post(path, body | {"input": {"n": 2}}), 409, "spawn_key_conflict")
    assert problem["fields"] == ["input"]
    other = await kit.orchestrator("other")
    assert done(await kit.api.post(f"/agents/{other}/runs", body))["run_id"] != started[0]["run_id"]
    async with database.read() as session:
        assert await audit(session.driver, tenant_id=kit.tenant_id) == []


async def test_a_refused_root_run_takes_no_key(kit: Kit) -> None:
    agent_id = await kit.agent("draft", publish=False)
    body = {"requested_scopes": [], "idempotency_key": "once"}
    refused(await kit.api.post(f"/agents/{agent_id}/runs", body), 403, "policy_denied")
    done(await kit.api.post(f"/agents/{agent_id}/publish"))
    assert done(await kit.api.post(f"/agents/{agent_id}/runs", body))["idempotent"] is False


async def test_many_refusals_cost_little(kit: Kit, unchanged: Run) -> None:
    """A client that has gone wild is answered, all of it, and the service stays itself."""
    began = time.monotonic()
    answers = await asyncio.gather(*(send(kit, b"{") for _ in range(200)))
    assert {answer.status_code for answer in answers} == {400}
    assert time.monotonic() - began < 60
    assert (await kit.api.get("/livez")).status_code == 200
