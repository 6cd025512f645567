"""What becomes of an order under the lock: the answer of policy, held against what is true now."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

from kernel.commands.spawning import order as orders
from kernel.commands.spawning.grants import grant
from kernel.commands.spawning.order import Spawned
from kernel.commands.spawning.question import Prepared, check_status
from kernel.commands.spawning.refusals import denial_data, denied, under_fence
from kernel.domain.errors import PolicyDeniedError, RemitError
from kernel.domain.events import EventType
from kernel.domain.fences import Fence
from kernel.domain.run import RunStatus
from kernel.policy import records
from kernel.policy.contract import Limits
from kernel.policy.engine import Evaluated
from kernel.store.events import Event
from kernel.store.spawn_facts import Caller, Key, SpawnFacts, Version
from kernel.store.spawn_writes import SpawnWrites
from kernel.store.trees import LockedTree

Outcome = Spawned | RemitError


class Shifted(Enum):
    """Why an order is asked about again: the catalog changed, or the counters (or an equal key) got there first."""

    CATALOG = auto()
    COUNTERS = auto()


@dataclass(slots=True)
class _Counters:
    """A caller's lifetime children as this transaction sees them grow."""

    children_count: int


class Verdicts:
    """What becomes of each order of a batch, one after the other, under the locks.

    Args:
        moved: the facts of the orders whose tree has changed since policy was asked; of the others nothing has.
        catalog: the versions of the agents that the answers rest on.
    """

    def __init__(
        self,
        moved: SpawnFacts,
        catalog: Mapping[Key, Version],
        covered: dict[tuple[UUID, UUID], Fence],
        locked: dict[tuple[UUID, UUID], LockedTree],
        writes: SpawnWrites,
    ) -> None:
        self._moved = moved
        self._catalog = catalog
        self._covered = covered
        self._locked = locked
        self._writes = writes
        self._used: set[tuple[UUID, UUID, str]] = set()
        self._counters: dict[tuple[UUID, UUID], _Counters] = {}

    def reach(self, prepared: Prepared, evaluated: Evaluated) -> Outcome | Shifted:  # noqa: PLR0911 - a ladder, in order
        """The outcome of one order, with its rows gathered for the write; or why it must be asked about again."""
        order = prepared.order
        try:
            earlier = orders.repeat(order, self._moved)
            if earlier is not None:
                return earlier
            if order.spawn_key in self._used:
                return Shifted.COUNTERS
            caller = self._moved.callers.get((order.tenant_id, order.caller_run_id), prepared.caller)
            check_status(caller.run_id, RunStatus(caller.status))
        except RemitError as error:
            return error
        fence = self._covered.get((order.tenant_id, order.caller_run_id))
        if fence is not None:
            return under_fence(order.caller_run_id, fence)
        if not prepared.rests_on(self._catalog):
            return Shifted.CATALOG
        tree = self._locked[caller.tree_key]
        if not evaluated.decision.allow:
            return self._deny(prepared, evaluated, tree)
        counters = self._counters.setdefault((order.tenant_id, order.caller_run_id), _Counters(caller.children_count))
        limits = evaluated.decision.limits
        if limits is None or _exceeds(limits, caller, counters, tree, len(order.children)):
            return Shifted.COUNTERS
        self._used.add(order.spawn_key)
        counters.children_count += len(order.children)
        return grant(prepared, evaluated, tree, self._writes)

    def _deny(self, prepared: Prepared, evaluated: Evaluated, tree: LockedTree) -> PolicyDeniedError:
        order = prepared.order
        record = records.record(prepared.question, evaluated)
        self._writes.decisions.append(record)
        self._writes.trees[tree.tenant_id, tree.root_run_id] = tree
        tree.tell(
            Event(
                tenant_id=order.tenant_id,
                root_run_id=tree.root_run_id,
                seq=tree.next_seq(),
                type=EventType.POLICY_DENY,
                surface=order.surface,
                run_id=order.caller_run_id,
                subjects=[order.caller_run_id],
                data=denial_data(record),
            )
        )
        return denied(record)


def _exceeds(limits: Limits, caller: Caller, counters: _Counters, tree: LockedTree, count: int) -> bool:
    return (
        caller.depth + 1 > limits.max_depth
        or counters.children_count + count > limits.max_fanout
        or tree.children_total + count > limits.max_children_total
    )
