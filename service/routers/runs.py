"""Root runs: where a tree begins."""

from uuid import UUID

from fastapi import Request
from pydantic import Field

from kernel.commands.start_run import StartRun, StartRunCommand
from kernel.domain.errors import ForbiddenError
from service.dependencies import ExecuteDep, ServicesDep, trace_parent_of
from service.wire import Answer, Body, Json, JsonObject, Key, Scopes, Seconds, make_router

router = make_router("runs")


class NewRun(Body):
    """A root run to be started. A `timeout_s` counts from the start, in the queue too."""

    requested_scopes: Scopes
    input: JsonObject = Field(default_factory=dict)
    timeout_s: Seconds | None = None
    idempotency_key: Key | None = None


class RunStarted(Answer):
    """A root run, with the token to act as it."""

    run_id: UUID
    root_run_id: UUID
    agent_id: UUID
    status: str
    effective_scopes: list[str]
    run_token: str
    token_expires_at: str
    idempotent: bool
    decision_id: UUID | None


@router.post("/agents/{agent_id}/runs", status_code=201, response_model=RunStarted)
async def start_run(
    request: Request,
    agent_id: UUID,
    body: NewRun,
    principal: ExecuteDep,
    services: ServicesDep,
) -> Json:
    """Start a root run of an agent. With an `idempotency_key`, a repeat answers with the first run."""
    if principal.kind == "run":
        raise ForbiddenError("a run's token spawns children; a root run is started with a tenant's token")
    command = StartRunCommand(services.database, services.engine, services.active_runs)
    wanted = StartRun(
        agent_id=agent_id,
        scopes=body.requested_scopes,
        run_input=body.input,
        timeout_s=body.timeout_s,
        idempotency_key=body.idempotency_key,
        trace_parent=trace_parent_of(request),
    )
    with services.combiner.in_flight.one_of(principal.tenant):
        started = await command.execute(principal, wanted)
    if not started.idempotent:
        services.wakeups.work_arrived(principal.tenant, [started.agent_id])
    issued = services.tokens.issue_run(
        tenant_id=principal.tenant,
        run_id=started.run_id,
        root_run_id=started.run_id,
        agent_id=started.agent_id,
        scopes=started.effective_scopes,
        depth=0,
    )
    return Json(
        {
            "run_id": started.run_id,
            "root_run_id": started.run_id,
            "agent_id": started.agent_id,
            "status": started.status,
            "effective_scopes": started.effective_scopes,
            "run_token": issued.token,
            "token_expires_at": issued.expires_at,
            "idempotent": started.idempotent,
            "decision_id": started.decision_id,
        },
        201,
        {"X-Idempotency-Reused": "true"} if started.idempotent else None,
    )
