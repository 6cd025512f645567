"""What a runtime reports of a run that it executes itself."""

from typing import Literal
from uuid import UUID

from fastapi import Request

from kernel.commands.report_run import ReportRun, ReportRunCommand
from kernel.domain.run import RunStatus
from service.dependencies import ExecuteDep, Services, ServicesDep
from service.routers.work import ReportedAnswer, text_of
from service.wire import Body, Json, JsonAny, make_router

router = make_router("runs")


class StatusBody(Body):
    """The status that the run has reached. A run that a worker executes is reported with its lease only."""

    status: Literal["running", "paused", "completed", "failed", "cancelled"]
    output: JsonAny = None
    error: JsonAny = None
    lease: UUID | None = None


@router.post("/agents/runs/{run_id}/status", response_model=ReportedAnswer)
async def report_run(
    run_id: UUID, body: StatusBody, request: Request, principal: ExecuteDep, services: ServicesDep
) -> Json:
    """Report a run's status. A repeat of the last report answers as the first time; an illegal step is 409."""
    reported = await _reports(request, services).execute(
        principal,
        ReportRun(run_id, RunStatus(body.status), text_of(body.output), text_of(body.error), body.lease),
    )
    return Json(
        {"run_id": reported.run_id, "status": reported.status, "finalized_at": reported.finalized_at},
        headers={"X-Idempotency-Reused": "true"} if reported.idempotent else None,
    )


def _reports(request: Request, services: Services) -> ReportRunCommand:
    """The process's one report command, in which the reports of a tree go together."""
    state = request.app.state
    if not hasattr(state, "reports"):
        state.reports = ReportRunCommand(services.database, services.wakeups)
    command: ReportRunCommand = state.reports
    return command
