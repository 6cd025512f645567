"""The primitives that make children."""

from typing import Annotated, Self
from uuid import UUID

import structlog
from fastapi import Query, Request
from pydantic import Field, model_validator

from kernel.commands.run_tokens import tokens_of_children
from kernel.commands.spawning.order import ChildOrder, JoinOrder, Spawned, SpawnOrder, TargetRef
from kernel.domain.events import Surface
from kernel.domain.joins import FailurePolicy, JoinMode
from kernel.domain.principal import Principal
from kernel.policy.contract import Action
from kernel.policy.engine import Evaluated
from kernel.policy.records import render_reasons
from service.dependencies import ExecuteDep, Services, ServicesDep, trace_parent_of
from service.errors import DenialReason
from service.wire import Answer, Body, Json, JsonObject, Key, NodeId, Quorum, Scopes, Seconds, Slug, make_router

router = make_router("primitives")

MAX_GROUP = 10_000

DryRun = Annotated[bool, Query(description="Answer what would be decided, and write nothing.")]


class Target(Body):
    """An agent, by exactly one of its id and its slug."""

    target_agent_id: UUID | None = None
    target_agent_slug: Slug | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.target_agent_id is None) == (self.target_agent_slug is None):
            raise ValueError("exactly one of target_agent_id and target_agent_slug is needed")
        return self

    def ref(self) -> TargetRef:
        """The agent as the kernel knows it."""
        return TargetRef(self.target_agent_id, self.target_agent_slug)


class SpawnRunBody(Target):
    """One child that is wanted."""

    caller_run_id: UUID
    parent_node_id: NodeId | None = None
    mapped_input_payload: JsonObject = Field(default_factory=dict)
    failure_policy: FailurePolicy | None = None
    timeout_s: Seconds | None = None
    scope_subset: Scopes
    idempotency_key: Key
    start_background: bool = True


class GroupTarget(Target):
    """One member that is wanted."""

    mapped_input_payload: JsonObject = Field(default_factory=dict)


class SpawnGroupBody(Body):
    """A group that is wanted, all of it or nothing. The i-th child's key is `{idempotency_key_prefix}:{i}`."""

    caller_run_id: UUID
    parent_node_id: NodeId | None = None
    targets: Annotated[tuple[GroupTarget, ...], Field(max_length=MAX_GROUP)]
    failure_policy: FailurePolicy | None = None
    join_mode: JoinMode = JoinMode.ALL
    quorum_threshold: Quorum | None = None
    timeout_s: Seconds | None = None
    scope_subset: Scopes
    idempotency_key_prefix: Key
    start_background: bool = True

    @model_validator(mode="after")
    def _quorum_can_be_reached(self) -> Self:
        size = len(self.targets)
        if self.join_mode is JoinMode.QUORUM and self.quorum_threshold is None:
            raise ValueError("quorum_threshold is needed with join_mode quorum")
        if self.quorum_threshold is not None and self.quorum_threshold > size:
            raise ValueError(
                f"quorum_threshold is above the group's size: limit {size}, observed {self.quorum_threshold}"
            )
        return self


class Lineage(Answer):
    """Where the new runs stand in their tree."""

    root_run_id: UUID
    parent_run_id: UUID
    parent_node_id: str | None
    depth: int
    spawn_key: str
    orchestration_group_id: UUID | None


class SpawnAnswer(Answer):
    """What was spawned. `run_tokens` is there where the caller executes the children (`start_background` false)."""

    spawned_run_ids: list[UUID]
    accepted_policy_snapshot: dict[str, object]
    effective_scope_subset: list[str]
    lineage: Lineage
    idempotent: bool
    failure_policy: str
    timeout_s: int | None
    decision_id: UUID
    run_tokens: dict[str, str] | None = None


class SpawnGroupAnswer(SpawnAnswer):
    """The group and its members, in the order of their targets."""

    orchestration_group_id: UUID
    join_mode: str
    quorum_threshold: int | None


class PreviewAnswer(Answer):
    """What would be decided. `headroom` is what would be left (if refused: what is left)."""

    dry_run: bool
    allow: bool
    idempotent: bool
    reasons: list[DenialReason]
    effective_scope_subset: list[str]
    accepted_policy_snapshot: dict[str, object] | None
    limits: dict[str, int] | None
    headroom: dict[str, int] | None
    policy_revision: str | None


