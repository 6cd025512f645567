"""The primitive that waits for a group."""

from uuid import UUID

from fastapi import Request
from pydantic import Field

from kernel.commands.join import JoinCommand, Joined, JoinGroup
from kernel.domain.joins import JoinMode
from service.dependencies import ExecuteDep, ServicesDep
from service.waiting import GoneError, while_connected
from service.wire import Answer, Body, Json, Quorum, Seconds, make_router, run_ids

router = make_router("primitives")

MAX_WAIT_S = 300


class JoinBody(Body):
    """A group to wait for; what is left out stays as the group was made. `timeout_s` runs from the group's start."""

    caller_run_id: UUID
    orchestration_group_id: UUID
    mode: JoinMode | None = None
    quorum_threshold: Quorum | None = None
    timeout_s: Seconds | None = None
    wait_s: float = Field(0, ge=0, le=MAX_WAIT_S)


class Propagation(Answer):
    """Whom the decision cancelled: how many, which (at most 1,000), and why."""

    count: int
    run_ids: list[UUID]
    reason: str | None


class JoinAnswer(Answer):
    """How the group stands. `decided_seq` is the number of the transition that decided it."""

    group_id: UUID
    status: str
    complete: bool
    mode: str
    failure_policy: str
    quorum_threshold: int | None
    timeout_s: int
    success_count: int
    failure_count: int
    running_count: int
    member_run_ids: list[UUID]
    cancellation_propagated: Propagation
    decided_seq: int | None


@router.post("/internal/orchestration/join", response_model=JoinAnswer)
async def join(body: JoinBody, request: Request, principal: ExecuteDep, services: ServicesDep) -> Json:
    """Read a group's decision, wait for it, or change the terms of one that is undecided."""
    command = JoinCommand(services.database, services.engine, services.wakeups)
    wanted = JoinGroup(
        caller_run_id=body.caller_run_id,
        group_id=body.orchestration_group_id,
        mode=body.mode,
        quorum_threshold=body.quorum_threshold,
        timeout_s=body.timeout_s,
        wait_s=body.wait_s,
    )
    try:
        joined = await while_connected(request, command.execute(principal, wanted))
    except GoneError:
        return Json({})
    return Json(render(joined))


def render(joined: Joined) -> dict[str, object]:
    """The answer of a join, as the wire has it."""
    group, propagated = joined.group, joined.propagated
    return {
        "group_id": group.group_id,
        "status": joined.status,
        "complete": joined.complete,
        "mode": group.parameters.mode,
        "failure_policy": group.parameters.failure_policy,
        "quorum_threshold": group.parameters.quorum_threshold,
        "timeout_s": group.timeout_s,
        "success_count": joined.tally.success,
        "failure_count": joined.tally.failure,
        "running_count": joined.tally.running,
        "member_run_ids": run_ids(joined.member_run_ids),
        "cancellation_propagated": {
            "count": propagated.count if propagated is not None else 0,
            "run_ids": run_ids(propagated.run_ids) if propagated is not None else [],
            "reason": propagated.reason if propagated is not None else None,
        },
        "decided_seq": group.decided_seq,
    }
