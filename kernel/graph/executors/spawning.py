"""Nodes that make children. A denial is an output, so that a router can take another way."""

from typing import Any

from kernel.commands.spawning.order import ChildOrder, JoinOrder, Spawned, SpawnOrder, TargetRef, digest
from kernel.domain.errors import PolicyDeniedError
from kernel.domain.events import Surface
from kernel.domain.joins import FailurePolicy, JoinMode
from kernel.graph.executors.visit import GraphRunError, Outcome, Visit
from kernel.graph.expressions import BeyondBoundsError, check
from kernel.graph.spec import MAX_GROUP, GroupTarget, SpawnGroupConfig, SpawnRunConfig, Target
from kernel.policy.contract import Action

SPAWNED = "spawned"
DENIED = "denied"
MAX_NAME = 120


async def spawn_run(visit: Visit) -> Outcome:
    """One child."""
    config = visit.config(SpawnRunConfig)
    children = (ChildOrder(_ref(config), {**config.mapped_input_payload, **visit.mapped}),)
    return await _spawn(
        visit,
        _order(
            visit,
            Action.SPAWN_RUN,
            config.idempotency_key or derived_key(visit, children),
            children,
            config.scope_subset,
            config.failure_policy,
            config.timeout_s,
            background=config.start_background,
        ),
    )


async def spawn_group(visit: Visit) -> Outcome:
    """A group of children, all or nothing."""
    config = visit.config(SpawnGroupConfig)
    children = tuple(
        ChildOrder(_ref(target), {**target.mapped_input_payload, **visit.mapped, **more})
        for target, more in _members(visit, config)
    )
    threshold = config.quorum_threshold
    if config.join_mode is JoinMode.QUORUM and threshold is None:
        raise GraphRunError("invalid_request", "quorum_threshold is needed with join_mode quorum", visit.node.id)
    if threshold is not None and not 1 <= threshold <= len(children):
        raise GraphRunError(
            "invalid_request",
            f"quorum_threshold is above the group's size: limit {len(children)}, observed {threshold}",
            visit.node.id,
        )
    return await _spawn(
        visit,
        _order(
            visit,
            Action.SPAWN_GROUP,
            config.idempotency_key_prefix or derived_key(visit, children),
            children,
            config.scope_subset,
            config.failure_policy,
            config.timeout_s,
            background=config.start_background,
            join=JoinOrder(config.join_mode, threshold),
        ),
    )


def derived_key(visit: Visit, children: tuple[ChildOrder, ...]) -> str:
    """A key that a resumed graph derives again: of the run, the node, the number of the visit, and what is wanted."""
    content = [[str(child.target), child.mapped_input] for child in children]
    mark = digest([str(visit.lineage.run_id), visit.node.id, visit.iteration, content])
    return f"{visit.node.id[:MAX_NAME]}:{visit.iteration}:{mark}"


def _members(visit: Visit, config: SpawnGroupConfig) -> list[tuple[GroupTarget, dict[str, Any]]]:
    if config.for_each is None:
        return [(target, {}) for target in config.targets]
    items = visit.search(config.for_each)
    if not isinstance(items, list) or len(items) > MAX_GROUP:
        said = f"{len(items)} items" if isinstance(items, list) else type(items).__name__
        raise GraphRunError(
            "invalid_request",
            f"for_each: {config.for_each} is to give a list of at most {MAX_GROUP} items; observed: {said}",
            visit.node.id,
        )
    (target,) = config.targets
    return [(target, item if isinstance(item, dict) else {"item": item}) for item in items]


def _ref(target: Target) -> TargetRef:
    return TargetRef(target.target_agent_id, target.target_agent_slug)


def _order(
    visit: Visit,
    action: Action,
    key: str,
    children: tuple[ChildOrder, ...],
    scopes: tuple[str, ...],
    failure_policy: FailurePolicy | None,
    timeout_s: int | None,
    *,
    background: bool,
    join: JoinOrder | None = None,
) -> SpawnOrder:
    return SpawnOrder(
        action=action,
        surface=Surface.GRAPHSPEC_V2,
        principal=visit.principal,
        tenant_id=visit.lineage.tenant_id,
        caller_run_id=visit.lineage.run_id,
        key=key,
        children=children,
        scopes=scopes,
        parent_node_id=visit.node.id,
        failure_policy=failure_policy,
        timeout_s=timeout_s,
        join=join,
        background=background,
        trace_parent=visit.lineage.trace_parent,
    )


async def _spawn(visit: Visit, order: SpawnOrder) -> Outcome:
    try:
        check([child.mapped_input for child in order.children])
    except BeyondBoundsError as error:
        raise GraphRunError("payload_too_large", f"mapped_input_payload: {error}", visit.node.id) from error
    try:
        spawned = await visit.commands.combiner.spawn(order)
    except PolicyDeniedError as error:
        reasons = [dict(reason) for reason in error.reasons]
        output = {"status": DENIED, "reasons": reasons, "decision_id": str(error.decision_id)}
        return Outcome(output, denied=True)
    if order.background and not spawned.idempotent:
        visit.commands.wakeups.work_arrived(order.tenant_id, spawned.agent_ids)
    return Outcome(_answer(order, spawned))


def _answer(order: SpawnOrder, spawned: Spawned) -> dict[str, Any]:
    """The answer of the primitive, as JSON; tokens are not kept."""
    answer: dict[str, Any] = {
        "status": SPAWNED,
        "spawned_run_ids": [str(run_id) for run_id in spawned.run_ids],
        "accepted_policy_snapshot": dict(spawned.snapshot),
        "effective_scope_subset": list(spawned.effective_scopes),
        "lineage": {
            "root_run_id": str(spawned.root_run_id),
            "parent_run_id": str(spawned.parent_run_id),
            "parent_node_id": spawned.parent_node_id,
            "depth": spawned.depth,
            "spawn_key": spawned.key,
            "orchestration_group_id": str(spawned.group_id) if spawned.group_id is not None else None,
        },
        "failure_policy": spawned.failure_policy,
        "timeout_s": spawned.timeout_s,
        "decision_id": str(spawned.decision_id),
    }
    if order.join is not None:
        answer |= {
            "orchestration_group_id": str(spawned.group_id),
            "join_mode": spawned.join_mode,
            "quorum_threshold": spawned.quorum_threshold,
        }
    return answer
