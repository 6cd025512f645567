"""What is ordered, and what comes of it."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import orjson

from kernel.domain.errors import SpawnKeyConflictError
from kernel.domain.events import Surface
from kernel.domain.joins import FailurePolicy, JoinMode
from kernel.domain.principal import Principal
from kernel.policy.contract import Action
from kernel.store.spawn_facts import Agent, Earlier, SpawnFacts


# A group has ten thousand of these two: tuples are made several times as fast as frozen dataclasses.
class TargetRef(NamedTuple):
    """An agent, named by its id or by its slug."""

    agent_id: UUID | None = None
    slug: str | None = None

    def __str__(self) -> str:
        return str(self.agent_id) if self.agent_id is not None else str(self.slug)


class ChildOrder(NamedTuple):
    """One child that is wanted."""

    target: TargetRef
    mapped_input: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JoinOrder:
    """How a group is to be joined; None takes the policy's default."""

    mode: JoinMode = JoinMode.ALL
    quorum_threshold: int | None = None


@dataclass(frozen=True, slots=True)
class SpawnOrder:
    """A spawn: of one child under `key`, or, with `join`, of a group under the prefix `key`.

    Args:
        scopes: sorted, each once.
        timeout_s: of the child; of a group, of its join.
        background: whether workers execute the children, or the caller.
    """

    action: Action
    surface: Surface
    principal: Principal
    tenant_id: UUID
    caller_run_id: UUID
    key: str
    children: tuple[ChildOrder, ...]
    scopes: tuple[str, ...]
    parent_node_id: str | None = None
    failure_policy: FailurePolicy | None = None
    timeout_s: int | None = None
    join: JoinOrder | None = None
    background: bool = True
    trace_parent: str | None = None

    @property
    def spawn_key(self) -> tuple[UUID, UUID, str]:
        """What makes the order unique."""
        return (self.tenant_id, self.caller_run_id, self.key)

    @property
    def key_field(self) -> str:
        """What the wire calls the key."""
        return "idempotency_key" if self.join is None else "idempotency_key_prefix"

    def timeout_under(self, snapshot: Mapping[str, object]) -> int | None:
        """Its timeout in seconds under the policy that it was granted with, whose default a join takes."""
        if self.timeout_s is None and self.join is not None:
            default = snapshot.get("join_timeout_s")
            return default if isinstance(default, int) else None
        return self.timeout_s

    def wire_name(self, field: str) -> str:
        """What this order called a field on the wire; a single target is named by its id or by its slug."""
        if field != "target":
            return field
        return "target_agent_id" if self.children[0].target.agent_id is not None else "target_agent_slug"


@dataclass(frozen=True, slots=True)
class Spawned:
    """The answer to an order that was granted, now or earlier."""

    run_ids: tuple[UUID, ...]
    group_id: UUID | None
    root_run_id: UUID
    parent_run_id: UUID
    parent_node_id: str | None
    depth: int
    key: str
    agent_ids: tuple[UUID, ...]
    snapshot: Mapping[str, object]
    effective_scopes: tuple[str, ...]
    failure_policy: str
    timeout_s: int | None
    decision_id: UUID
    join_mode: str | None = None
    quorum_threshold: int | None = None
    idempotent: bool = False
    headroom: Mapping[str, object] = field(default_factory=dict)


def resolve(order: SpawnOrder, facts: SpawnFacts) -> list[Agent | None]:
    """The agent of each child, in order; None where the tenant has no such agent."""
    return [
        facts.agents.get((order.tenant_id, child.target.agent_id))
        if child.target.agent_id is not None
        else facts.agents_by_slug.get((order.tenant_id, child.target.slug or ""))
        for child in order.children
    ]


def digests(order: SpawnOrder, agents: list[Agent | None]) -> dict[str, str]:
    """A digest for each field of an order, so that a conflict can say what differs.

    A target counts by the agent that it names, whether by id or by slug; all others have their names on the wire.
    """
    targets = [
        str(agent.facts.agent_id) if agent else str(child.target)
        for agent, child in zip(agents, order.children, strict=True)
    ]
    payloads = [child.mapped_input for child in order.children]
    fields: dict[str, Hashable] = {
        "parent_node_id": order.parent_node_id,
        "failure_policy": order.failure_policy,
        "timeout_s": order.timeout_s,
        "scope_subset": order.scopes,
        "start_background": order.background,
    }
    if order.join is None:
        fields["target"] = targets[0]
        given = {"mapped_input_payload": digest(payloads[0])}
    else:
        fields |= {"join_mode": order.join.mode, "quorum_threshold": order.join.quorum_threshold}
        given = {"targets": digest([targets, payloads])}
    return {name: _digest(value) for name, value in fields.items()} | given


# All but the payloads are the same few values again and again. Typed, for 1 and true are not equal here.
@lru_cache(maxsize=4096, typed=True)
def _digest(value: Hashable) -> str:
    return digest(value)


def digest(value: object) -> str:
    """A short digest of a JSON value: equal values, whatever the order of their keys, have equal ones."""
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=12).hexdigest()


def repeat(order: SpawnOrder, facts: SpawnFacts) -> Spawned | None:
    """The first result of this order, if its key was used before.

    Raises:
        SpawnKeyConflictError: when the key was used with another payload, or for a member of a group.
    """
    earlier = (facts.earlier_runs if order.join is None else facts.earlier_groups).get(order.spawn_key)
    if earlier is None:
        return None
    if earlier.digests is None:
        raise SpawnKeyConflictError(
            f"{order.key_field}: {order.key!r} is the key of a member of group {earlier.group_id}",
            fields=[order.key_field],
        )
    now = digests(order, resolve(order, facts))
    differing = sorted(order.wire_name(name) for name, value in now.items() if earlier.digests.get(name) != value)
    if differing:
        raise SpawnKeyConflictError(
            f"{order.key_field}: {order.key!r} was used before with another {', '.join(differing)}", fields=differing
        )
    return _first_result(order, earlier)


def _first_result(order: SpawnOrder, earlier: Earlier) -> Spawned:
    # The terms are those of the order, which is the first one over again: a join may have given its group others since.
    return Spawned(
        run_ids=earlier.run_ids,
        group_id=earlier.group_id,
        root_run_id=earlier.root_run_id,
        parent_run_id=order.caller_run_id,
        parent_node_id=earlier.parent_node_id,
        depth=earlier.depth,
        key=order.key,
        agent_ids=earlier.agent_ids,
        snapshot=earlier.snapshot,
        effective_scopes=earlier.effective_scopes,
        failure_policy=earlier.failure_policy,
        timeout_s=order.timeout_under(earlier.snapshot),
        decision_id=earlier.decision_id,
        join_mode=order.join.mode.value if order.join is not None else None,
        quorum_threshold=order.join.quorum_threshold if order.join is not None else None,
        idempotent=True,
    )
