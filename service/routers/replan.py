"""The primitive that judges the outcomes of a run's children."""

from typing import Literal
from uuid import UUID

from kernel.commands.evaluate_and_replan import EvaluateAndReplan, EvaluateAndReplanCommand
from service.dependencies import ExecuteDep, ServicesDep
from service.errors import DenialReason
from service.wire import Answer, Body, Json, make_router

router = make_router("primitives")


class EvaluateBody(Body):
    """The run whose children are judged."""

    caller_run_id: UUID
    run_id: UUID


class HeadroomLeft(Answer):
    """What the run may still spend: levels below it, children of its own, runs of its whole tree."""

    depth: int
    fanout: int
    children_total: int


class EvaluationAnswer(Answer):
    """The verdict. `failed_children` lists at most 1,000; a cancelled child counts as failed.

    `attempts` counts the verdicts to replan so far, this one included; `headroom` is what a new plan may still spend.
    """

    run_id: UUID
    needs_replan: bool
    failed_children: list[UUID]
    failed_count: int
    total_children: int
    active_children: int
    suggested_action: Literal["continue", "replan", "escalate", "stop"]
    reasons: list[DenialReason]
    attempts: int
    headroom: HeadroomLeft
    decision_id: UUID


@router.post("/internal/orchestration/evaluate-and-replan", response_model=EvaluationAnswer)
async def evaluate_and_replan(body: EvaluateBody, principal: ExecuteDep, services: ServicesDep) -> Json:
    """Judge the outcomes of a run's children: `continue`, `replan`, `escalate` or `stop`, as policy says."""
    verdict = await EvaluateAndReplanCommand(services.database, services.engine).execute(
        principal, EvaluateAndReplan(body.caller_run_id, body.run_id)
    )
    return Json(
        {
            "run_id": verdict.run_id,
            "needs_replan": verdict.needs_replan,
            "failed_children": verdict.failed_children,
            "failed_count": verdict.failed_count,
            "total_children": verdict.total_children,
            "active_children": verdict.active_children,
            "suggested_action": verdict.suggested_action,
            "reasons": verdict.reasons,
            "attempts": verdict.attempts,
            "headroom": verdict.headroom.model_dump(),
            "decision_id": verdict.decision_id,
        }
    )
