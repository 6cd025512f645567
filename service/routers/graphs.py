"""Graphs: whether they would run, and how they are written."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Depends
from pydantic import Field

from kernel.commands.compile_graph import CompileGraph, CompileGraphCommand
from kernel.domain.principal import Principal
from kernel.graph.spec import json_schema
from service.dependencies import CallerDep, Holding, ServicesDep
from service.wire import Answer, Body, Json, JsonObject, make_router

router = make_router("graphs")

CompileDep = Annotated[Principal, Depends(Holding("catalog.write", "agents.execute"))]


class CompileBody(Body):
    """A graph, and the agent that would run it: its policy and allowlist then hold. Without one they are deferred."""

    graph: JsonObject
    agent_id: UUID | None = None


class DiagnosticAnswer(Answer):
    """One finding. `deferred` ones are checked when more is known, and do not make a graph invalid."""

    code: str
    message: str
    severity: Literal["error", "deferred"]
    node_id: str | None
    edge_id: str | None
    field: str | None = Field(None, description="The place in the node, the edge or the graph.")
    handle: str | None = Field(None, description="The way out of the node.")
    limit: int | None = None
    observed: int | None = None
    requested: int | None = None
    target: str | None = None
    scopes: list[str] | None = None


class CompileAnswer(Answer):
    """Every finding, and the normal form of a graph without errors; graphs that mean the same have one digest."""

    valid: bool
    diagnostics: list[DiagnosticAnswer]
    ir: Annotated[dict[str, object] | None, Field(description="Null where there is an error.")]
    decision_id: UUID


@router.post("/graphs/compile", response_model=CompileAnswer)
async def compile_graph(body: CompileBody, principal: CompileDep, services: ServicesDep) -> Json:
    """Compile a graph, without storing it. One that is invalid is answered with everything that is wrong with it."""
    judged = await CompileGraphCommand(services.database, services.engine).execute(
        principal, CompileGraph(body.graph, body.agent_id)
    )
    compiled = judged.compiled
    return Json(
        {
            "valid": compiled.valid,
            "diagnostics": [finding.render() for finding in compiled.diagnostics],
            "ir": compiled.graph.document() if compiled.graph is not None else None,
            "decision_id": judged.record.decision_id,
        }
    )


@router.get("/graphs/schema", response_model=dict[str, object])
async def read_schema(_principal: CallerDep) -> Json:
    """The JSON schema of graphs, for editors."""
    return Json(json_schema())
