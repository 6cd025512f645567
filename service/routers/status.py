"""What a runtime reports of a run that it executes itself."""

from typing import Literal
from uuid import UUID

from kernel.commands.report_run import ReportRun, ReportRunCommand
from kernel.domain.run import RunStatus
from service.dependencies import ExecuteDep, ServicesDep
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
async def report_run(run_id: UUID, body: StatusBody, principal: ExecuteDep, services: ServicesDep) -> Json:
    """Report a run's status. A repeat of the last report answers as the first time; an illegal step is 409."""
    reported = await ReportRunCommand(services.database, services.wakeups).execute(
        principal,
        ReportRun(run_id, RunStatus(body.status), text_of(body.output), text_of(body.error), body.lease),
    )
    return Json(
        {"run_id": reported.run_id, "status": reported.status, "finalized_at": reported.finalized_at},
        headers={"X-Idempotency-Reused": "true"} if reported.idempotent else None,
    )
