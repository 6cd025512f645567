"""Work: how the runtimes' workers claim runs, keep them and give them back."""

from dataclasses import fields
from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import Request
from pydantic import Field

from kernel.commands.claim_work import ClaimedRun, ClaimWork, ClaimWorkCommand
from kernel.commands.complete_work import CompleteWork, CompleteWorkCommand
from kernel.commands.heartbeat import Heartbeat, HeartbeatCommand, LeaseRef
from kernel.commands.heartbeat import LeaseAnswer as KernelLeaseAnswer
from kernel.domain.run import RunStatus
from service.dependencies import ExecuteDep, Services, ServicesDep
from service.waiting import GoneError, while_connected
from service.wire import Answer, Body, Json, JsonAny, JsonObject, Slug, make_router

router = make_router("work")

MAX_WAIT_S = 60
MAX_LEASES = 1_000

LeaseSeconds = Annotated[int, Field(ge=1, le=3_600)]


class ClaimBody(Body):
    """For which agents, how many runs at most, how long to hold them, and how long to wait for the first (seconds)."""

    agent_slugs: Annotated[tuple[Slug, ...], Field(min_length=1, max_length=64)]
    max_runs: int = Field(1, ge=1, le=100)
    lease_s: LeaseSeconds = 30
    wait_s: float = Field(0, ge=0, le=MAX_WAIT_S)


class ClaimedContext(Answer):
    """Where the run stands, the surface that it was made through, and the token with which to act as it.

    `traceparent` is there where the spawn was traced: a runtime sends it on with the run's own calls.
    """

    tenant_id: UUID
    run_id: UUID
    root_run_id: UUID
    parent_run_id: UUID | None
    parent_node_id: str | None
    depth: int
    spawn_key: str | None
    orchestration_group_id: UUID | None
    requested_scopes: list[str]
    surface: Literal["option_a_graphspec_v2", "option_b_runtime_primitives"]
    token: str
    traceparent: str | None = None


class ClaimedAnswer(Answer):
    """A leased run; `deadline` is when the lease ends without a heartbeat, `run_deadline` when the run must have."""

    run_id: UUID
    agent_slug: str
    input: JsonObject
    context: ClaimedContext
    run_token: str
    token_expires_at: str
    lease: UUID
    attempt: int
    deadline: str
    run_deadline: str | None


class ClaimAnswer(Answer):
    """The runs that are the worker's now; none when nothing came in time."""

    runs: list[ClaimedAnswer]


class LeaseBody(Body):
    """A lease that the worker holds."""

    run_id: UUID
    lease: UUID


class HeartbeatBody(Body):
    """The leases to keep, each for `extend_s` seconds from now."""

    leases: Annotated[tuple[LeaseBody, ...], Field(max_length=MAX_LEASES)]
    extend_s: LeaseSeconds = 30


class LeaseAnswer(Answer):
    """`continue`, `cancel` (with the reason, and the seconds of grace that are left) or `lost`."""

    run_id: UUID
    status: Literal["continue", "cancel", "lost"]
    reason: str | None = None
    grace_s: float | None = None
    cancellation_id: UUID | None = None
    expires_at: str | None = None
    run_token: str | None = None
    token_expires_at: str | None = None


class HeartbeatAnswer(Answer):
    """How each lease stands, in the order of the request."""

    leases: list[LeaseAnswer]


class CompleteBody(Body):
    """How a run ended, by the holder of its lease."""

    run_id: UUID
    lease: UUID
    status: Literal["completed", "failed", "cancelled"]
    output: JsonAny = None
    error: JsonAny = None


class ReportedAnswer(Answer):
    """How the run stands now."""

    run_id: UUID
    status: str
    finalized_at: str | None


@router.post("/work/claim", response_model=ClaimAnswer)
async def claim_work(body: ClaimBody, request: Request, principal: ExecuteDep, services: ServicesDep) -> Json:
    """Lease queued runs of the token's tenant, in turn between agents and between trees."""
    wanted = ClaimWork(body.agent_slugs, body.max_runs, body.lease_s, body.wait_s)
    work = _claims(request, services).execute(principal, wanted)
    try:
        claimed = await while_connected(request, work)
    except GoneError:
        claimed = []
    return Json({"runs": [_fields(run) for run in claimed]})


@router.post("/work/heartbeat", response_model=HeartbeatAnswer, response_model_exclude_none=True)
async def heartbeat(body: HeartbeatBody, principal: ExecuteDep, services: ServicesDep) -> Json:
    """Keep leases, and hear which runs to stop.

    `continue` with `expires_at` says until when a run is held. Where its tree is locked for longer than a moment, that
    is when it was before: ask again soon.
    """
    command = HeartbeatCommand(services.database, services.tokens, token_s=services.settings.run_token_ttl_s)
    refs = tuple(LeaseRef(lease.run_id, lease.lease) for lease in body.leases)
    told = await command.execute(principal, Heartbeat(refs, body.extend_s))
    leases = [{name: value for name, value in _fields(lease).items() if value is not None} for lease in told]
    return Json({"leases": leases})


@router.post("/work/complete", response_model=ReportedAnswer)
async def complete_work(body: CompleteBody, request: Request, principal: ExecuteDep, services: ServicesDep) -> Json:
    """End a run that the worker holds. A repeat by the same lease answers as the first time."""
    reported = await _completions(request, services).execute(
        principal,
        CompleteWork(body.run_id, body.lease, RunStatus(body.status), text_of(body.output), text_of(body.error)),
    )
    return Json(
        {"run_id": reported.run_id, "status": reported.status, "finalized_at": reported.finalized_at},
        headers={"X-Idempotency-Reused": "true"} if reported.idempotent else None,
    )


def text_of(value: object) -> str | None:
    """A JSON value as the kernel takes it; null is none."""
    return orjson.dumps(value).decode() if value is not None else None


def _fields(item: ClaimedRun | KernelLeaseAnswer) -> dict[str, object]:
    """The fields of an answer of the kernel's, which bear the names of the wire."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


def _claims(request: Request, services: Services) -> ClaimWorkCommand:
    """The process's one claim command, which remembers whose turn it is."""
    state = request.app.state
    if not hasattr(state, "claims"):
        state.claims = ClaimWorkCommand(
            services.database, services.tokens, services.wakeups, token_s=services.settings.run_token_ttl_s
        )
    command: ClaimWorkCommand = state.claims
    return command


def _completions(request: Request, services: Services) -> CompleteWorkCommand:
    """The process's one complete command, in which the reports of a tree go together."""
    state = request.app.state
    if not hasattr(state, "completions"):
        state.completions = CompleteWorkCommand(services.database, services.wakeups)
    command: CompleteWorkCommand = state.completions
    return command
