"""What a storm finds when it begins: tenants, with two agents each."""

import threading
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson
from gevent.pool import Pool
from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook

from load.storms.client import Tenant

TENANTS_AT_ONCE = 8
# No limit stands in the way of a storm, unless it is about limits.
UNLIMITED: Mapping[str, int] = {"max_depth": 10_000, "max_fanout": 1_000_000_000, "max_children_total": 1_000_000_000}
SCOPES = ["agents.execute", "catalog.write", "policy.read", "runs.read"]


class SetupError(Exception):
    """The service refused what every storm begins with."""


class Stage:
    """Makes tenants over HTTP, with the admin's token; none of it is counted."""

    def __init__(self, host: str, admin_token: str) -> None:
        self._session = FastHttpSession(host, EventHook(), None, concurrency=TENANTS_AT_ONCE)
        self._admin_token = admin_token
        self._lock = threading.Lock()
        self._shared: dict[str, Sequence[Tenant]] = {}

    def tenant(
        self,
        name: str,
        limits: Mapping[str, int] = UNLIMITED,
        *,
        drafts: Sequence[str] = (),
        strangers: Sequence[str] = (),
    ) -> Tenant:
        """A tenant whose `orchestrator` may spawn itself and `worker` within limits.

        Of the agents beside them, `drafts` are not published, and `strangers` are not on its allowlist.
        """
        slug = f"{name.replace('_', '-')}-{uuid.uuid4().hex[:8]}"
        tenant_id = self._call("POST", "/tenants", {"slug": slug, "name": slug}, self._admin_token)["tenant_id"]
        token = self._call("POST", f"/tenants/{tenant_id}/tokens", {"scopes": SCOPES}, self._admin_token)["token"]
        agents = {}
        for agent in ("orchestrator", "worker", *drafts, *strangers):
            body = {"slug": agent, "name": agent, "kind": "external"}
            agents[agent] = self._call("POST", "/agents", body, token)["agent_id"]
            if agent not in drafts:
                self._call("POST", f"/agents/{agents[agent]}/publish", None, token)
        orchestrator = agents["orchestrator"]
        self._call("PUT", f"/agents/{orchestrator}/orchestrator-policy", dict(limits), token)
        entries = [{"target_agent_slug": agent} for agent in agents if agent not in strangers]
        self._call("PUT", f"/agents/{orchestrator}/allowlist", {"entries": entries}, token)
        return Tenant(tenant_id, token, orchestrator)

    def shared(
        self,
        name: str,
        count: int,
        limits: Mapping[str, int] = UNLIMITED,
        *,
        drafts: Sequence[str] = (),
        strangers: Sequence[str] = (),
    ) -> Sequence[Tenant]:
        """So many tenants that all users of a scenario share, made by the first that asks."""
        with self._lock:
            if name not in self._shared:
                make = partial(self.tenant, limits=limits, drafts=drafts, strangers=strangers)
                self._shared[name] = Pool(TENANTS_AT_ONCE).map(make, [name] * count)
            return self._shared[name]

    def _call(self, method: str, path: str, body: object, token: str) -> Mapping[str, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = orjson.dumps(body).decode() if body is not None else None
        response = self._session.request(method, path, data=data, headers=headers)
        if not response.status_code or not 200 <= response.status_code < 300:
            raise SetupError(
                f"{method} {path}: {response.status_code} {response.text or getattr(response, 'error', '')}"
            )
        answer: Mapping[str, Any] = orjson.loads(response.content or b"{}")
        return answer
