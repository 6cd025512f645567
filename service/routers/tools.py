"""Tools: the tenant's registry, calling them, and the catalogue of what they can be made of."""

from typing import Annotated
from uuid import UUID

from fastapi import Header, HTTPException, Query, Request
from pydantic import Field, StrictBool

from kernel.tools.configs import ImplementationType
from kernel.tools.invoke import invoke
from kernel.tools.parts import ToolCall, ToolParts
from kernel.tools.registry import NewVersion, Row, Tools
from kernel.tools.templates import CATALOGUE
from service.dependencies import CatalogDep, ExecuteDep, Services, ServicesDep
from service.waiting import GoneError, while_connected
from service.wire import Answer, Body, Json, JsonObject, Key, Name, Slug, Text, make_router

router = make_router("tools")

TraceParent = Annotated[str | None, Header(max_length=128)]


class NewTool(Body):
    """A tool to be made. Where the tenant has one of this slug, it is the tool's next version, used from then on."""

    slug: Slug
    name: Name
    implementation_type: ImplementationType
    config: JsonObject
    input_schema: Annotated[JsonObject | None, Field(description="JSON Schema 2020-12, for the input of calls.")] = None
    output_schema: Annotated[
        JsonObject | None, Field(description="JSON Schema 2020-12, for the output of what is called.")
    ] = None


class ToolChange(Body):
    """Whether the tool can be called. Calls that are under way go on."""

    is_active: StrictBool


class VersionAnswer(Answer):
    """One version of a tool; it never changes."""

    version: int
    name: str
    implementation_type: ImplementationType
    config: dict[str, object]
    input_schema: dict[str, object] | None
    output_schema: dict[str, object] | None
    created_at: str


class ToolAnswer(VersionAnswer):
    """A tool as its newest version has it."""

    tool_id: UUID
    slug: str
    is_active: bool
    updated_at: str


class ToolWithVersions(ToolAnswer):
    """A tool with its versions, the newest first; the newest hundred."""

    versions: list[VersionAnswer]


class ToolPage(Answer):
    """A page of tools; `next_cursor` goes on after it, null at the end."""

    items: list[ToolAnswer]
    next_cursor: str | None


class TemplateAnswer(Answer):
    """A kind of tool: the schema of its configuration and its input, and an example for `POST /tools`."""

    name: str
    description: str
    implementation_type: ImplementationType
    config_schema: dict[str, object]
    input_schema: dict[str, object] | None
    example: dict[str, object]


class TemplatesAnswer(Answer):
    """The catalogue."""

    templates: list[TemplateAnswer]


class InvokeBody(Body):
    """A call of a tool on behalf of a run."""

    caller_run_id: UUID
    input: JsonObject
    idempotency_key: Annotated[
        Key | None,
        Field(
            description="With a key, a repeat of an agent_call answers as the first call did, or waits for the same"
            " run. A rag_retrieval changes nothing: it is made anew, and never finds what has been deleted since."
        ),
    ] = None


class CallAnswer(Answer):
    """What an agent_call answers; past its timeout `status` is failed, and `error` says so."""

    mode: str
    target_agent_id: UUID
    target_agent_slug: str
    run_id: UUID
    status: str
    output: object = None
    context: dict[str, object] | None = None
    error: object = None


class Passage(Answer):
    """A piece of a document. The scores of one answer can be compared with each other, and with no others."""

    document_id: str
    chunk: int
    text: str
    score: float
    metadata: dict[str, object]


class RetrievalAnswer(Answer):
    """What a rag_retrieval answers, the best first."""

    results: list[Passage]
    pipeline_id: UUID
    took_ms: float


# Before the routes with a slug, which would take these paths for a tool's.
@router.get("/tools/templates", response_model=TemplatesAnswer)
async def list_templates(_principal: CatalogDep) -> Json:
    """What tools can be made of. The catalogue is part of the service: it has no instances, and is not changed."""
    return Json({"templates": [template.render() for template in CATALOGUE]})


@router.api_route("/tools/templates", methods=["POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
@router.api_route("/tools/templates/{_rest:path}", methods=["POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
async def refuse_to_change_templates() -> None:
    """Nothing makes, changes or deletes what is built in."""
    raise HTTPException(405, "the catalogue of templates is read-only", {"Allow": "GET"})


@router.post("/tools", status_code=201, response_model=ToolAnswer)
async def make_tool(body: NewTool, principal: CatalogDep, services: ServicesDep) -> Json:
    """Make a tool, or the next version of one."""
    made = await Tools(services.database).make(
        principal.tenant,
        NewVersion(
            slug=body.slug,
            name=body.name,
            implementation_type=body.implementation_type,
            config=body.config,
            input_schema=body.input_schema,
            output_schema=body.output_schema,
        ),
    )
    return Json(_render(made, ToolAnswer), 201)


@router.get("/tools", response_model=ToolPage)
async def list_tools(
    principal: CatalogDep,
    services: ServicesDep,
    cursor: Annotated[Slug | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Json:
    """The tenant's tools, by slug."""
    rows, following = await Tools(services.database).page(principal.tenant, cursor, limit)
    return Json({"items": [_render(row, ToolAnswer) for row in rows], "next_cursor": following})


@router.get("/tools/{slug}", response_model=ToolWithVersions)
async def read_tool(slug: Text, principal: CatalogDep, services: ServicesDep) -> Json:
    """A tool, and its versions."""
    tool, versions = await Tools(services.database).get(principal.tenant, slug)
    return Json({**_render(tool, ToolAnswer), "versions": [_render(version, VersionAnswer) for version in versions]})


@router.patch("/tools/{slug}", response_model=ToolAnswer)
async def change_tool(slug: Text, body: ToolChange, principal: CatalogDep, services: ServicesDep) -> Json:
    """Switch a tool on or off."""
    changed = await Tools(services.database).set_active(principal.tenant, slug, is_active=body.is_active)
    return Json(_render(changed, ToolAnswer))


@router.post("/tools/{slug}/invoke", response_model=CallAnswer | RetrievalAnswer, response_model_exclude_none=True)
async def invoke_tool(
    slug: Text,
    body: InvokeBody,
    request: Request,
    principal: ExecuteDep,
    services: ServicesDep,
    traceparent: TraceParent = None,
) -> Json:
    """Call a tool. An agent_call is answered when the agent's run has ended; who hangs up cancels it."""
    call = ToolCall(
        slug=slug,
        caller_run_id=body.caller_run_id,
        input=body.input,
        idempotency_key=body.idempotency_key,
        trace_parent=traceparent,
    )
    try:
        answer = await while_connected(request, invoke(_parts(request, services), principal, call))
    except GoneError:
        return Json({})
    return Json(answer.body, headers={"X-Idempotency-Reused": "true"} if answer.repeated else None)


def _render(row: Row, shape: type[VersionAnswer]) -> dict[str, object]:
    return {name: row[name] for name in shape.model_fields}


def _parts(request: Request, services: Services) -> ToolParts:
    """The process's one set of parts, which remembers whose turn it is."""
    state = request.app.state
    if not hasattr(state, "tool_parts"):
        state.tool_parts = ToolParts(services.database, services.engine, services.combiner, services.wakeups)
    parts: ToolParts = state.tool_parts
    return parts
