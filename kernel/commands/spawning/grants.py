"""The rows of an order that is granted, gathered while its tree is locked."""

from dataclasses import dataclass
from uuid import UUID

import orjson

from kernel.commands.spawning.order import Spawned, digests
from kernel.commands.spawning.question import Prepared
from kernel.domain.events import EventType
from kernel.identifiers import new_id
from kernel.policy import records
from kernel.policy.engine import Evaluated
from kernel.policy.records import DecisionRecord
from kernel.store.events import Event
from kernel.store.spawn_writes import SpawnWrites
from kernel.store.trees import LockedTree


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one order is given. `seq` is the number of its tree at which all of it happened."""

    prepared: Prepared
    tree: LockedTree
    record: DecisionRecord
    seq: int
    group_id: UUID | None
    run_ids: tuple[UUID, ...]
    snapshot: dict[str, object]
    scopes: tuple[str, ...]
    failure_policy: str
    timeout_s: int | None


def grant(prepared: Prepared, evaluated: Evaluated, tree: LockedTree, writes: SpawnWrites) -> Spawned:
    """Gather the rows of an order that policy allowed and the counters have room for; the tree's counters follow."""
    order, decision = prepared.order, evaluated.decision
    size = len(order.children)
    snapshot: dict[str, object] = decision.policy.model_dump() if decision.policy is not None else {}
    given = _Grant(
        prepared=prepared,
        tree=tree,
        record=records.record(prepared.question, evaluated),
        seq=tree.next_seq(),
        group_id=new_id() if order.join is not None else None,
        run_ids=tuple(new_id() for _ in range(size)),
        snapshot=snapshot,
        scopes=tuple(decision.effective_scopes),
        failure_policy=str(order.failure_policy or snapshot["default_failure_policy"]),
        timeout_s=order.timeout_under(snapshot),
    )
    tree.children_total += size
    tree.added_children += size
    tree.moved(None, "queued" if order.background else "running", size)
    request_digests = orjson.dumps(digests(order, list(prepared.agents))).decode()
    policy_snapshot = orjson.dumps(snapshot).decode()
    if given.group_id is not None:
        writes.groups.append(_group_row(given, request_digests, policy_snapshot))
    writes.orders.append(_order_row(given, request_digests, policy_snapshot))
    writes.runs.extend(_run_rows(given, len(writes.orders)))
    tree.tell(_event(given))
    writes.decisions.append(given.record)
    writes.trees[tree.tenant_id, tree.root_run_id] = tree
    return _answer(given)


def _group_row(given: _Grant, request_digests: str, policy_snapshot: str) -> tuple[object, ...]:
    """A row of `spawn_writes.GROUPS`."""
    order = given.prepared.order
    join = order.join
    return (
        order.tenant_id,
        given.group_id,
        given.tree.root_run_id,
        order.caller_run_id,
        order.parent_node_id,
        order.key,
        order.surface.value,
        join.mode.value if join is not None else None,
        given.failure_policy,
        join.quorum_threshold if join is not None else None,
        given.timeout_s,
        len(order.children),
        given.seq,
        given.record.decision_id,
        request_digests,
        policy_snapshot,
        " ".join(given.scopes),
    )


def _order_row(given: _Grant, request_digests: str, policy_snapshot: str) -> tuple[object, ...]:
    """The order's part of the rows of `spawn_writes.RUNS`. What was asked of a group is kept with the group."""
    order, single = given.prepared.order, given.group_id is None
    return (
        order.tenant_id,
        given.tree.root_run_id,
        order.caller_run_id,
        order.parent_node_id,
        given.prepared.caller.depth + 1,
        order.key,
        given.group_id,
        order.surface.value,
        order.background,
        " ".join(given.scopes),
        given.failure_policy,
        given.timeout_s if single else None,
        given.seq,
        request_digests if single else None,
        policy_snapshot if single else None,
        given.record.decision_id if single else None,
        order.trace_parent,
    )


def _run_rows(given: _Grant, place: int) -> list[tuple[object, ...]]:
    """The runs' part of the rows of `spawn_writes.RUNS`."""
    return [
        (place, run_id, ordinal, agent.facts.agent_id, orjson.dumps(child.mapped_input).decode())
        for ordinal, (run_id, child, agent) in enumerate(
            zip(given.run_ids, given.prepared.order.children, given.prepared.agents, strict=True)
        )
    ]


def _event(given: _Grant) -> Event:
    order = given.prepared.order
    targets = given.prepared.targets
    return Event(
        tenant_id=order.tenant_id,
        root_run_id=given.tree.root_run_id,
        seq=given.seq,
        type=EventType.SPAWN_DECISION,
        surface=order.surface,
        run_id=order.caller_run_id,
        subjects=[order.caller_run_id, *given.run_ids],
        data={
            "node_id": order.parent_node_id,
            "target_agent_id": str(targets[0].facts.agent_id) if len(targets) == 1 else None,
            "target_agent_slug": targets[0].facts.slug if len(targets) == 1 else None,
            "spawned_run_ids": given.run_ids,
            "idempotent": False,
            "decision_id": str(given.record.decision_id),
            "orchestration_group_id": str(given.group_id) if given.group_id is not None else None,
        },
    )


def _answer(given: _Grant) -> Spawned:
    order = given.prepared.order
    return Spawned(
        run_ids=given.run_ids,
        group_id=given.group_id,
        root_run_id=given.tree.root_run_id,
        parent_run_id=order.caller_run_id,
        parent_node_id=order.parent_node_id,
        depth=given.prepared.caller.depth + 1,
        key=order.key,
        agent_ids=tuple(agent.facts.agent_id for agent in given.prepared.agents),
        snapshot=given.snapshot,
        effective_scopes=given.scopes,
        failure_policy=given.failure_policy,
        timeout_s=given.timeout_s,
        decision_id=given.record.decision_id,
        join_mode=order.join.mode.value if order.join is not None else None,
        quorum_threshold=order.join.quorum_threshold if order.join is not None else None,
    )