@router.post("/internal/orchestration/spawn-run", response_model=SpawnAnswer | PreviewAnswer)
async def spawn_run(
    request: Request,
    body: SpawnRunBody,
    principal: ExecuteDep,
    services: ServicesDep,
    dry_run: DryRun = False,
) -> Json:
    """Spawn one child of the calling run."""
    principal.check_acts_as(body.caller_run_id)
    order = SpawnOrder(
        action=Action.SPAWN_RUN,
        surface=Surface.RUNTIME_PRIMITIVES,
        principal=principal,
        tenant_id=principal.tenant,
        caller_run_id=body.caller_run_id,
        key=body.idempotency_key,
        children=(ChildOrder(body.ref(), body.mapped_input_payload),),
        scopes=body.scope_subset,
        parent_node_id=body.parent_node_id,
        failure_policy=body.failure_policy,
        timeout_s=body.timeout_s,
        background=body.start_background,
        trace_parent=trace_parent_of(request),
    )
    if dry_run:
        return await _preview(services, order)
    spawned = await services.combiner.spawn(order)
    return await _answer(services, principal, order, spawned, {})


@router.post("/internal/orchestration/spawn-group", response_model=SpawnGroupAnswer | PreviewAnswer)
async def spawn_group(
    request: Request,
    body: SpawnGroupBody,
    principal: ExecuteDep,
    services: ServicesDep,
    dry_run: DryRun = False,
) -> Json:
    """Spawn a group of children of the calling run, all or nothing."""
    principal.check_acts_as(body.caller_run_id)
    order = SpawnOrder(
        action=Action.SPAWN_GROUP,
        surface=Surface.RUNTIME_PRIMITIVES,
        principal=principal,
        tenant_id=principal.tenant,
        caller_run_id=body.caller_run_id,
        key=body.idempotency_key_prefix,
        children=tuple(ChildOrder(target.ref(), target.mapped_input_payload) for target in body.targets),
        scopes=body.scope_subset,
        parent_node_id=body.parent_node_id,
        failure_policy=body.failure_policy,
        timeout_s=body.timeout_s,
        join=JoinOrder(body.join_mode, body.quorum_threshold),
        background=body.start_background,
        trace_parent=trace_parent_of(request),
    )
    if dry_run:
        return await _preview(services, order)
    spawned = await services.combiner.spawn(order)
    return await _answer(
        services,
        principal,
        order,
        spawned,
        {
            "orchestration_group_id": spawned.group_id,
            "join_mode": spawned.join_mode,
            "quorum_threshold": spawned.quorum_threshold,
        },
    )


async def _answer(
    services: Services, principal: Principal, order: SpawnOrder, spawned: Spawned, more: dict[str, object]
) -> Json:
    structlog.contextvars.bind_contextvars(decision_id=str(spawned.decision_id))
    if order.background and not spawned.idempotent:
        services.wakeups.work_arrived(principal.tenant, spawned.agent_ids)
    answer: dict[str, object] = {
        "spawned_run_ids": spawned.run_ids,
        "accepted_policy_snapshot": spawned.snapshot,
        "effective_scope_subset": spawned.effective_scopes,
        "lineage": {
            "root_run_id": spawned.root_run_id,
            "parent_run_id": spawned.parent_run_id,
            "parent_node_id": spawned.parent_node_id,
            "depth": spawned.depth,
            "spawn_key": spawned.key,
            "orchestration_group_id": spawned.group_id,
        },
        "idempotent": spawned.idempotent,
        "failure_policy": spawned.failure_policy,
        "timeout_s": spawned.timeout_s,
        "decision_id": spawned.decision_id,
        **more,
    }
    if not order.background:
        issued = await tokens_of_children(services.database, services.tokens, order.tenant_id, spawned)
        answer["run_tokens"] = {str(run_id): token.token for run_id, token in issued.items()}
    return Json(answer, headers={"X-Idempotency-Reused": "true"} if spawned.idempotent else None)


async def _preview(services: Services, order: SpawnOrder) -> Json:
    preview = await services.combiner.preview(order)
    if isinstance(preview, Evaluated):
        decision = preview.decision
        return Json(
            {
                "dry_run": True,
                "allow": decision.allow,
                "idempotent": False,
                "reasons": render_reasons(decision.reasons),
                "effective_scope_subset": decision.effective_scopes,
                "accepted_policy_snapshot": decision.policy.model_dump() if decision.policy else None,
                "limits": decision.limits.model_dump() if decision.limits else None,
                "headroom": decision.headroom.model_dump() if decision.headroom else None,
                "policy_revision": preview.revision,
            }
        )
    return Json(
        {
            "dry_run": True,
            "allow": True,
            "idempotent": True,
            "reasons": [],
            "effective_scope_subset": preview.effective_scopes,
            "accepted_policy_snapshot": preview.snapshot,
            "limits": None,
            "headroom": None,
            "policy_revision": None,
        },
        headers={"X-Idempotency-Reused": "true"},
    )
