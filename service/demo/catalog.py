"""The demo's tenant: its agents, whom each may spawn, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from service.demo.archive import QUESTIONS
from service.demo.cast import KEEP_SCOPE, SPAWN_SCOPE, Role, Tool
from service.demo.client import Client
from service.demo.graph import survey_graph
from service.demo.wire import Agent, MadeTool, Pipeline, Tenant, Token

TENANT_SLUG = "demo"
_OPERATOR_SCOPES = ("agents.execute", "catalog.write", "policy.read", "runs.read")
_TOKEN_LIFE_S = 86_400
# Long enough for any directory; the demo ends its own joins.
_JOIN_TIMEOUT_S = 3_600
# How long an agent may take to keep the report, or to answer a question about it.
TOOL_TIMEOUT_S = 300
LARGEST_ANSWER = 100
# A document of the report is one piece.
_CHUNK = {"size": 4_000, "overlap": 0}


@dataclass(frozen=True)
class Limits:
    """What an orchestrator policy allows; depth counts from the root, which is 0."""

    max_depth: int
    max_fanout: int
    max_children_total: int


# The planner's limits are small, to be run into; it may spawn just the slow runs that are to be cancelled.
SLOW_RUNS = 12
PLANNER_LIMITS = Limits(max_depth=2, max_fanout=SLOW_RUNS, max_children_total=2 * SLOW_RUNS)


# One to keep the report, and one for each question.
TOOL_RUNS = 1 + len(QUESTIONS)


@dataclass(frozen=True)
class Catalog:
    """What the set-up made; `operator_token` may act for the tenant, `worker_token` may only work."""

    tenant_id: str
    agents: dict[Role, str]
    pipeline_id: str
    operator_token: str
    worker_token: str
    limits: dict[Role, Limits]


def limits_for(folders: dict[str, int]) -> dict[Role, Limits]:
    """The limits that the directory needs and not one run more; each question about the report is a child, too."""
    total = len(folders) + sum(folders.values())
    return {
        Role.SURVEY: Limits(1, len(folders) + TOOL_RUNS, total + TOOL_RUNS),
        Role.FOLDER: Limits(2, max(folders.values(), default=1), max(total, 1)),
        Role.PLANNER: PLANNER_LIMITS,
    }


_ALLOWLISTS: dict[Role, tuple[Role, ...]] = {
    Role.SURVEY: (Role.FOLDER, Role.LIBRARIAN, Role.ANALYST),
    Role.FOLDER: (Role.FILE,),
    Role.PLANNER: (Role.PLANNER, Role.SLOW, Role.DRAFT),
}


async def set_up(url: str, admin_token: str, folders: dict[str, int], *, as_graph: bool = False) -> Catalog:
    """Make the tenant, its tokens, agents and tools, with limits computed from what is to be surveyed.

    Args:
        url: where the service listens.
        admin_token: the only one that may make tenants.
        folders: how many files each folder has.
        as_graph: whether the survey is a graph, rather than an agent that calls the primitives.
    """
    limits = limits_for(folders)
    async with Client(url, admin_token) as admin:
        tenant = await admin.post("/tenants", {"slug": TENANT_SLUG, "name": "Source survey"}, Tenant)
        operator_token = await _issue(admin, tenant, _OPERATOR_SCOPES)
        worker_token = await _issue(admin, tenant, (SPAWN_SCOPE,))
    async with Client(url, operator_token) as operator:
        pipeline = await operator.post(
            "/retrieval/pipelines", {"name": "Survey reports", "chunk": dict(_CHUNK)}, Pipeline
        )
        graphs = {Role.SURVEY: survey_graph(pipeline.pipeline_id)} if as_graph else {}
        agents = {role: await _make(operator, role, graphs.get(role)) for role in Role}
        await _permit(operator, agents, limits)
        # A tool calls what is published; a graph is compiled when it is published, against the policy that it has.
        for role in Role:
            if role not in {Role.DRAFT, Role.SURVEY}:
                await _publish(operator, agents[role])
        await _make_tools(operator, pipeline.pipeline_id)
        await _publish(operator, agents[Role.SURVEY])
    return Catalog(tenant.tenant_id, agents, pipeline.pipeline_id, operator_token, worker_token, limits)


async def _issue(admin: Client, tenant: Tenant, scopes: Sequence[str]) -> str:
    body: dict[str, JsonValue] = {"scopes": list(scopes), "expires_in_s": _TOKEN_LIFE_S}
    return (await admin.post(f"/tenants/{tenant.tenant_id}/tokens", body, Token)).token


async def _make(operator: Client, role: Role, graph: JsonValue) -> str:
    body: dict[str, JsonValue] = {"slug": role, "name": role.replace("-", " ").capitalize(), "kind": "external"}
    if graph is not None:
        body |= {"kind": "graph", "graph_definition": graph}
    return (await operator.post("/agents", body, Agent)).agent_id


async def _publish(operator: Client, agent_id: str) -> None:
    await operator.post(f"/agents/{agent_id}/publish", {}, Agent)


async def _permit(operator: Client, agents: dict[Role, str], limits: dict[Role, Limits]) -> None:
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


async def _make_tools(operator: Client, pipeline_id: str) -> None:
    """Each agent that is called gets the one scope that its task needs, and not what else its caller holds."""
    for tool, role, scope in ((Tool.KEEP, Role.LIBRARIAN, KEEP_SCOPE), (Tool.ASK, Role.ANALYST, SPAWN_SCOPE)):
        calling: dict[str, JsonValue] = {
            "target_agent_slug": role,
            "scope_subset": [scope],
            "execution": {"timeout_s": TOOL_TIMEOUT_S},
        }
        await _make_tool(operator, tool, "agent_call", calling)
    await _make_tool(operator, Tool.SEARCH, "rag_retrieval", {"pipeline_id": pipeline_id, "top_k": LARGEST_ANSWER})


async def _make_tool(operator: Client, tool: Tool, kind: str, config: dict[str, JsonValue]) -> None:
    name = tool.replace("-", " ").capitalize()
    body: dict[str, JsonValue] = {"slug": tool, "name": name, "implementation_type": kind, "config": config}
    await operator.post("/tools", body, MadeTool)
