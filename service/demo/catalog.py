"""The demo's tenant: its agents, whom each may spawn, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from service.demo.client import Client
from service.demo.wire import Agent, Tenant, Token

TENANT_SLUG = "demo"
SPAWN_SCOPE = "agents.execute"
READ_SCOPE = "source.read"
# Held by no run of the demo: what a caller asks for beyond its own.
FOREIGN_SCOPE = "secrets.read"
_OPERATOR_SCOPES = ("agents.execute", "catalog.write", "policy.read", "runs.read")
_TOKEN_LIFE_S = 86_400
# Long enough for any directory; the demo ends its own joins.
_JOIN_TIMEOUT_S = 3_600


class Role(StrEnum):
    """The agents, by slug."""

    SURVEY = "survey"
    FOLDER = "folder-survey"
    FILE = "file-survey"
    PLANNER = "planner"
    SLOW = "slow-task"
    DRAFT = "unpublished-agent"
    OUTSIDER = "outsider"


@dataclass(frozen=True)
class Limits:
    """What an orchestrator policy allows; depth counts from the root, which is 0."""

    max_depth: int
    max_fanout: int
    max_children_total: int


# The planner's limits are small, to be run into; it may spawn just the slow runs that are to be cancelled.
SLOW_RUNS = 12
PLANNER_LIMITS = Limits(max_depth=2, max_fanout=SLOW_RUNS, max_children_total=2 * SLOW_RUNS)


@dataclass(frozen=True)
class Catalog:
    """What the set-up made; `operator_token` may act for the tenant, `worker_token` may only work."""

    tenant_id: str
    agents: dict[Role, str]
    operator_token: str
    worker_token: str
    limits: dict[Role, Limits]


def limits_for(folders: dict[str, int]) -> dict[Role, Limits]:
    """The limits that the directory needs and not one run more."""
    total = len(folders) + sum(folders.values())
    return {
        Role.SURVEY: Limits(1, max(len(folders), 1), max(total, 1)),
        Role.FOLDER: Limits(2, max(folders.values(), default=1), max(total, 1)),
        Role.PLANNER: PLANNER_LIMITS,
    }


_ALLOWLISTS: dict[Role, tuple[Role, ...]] = {
    Role.SURVEY: (Role.FOLDER,),
    Role.FOLDER: (Role.FILE,),
    Role.PLANNER: (Role.PLANNER, Role.SLOW, Role.DRAFT),
}


async def set_up(url: str, admin_token: str, folders: dict[str, int]) -> Catalog:
    """Make the tenant, its tokens and its agents, with limits computed from what is to be surveyed.

    Args:
        url: where the service listens.
        admin_token: the only one that may make tenants.
        folders: how many files each folder has.
    """
    limits = limits_for(folders)
    async with Client(url, admin_token) as admin:
        tenant = await admin.post("/tenants", {"slug": TENANT_SLUG, "name": "Source survey"}, Tenant)
        operator_token = await _issue(admin, tenant, _OPERATOR_SCOPES)
        worker_token = await _issue(admin, tenant, (SPAWN_SCOPE,))
    async with Client(url, operator_token) as operator:
        agents = {role: await _publish(operator, role) for role in Role}
        for role, limit in limits.items():
            await operator.put(
                f"/agents/{agents[role]}/orchestrator-policy",
                {
                    "max_depth": limit.max_depth,
                    "max_fanout": limit.max_fanout,
                    "max_children_total": limit.max_children_total,
                    "join_timeout_s": _JOIN_TIMEOUT_S,
                },
            )
        for role, targets in _ALLOWLISTS.items():
            entries: list[JsonValue] = [{"target_agent_slug": target} for target in targets]
            await operator.put(f"/agents/{agents[role]}/allowlist", {"entries": entries})
    return Catalog(tenant.tenant_id, agents, operator_token, worker_token, limits)


async def _issue(admin: Client, tenant: Tenant, scopes: Sequence[str]) -> str:
    body: dict[str, JsonValue] = {"scopes": list(scopes), "expires_in_s": _TOKEN_LIFE_S}
    return (await admin.post(f"/tenants/{tenant.tenant_id}/tokens", body, Token)).token


async def _publish(operator: Client, role: Role) -> str:
    body: dict[str, JsonValue] = {"slug": role, "name": role.replace("-", " ").capitalize(), "kind": "external"}
    agent = await operator.post("/agents", body, Agent)
    if role is not Role.DRAFT:
        await operator.post(f"/agents/{agent.agent_id}/publish", {}, Agent)
    return agent.agent_id
