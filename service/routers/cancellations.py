"""The primitive that cancels, and how far it is."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Request
from pydantic import Field, StringConstraints

from kernel.commands.cancel_subtree import DEFAULT_REASON, CancelSubtree, CancelSubtreeCommand, ReadCancellation
from service.dependencies import ExecuteDep, Services, ServicesDep
from service.wire import Answer, Body, Json, Text, make_router

router = make_router("primitives")

MAX_GRACE_S = 3600
MAX_WAIT_S = 300

Reason = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
State = Literal["drained", "draining"]


class CancelBody(Body):
    """What is to be cancelled. `include_root` false spares the run itself and cancels all below it."""

    caller_run_id: UUID
    run_id: UUID
    include_root: bool = True
    reason: Reason | None = None
    grace_s: Annotated[
        int, Field(ge=0, le=MAX_GRACE_S, description="For how long workers may take to acknowledge.")
    ] = 0
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, description="How long to wait until it is drained.")] = 0


class CancelAnswer(Answer):
    """A fence, and what it has cancelled so far. A repeat cancels nothing, and names the fence that was there."""

    run_id: UUID
    cancelled_count: int
    cancelled_run_ids: list[UUID] = Field(description="The first 1,000.")
    scanned_count: int
    include_root: bool
    reason: str
    cancellation_id: UUID
    state: State
    fence_seq: int
    decision_id: UUID


class CancellationAnswer(Answer):
    """How far a cancellation is."""

    cancellation_id: UUID
    root_run_id: UUID
    run_id: UUID
    state: State
    cancelled_count: int
    scanned_count: int
    reason: str
    include_root: bool
    scope: Literal["run", "children", "group"]
    orchestration_group_id: UUID | None
    fence_seq: int
    fenced_at: datetime
    grace_until: datetime | None
    drained_at: datetime | None


@router.post("/internal/orchestration/cancel-subtree", response_model=CancelAnswer)
async def cancel_subtree(request: Request, body: CancelBody, principal: ExecuteDep, services: ServicesDep) -> Json:
    """Cancel a run and all below it. When this is answered, nothing that it covers starts, spawns or completes."""
    answer = await _cancels(request, services).execute(
        principal,
        CancelSubtree(
            caller_run_id=body.caller_run_id,
            run_id=body.run_id,
            include_root=body.include_root,
            reason=body.reason or DEFAULT_REASON,
            grace_s=body.grace_s,
            wait_s=body.wait_s,
        ),
    )
    return Json(
        {
            "run_id": answer.run_id,
            "cancelled_count": answer.cancelled_count,
            "cancelled_run_ids": list(answer.cancelled_run_ids),
            "scanned_count": answer.scanned_count,
            "include_root": answer.include_root,
            "reason": answer.reason,
            "cancellation_id": answer.cancellation_id,
            "state": answer.state,
            "fence_seq": answer.fence_seq,
            "decision_id": answer.decision_id,
        },
        headers={"X-Idempotency-Reused": "true"} if answer.repeated else None,
    )


@router.get("/internal/orchestration/cancellations/{cancellation_id}", response_model=CancellationAnswer)
async def read_cancellation(cancellation_id: UUID, principal: ExecuteDep, services: ServicesDep) -> Json:
    """How far a cancellation is."""
    found = await ReadCancellation(services.database, services.engine).execute(principal, cancellation_id)
    return Json(
        {
            "cancellation_id": found.cancellation_id,
            "root_run_id": found.root_run_id,
            "run_id": found.run_id,
            "state": found.state,
            "cancelled_count": found.cancelled_count,
            "scanned_count": found.scanned_count,
            "reason": found.reason,
            "include_root": found.include_root,
            "scope": found.scope,
            "orchestration_group_id": found.group_id,
            "fence_seq": found.fence_seq,
            "fenced_at": found.fenced_at,
            "grace_until": found.grace_until,
            "drained_at": found.drained_at,
        }
    )


def _cancels(request: Request, services: Services) -> CancelSubtreeCommand:
    """The process's one cancel command, in which the cancels of a tree go together."""
    state = request.app.state
    if not hasattr(state, "cancels"):
        state.cancels = CancelSubtreeCommand(services.database, services.engine, services.wakeups)
    command: CancelSubtreeCommand = state.cancels
    return command
