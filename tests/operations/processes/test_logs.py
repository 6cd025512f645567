"""What the processes log: JSON that names the request, its tenant, its run and its decision, and no secret at all."""

import json
import secrets
import uuid
from typing import Any

import httpx2
import pytest

from tests.kit import Api, Kit, done
from tests.operations.processes.fleet import Fleet

pytestmark = pytest.mark.xdist_group("fleet")


async def test_at_debug_level_requests_are_named_and_neither_tokens_nor_payloads_are_told(fleet: Fleet) -> None:
    marker = f"marker-{secrets.token_hex(12)}"
    kept = {"secret": marker, "deep": [{"secret": marker}]}
    request_id = str(uuid.uuid4())
    url = fleet.apis[0].url
    assert url is not None
    async with httpx2.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        api = Api(client, fleet.secret("admin-token"))
        kit = await Kit.make(api)
        await kit.agent("worker")
        orchestrator = await kit.orchestrator(may_spawn=["worker"], max_children_total=2)
        root = await kit.root(orchestrator, input=kept)
        tokens = {root.token, kit.api.token, api.token}
        body = {
            "caller_run_id": root.run_id,
            "target_agent_slug": "worker",
            "mapped_input_payload": kept,
            "scope_subset": ["read"],
            "idempotency_key": "one",
        }
        acting = kit.api.acting_with(root.token)
        spawned = done(
            await acting.call("POST", "/internal/orchestration/spawn-run", body, headers={"X-Request-ID": request_id})
        )
        (run,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))["runs"]
        tokens.add(run["run_token"])
        finished = {"run_id": run["run_id"], "lease": run["lease"], "status": "completed", "output": kept}
        done(await kit.api.post("/work/complete", finished))
        # What goes wrong is told at greater length: denied, in conflict, malformed, unauthenticated, too large.
        denied = await acting.post(
            "/internal/orchestration/spawn-group",
            {**body, "targets": [{"target_agent_slug": "worker", "mapped_input_payload": kept}] * 3}
            | {"idempotency_key_prefix": "g"},
        )
        assert denied.status_code in {400, 403}
        denied = await kit.spawn_group(root, "three", 3)
        assert denied.status_code == 403
        conflict = await acting.post("/internal/orchestration/spawn-run", body | {"mapped_input_payload": {}})
        assert conflict.status_code == 409
        broken = await acting.post("/internal/orchestration/spawn-run", body | {"scope_subset": kept})
        assert broken.status_code == 400
        forged = f"{root.token[:-6]}{secrets.token_hex(3)}"
        tokens.add(forged)
        assert (await kit.api.acting_with(forged).get("/agents")).status_code == 401
        large = await acting.post("/internal/orchestration/spawn-run", body | {"padding": marker * 100_000})
        assert large.status_code == 413

    lines = [json.loads(line) for line in fleet.logs()["api-0.log"].splitlines() if line.startswith("{")]
    mine = [line for line in lines if line.get("request_id") == request_id]
    (request,) = [line for line in mine if line["event"] == "request"]
    assert request["tenant_id"] == kit.tenant_id
    assert request["run_id"] == root.run_id
    assert request["decision_id"] == spawned["decision_id"]
    assert request["route"] == "/internal/orchestration/spawn-run"
    assert (request["method"], request["status"]) == ("POST", 200)
    assert any(line.get("decision_id") == denied.json()["decision_id"] for line in lines)

    for name, log in fleet.logs().items():
        assert marker not in log, name
        for token in (*tokens, *(fleet.secret(secret) for secret in ("bundle-token", "opa-token", "admin-token"))):
            assert token not in log, name


def test_every_line_of_a_json_log_is_json(fleet: Fleet) -> None:
    for name, log in fleet.logs().items():
        odd = [line for line in log.splitlines() if not _is_object(line) and not _is_progress(line)]
        assert odd == [], name


def _is_object(line: str) -> bool:
    try:
        value: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict)


def _is_progress(line: str) -> bool:
    """What the command says to whoever started it."""
    return line.startswith(("remit: ", "Remit is ready", "  "))
