"""Agents, what their runs may spawn, and whom."""

from typing import Annotated, Literal, Self
from uuid import UUID

from fastapi import Query
from pydantic import Field, model_validator

from kernel.commands.catalog import Agents, AllowlistEntry, Row
from kernel.commands.revise_agent import ReviseAgentCommand
from kernel.domain.errors import InvalidRequestError
from kernel.domain.joins import FailurePolicy
from kernel.domain.principal import Principal
from service.dependencies import CatalogDep, Services, ServicesDep
from service.wire import Answer, Body, Json, JsonObject, Limit, Name, Scopes, Seconds, Slug, Text, make_router

router = make_router("agents")

Tag = Annotated[Text, Field(min_length=1, max_length=100)]
Tags = Annotated[tuple[Tag, ...], Field(max_length=64)]


class NewAgent(Body):
    """An agent to be made: `external` ones are executed by runtimes that claim their runs, `graph` ones by Remit."""

    slug: Slug
    name: Name
    kind: Literal["external", "graph"]
    capability_tags: Tags = ()
    graph_definition: JsonObject | None = None

    @model_validator(mode="after")
    def _only_graphs_have_graphs(self) -> Self:
        if self.kind == "external" and self.graph_definition is not None:
            raise ValueError("graph_definition belongs to agents of kind graph")
        return self


class AgentChange(Body):
    """What to change; what is absent stays."""

    name: Name | None = None
    capability_tags: Tags | None = None
    graph_definition: JsonObject | None = None


class AgentAnswer(Answer):
    """An agent; `revision` is raised by every change that a spawn's permission may rest on."""

    agent_id: UUID
    slug: str
    name: str
    kind: str
    status: str
    capability_tags: list[str]
    graph_definition: dict[str, object] | None
    revision: int
    created_at: str
    updated_at: str


class AgentPage(Answer):
    """A page of agents; `next_cursor` goes on after it, null at the end."""

    items: list[AgentAnswer]
    next_cursor: str | None


class OrchestratorPolicy(Body):
    """What an agent's runs may do as orchestrators. The defaults hold where no policy is stored or it is inactive."""

    max_depth: Limit = 3
    max_fanout: Limit = 8
    max_children_total: Limit = 32
    join_timeout_s: Seconds = 60
    default_failure_policy: FailurePolicy = FailurePolicy.BEST_EFFORT
    enforce_published_only: bool = True
    allowed_scope_subset: Scopes = ()
    parent_close_policy: Literal["continue", "cancel"] = "continue"
    is_active: bool = True


class Entry(Body):
    """One entry of an allowlist: by id, by slug, or by capability tag."""

    target_agent_id: UUID | None = None
    target_agent_slug: Slug | None = None
    capability_tag: Tag | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                "exactly one of target_agent_id, target_agent_slug and capability_tag is needed;"
                f" observed: {', '.join(named) or 'none'}"
            )
        return self


class Allowlist(Body):
    """Whom an orchestrator may spawn; without an entry, nobody."""

    entries: Annotated[tuple[Entry, ...], Field(max_length=1000)]


@router.post("/agents", status_code=201, response_model=AgentAnswer)
async def create_agent(body: NewAgent, principal: CatalogDep, services: ServicesDep) -> Json:
    """Make an agent, as a draft."""
    values = body.model_dump() | {"capability_tags": list(body.capability_tags)}
    return Json(_render(await Agents(services.database).create(principal.tenant, values)), 201)


@router.get("/agents", response_model=AgentPage)
async def list_agents(
    principal: CatalogDep,
    services: ServicesDep,
    cursor: Annotated[UUID | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Json:
    """The tenant's agents, oldest first."""
    rows, following = await Agents(services.database).page(principal.tenant, cursor, limit)
    return Json({"items": [_render(row) for row in rows], "next_cursor": str(following) if following else None})


@router.get("/agents/{agent_id}", response_model=AgentAnswer)
async def read_agent(agent_id: UUID, principal: CatalogDep, services: ServicesDep) -> Json:
    """An agent."""
    return Json(_render(await Agents(services.database).get(principal.tenant, agent_id)))


@router.patch("/agents/{agent_id}", response_model=AgentAnswer)
async def change_agent(agent_id: UUID, body: AgentChange, principal: CatalogDep, services: ServicesDep) -> Json:
    """Change an agent. A graph that is published stays so only if it compiles; otherwise nothing is changed."""
    values = body.model_dump(exclude_unset=True)
    for name in ("name", "capability_tags"):
        if name in values and values[name] is None:
            raise InvalidRequestError(f"{name}: must not be null", field=name)
    if "capability_tags" in values:
        values["capability_tags"] = list(values["capability_tags"])
    return Json(_render(await _revise(services, principal, agent_id, values)))


@router.post("/agents/{agent_id}/publish", response_model=AgentAnswer)
async def publish_agent(agent_id: UUID, principal: CatalogDep, services: ServicesDep) -> Json:
    """Make an agent available as a target. A graph with errors is not published."""
    return Json(_render(await _revise(services, principal, agent_id, {"status": "published"})))


@router.post("/agents/{agent_id}/unpublish", response_model=AgentAnswer)
async def unpublish_agent(agent_id: UUID, principal: CatalogDep, services: ServicesDep) -> Json:
    """Take an agent back to a draft. Its runs go on."""
    return Json(_render(await _revise(services, principal, agent_id, {"status": "draft"})))


@router.put("/agents/{agent_id}/orchestrator-policy", response_model=OrchestratorPolicy)
async def put_orchestrator_policy(
    agent_id: UUID, body: OrchestratorPolicy, principal: CatalogDep, services: ServicesDep
) -> Json:
    """Set what the agent's runs may do. It holds from the next spawn on, also for runs that have begun."""
    values = body.model_dump(mode="json")
    await Agents(services.database).put_policy(principal.tenant, agent_id, values)
    return Json(values)


@router.get("/agents/{agent_id}/orchestrator-policy", response_model=OrchestratorPolicy)
async def read_orchestrator_policy(agent_id: UUID, principal: CatalogDep, services: ServicesDep) -> Json:
    """The stored policy, or the defaults where there is none."""
    row = await Agents(services.database).get_policy(principal.tenant, agent_id)
    defaults = OrchestratorPolicy().model_dump(mode="json")
    return Json({name: row[name] for name in defaults} if row is not None else defaults)


@router.put("/agents/{agent_id}/allowlist", response_model=Allowlist)
async def put_allowlist(agent_id: UUID, body: Allowlist, principal: CatalogDep, services: ServicesDep) -> Json:
    """Set whom the agent's runs may spawn."""
    entries = [AllowlistEntry(**entry.model_dump()) for entry in body.entries]
    await Agents(services.database).put_allowlist(principal.tenant, agent_id, entries)
    return Json(body.model_dump(mode="json", exclude_none=True))


@router.get("/agents/{agent_id}/allowlist", response_model=Allowlist)
async def read_allowlist(agent_id: UUID, principal: CatalogDep, services: ServicesDep) -> Json:
    """Whom the agent's runs may spawn."""
    rows = await Agents(services.database).get_allowlist(principal.tenant, agent_id)
    return Json({"entries": [{name: value for name, value in row.items() if value is not None} for row in rows]})


async def _revise(services: Services, principal: Principal, agent_id: UUID, changes: Row) -> Row:
    return await ReviseAgentCommand(services.database, services.engine).execute(principal, agent_id, changes)


def _render(row: Row) -> dict[str, object]:
    return {name: row[name] for name in AgentAnswer.model_fields}
