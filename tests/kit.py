"""What tests say of a tenant in a line or two: its agents, its policy, its runs. All of it over HTTP."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx2

ADMIN_TOKEN = "test-admin-token"
ALL_SCOPES = ["agents.execute", "catalog.write", "policy.read", "policy.write", "runs.read"]
# What the root runs of tests hold, so that they can act and hand something down.
ROOT_SCOPES = ["agents.execute", "read", "runs.read", "write"]


@dataclass(frozen=True)
class Api:
    """HTTP calls with one token."""

    client: httpx2.AsyncClient
    token: str

    def acting_with(self, token: str) -> "Api":
        return Api(self.client, token)

    async def call(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        return await self.client.request(
            method, path, json=body, headers={"Authorization": f"Bearer {self.token}", **(headers or {})}
        )

    async def get(self, path: str) -> httpx2.Response:
        return await self.call("GET", path)

    async def post(self, path: str, body: object = None, **headers: str) -> httpx2.Response:
        return await self.call("POST", path, body, headers=headers)

    async def put(self, path: str, body: object) -> httpx2.Response:
        return await self.call("PUT", path, body)


@dataclass(frozen=True)
class Run:
    """A run that a test acts as."""

    run_id: str
    token: str
    agent_id: str


@dataclass(frozen=True)
class Kit:
    """One tenant. `api` carries its token, with every scope."""

    api: Api
    admin: Api
    tenant_id: str
    slug: str

    @classmethod
    async def make(cls, admin: Api) -> Self:
        slug = f"t-{uuid.uuid4().hex[:12]}"
        tenant_id = done(await admin.post("/tenants", {"slug": slug, "name": slug}))["tenant_id"]
        token = done(await admin.post(f"/tenants/{tenant_id}/tokens", {"scopes": ALL_SCOPES}))["token"]
        return cls(admin.acting_with(token), admin, tenant_id, slug)

    async def agent(self, slug: str, *, publish: bool = True, tags: Sequence[str] = ()) -> str:
        body = {"slug": slug, "name": slug, "kind": "external", "capability_tags": list(tags)}
        agent_id: str = done(await self.api.post("/agents", body))["agent_id"]
        if publish:
            done(await self.api.post(f"/agents/{agent_id}/publish"))
        return agent_id

    async def orchestrator(self, slug: str = "orchestrator", *, may_spawn: Sequence[str] = (), **policy: Any) -> str:
        """A published agent with a policy, whose allowlist names slugs."""
        agent_id = await self.agent(slug)
        done(await self.api.put(f"/agents/{agent_id}/orchestrator-policy", policy))
        entries = [{"target_agent_slug": target} for target in may_spawn]
        done(await self.api.put(f"/agents/{agent_id}/allowlist", {"entries": entries}))
        return agent_id

    async def root(self, agent_id: str, scopes: Sequence[str] = ROOT_SCOPES, **more: object) -> Run:
        answer = done(await self.api.post(f"/agents/{agent_id}/runs", {"requested_scopes": list(scopes), **more}))
        return Run(answer["run_id"], answer["run_token"], agent_id)

    async def team(self, **policy: Any) -> tuple[Run, str]:
        """The usual beginning: a root run whose agent may spawn `worker` and itself."""
        worker = await self.agent("worker")
        orchestrator = await self.orchestrator(may_spawn=["worker", "orchestrator"], **policy)
        return await self.root(orchestrator), worker

    async def spawn(self, caller: Run | str, key: str, target: str = "worker", **more: object) -> httpx2.Response:
        """A call of spawn-run; with a `Run`, by its own token."""
        api = self.api.acting_with(caller.token) if isinstance(caller, Run) else self.api
        body = {
            "caller_run_id": caller.run_id if isinstance(caller, Run) else caller,
            "target_agent_slug": target,
            "scope_subset": ["read"],
            "idempotency_key": key,
            **more,
        }
        return await api.post("/internal/orchestration/spawn-run", body)

    async def spawn_group(self, caller: Run | str, prefix: str, size: int, **more: object) -> httpx2.Response:
        api = self.api.acting_with(caller.token) if isinstance(caller, Run) else self.api
        body = {
            "caller_run_id": caller.run_id if isinstance(caller, Run) else caller,
            "targets": [{"target_agent_slug": "worker", "mapped_input_payload": {"n": n}} for n in range(size)],
            "scope_subset": ["read"],
            "idempotency_key_prefix": prefix,
            **more,
        }
        return await api.post("/internal/orchestration/spawn-group", body)


def done(response: httpx2.Response) -> dict[str, Any]:
    """The answer of a call that succeeded."""
    assert response.is_success, f"{response.status_code} {response.text}"
    answer: dict[str, Any] = response.json()
    return answer


def refused(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem of a call that was refused as it should be."""
    assert response.status_code == status, f"{response.status_code} {response.text}"
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code, problem
    assert problem["status"] == status
    return problem


def reason_codes(problem: Mapping[str, Any]) -> list[str]:
    """The codes of a denial's reasons."""
    return [reason["code"] for reason in problem["reasons"]]
