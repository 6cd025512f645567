"""The tree lock: one row per root run, locked before anything else of that tree is read or changed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from uuid import UUID

from asyncpg import exceptions as pg

from kernel.policy.records import DecisionRecord
from kernel.store import decisions, events
from kernel.store.engine import WriteSession
from kernel.store.events import Event

# In one order for everybody, so that two batches never wait for each other in a ring. The statement reads no other
# table: its snapshot is older than its wait, and only the locked row itself is read anew after the wait.
LOCK = """
SELECT t.tenant_id, t.root_run_id, t.children_total, t.seq, t.open_fences, t.is_active
FROM run_trees t
JOIN unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, root_run_id)
  ON t.tenant_id = q.tenant_id AND t.root_run_id = q.root_run_id
ORDER BY t.tenant_id, t.root_run_id
FOR NO KEY UPDATE OF t
"""

# In the order in which they are wanted, and no more than that: what never waits cannot wait in a ring.
LOCK_AVAILABLE = """
SELECT t.tenant_id, t.root_run_id, t.children_total, t.seq, t.open_fences, t.is_active
FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY AS q (tenant_id, root_run_id, place)
JOIN run_trees t ON t.tenant_id = q.tenant_id AND t.root_run_id = q.root_run_id
ORDER BY q.place
LIMIT $3
FOR NO KEY UPDATE OF t SKIP LOCKED
"""

ADVANCE = """
UPDATE run_trees t SET
  seq = q.seq,
  children_total = t.children_total + q.children,
  open_fences = t.open_fences + q.fences,
  queued_runs = t.queued_runs + q.queued,
  running_runs = t.running_runs + q.running,
  paused_runs = t.paused_runs + q.paused
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::int[], $5::int[], $6::int[], $7::int[], $8::int[])
  AS q (tenant_id, root_run_id, seq, children, fences, queued, running, paused)
WHERE t.tenant_id = q.tenant_id AND t.root_run_id = q.root_run_id
"""


def _renumbered(statement: str, by: int) -> str:
    """The same statement with its parameters numbered from `by + 1`."""
    return re.sub(r"\$(\d+)", lambda found: f"${int(found[1]) + by}", statement)


def journalled(parts: str, parameters: int) -> str:
    """A statement that ends with the journal: what was decided, what is told and what is counted.

    Nearly every change of a tree writes all three, and so in one round trip.

    Args:
        parts: what else is written, as common table expressions, each with its comma.
        parameters: how many parameters those have; the journal's follow.
    """
    return f"""
WITH {parts} decided AS ({_renumbered(decisions.APPEND, parameters)}),
told AS ({_renumbered(events.APPEND, parameters + 12)})
{_renumbered(ADVANCE, parameters + 20)}
"""


JOURNAL = journalled("", 0)

# How long whoever has others to serve waits for a tree that somebody holds, before it sees to them first.
PATIENCE_MS = 250

TreeKey = tuple[UUID, UUID]


class TreeHeldError(Exception):
    """Others hold every tree that is wanted, for longer than one would wait."""


@dataclass(slots=True)
class LockedTree:
    """A tree whose lock this transaction holds: its counters, and what this transaction will add to them."""

    tenant_id: UUID
    root_run_id: UUID
    children_total: int
    seq: int
    open_fences: int
    was_active: bool
    added_children: int = 0
    added_fences: int = 0
    queued: int = 0
    running: int = 0
    paused: int = 0
    told: list[Event] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether all was terminal and drained before this transaction: its readers have been told that it is over."""
        return not self.was_active and not self.open_fences

    def next_seq(self) -> int:
        """Take the next number of the tree's sequence; whoever takes one writes one event with it."""
        self.seq += 1
        return self.seq

    def tell(self, *told: Event) -> None:
        """Have events written with the counters."""
        self.told.extend(told)

    def moved(self, before: str | None, after: str | None, count: int = 1) -> None:
        """Count runs that went from one status to another (None: they did not exist, or are terminal)."""
        for status, step in ((before, -count), (after, count)):
            if status in {"queued", "running", "paused"}:
                setattr(self, status, getattr(self, status) + step)


async def lock(session: WriteSession, keys: Iterable[TreeKey]) -> dict[TreeKey, LockedTree]:
    """Lock trees until the transaction ends. Trees that do not exist are absent from the answer."""
    wanted = sorted(set(keys))
    rows = await session.driver.fetch(LOCK, [key[0] for key in wanted], [key[1] for key in wanted])
    return {(row["tenant_id"], row["root_run_id"]): LockedTree(*row.values()) for row in rows}


async def lock_one(
    session: WriteSession, tenant_id: UUID, root_run_id: UUID, *, patience_ms: int | None = None
) -> LockedTree:
    """Lock a tree that is known to exist.

    Raises:
        TreeHeldError: when others kept it for longer than the patience that was given.
    """
    key = (tenant_id, root_run_id)
    if patience_ms is None:
        return (await lock(session, [key]))[key]
    # Mostly nobody holds it, and the patience need not be set.
    locked = await lock_available(session, [key], at_most=1) or await lock_briefly(session, key, patience_ms)
    return locked[key]


async def lock_available(session: WriteSession, keys: Iterable[TreeKey], at_most: int) -> dict[TreeKey, LockedTree]:
    """Lock the first trees of a list that nobody holds, without waiting, until the transaction ends."""
    wanted = list(keys)
    rows = await session.driver.fetch(LOCK_AVAILABLE, [key[0] for key in wanted], [key[1] for key in wanted], at_most)
    return {(row["tenant_id"], row["root_run_id"]): LockedTree(*row.values()) for row in rows}


async def lock_briefly(session: WriteSession, key: TreeKey, patience_ms: int) -> dict[TreeKey, LockedTree]:
    """Lock a tree, queueing for it like everybody else but not for long.

    Raises:
        TreeHeldError: when others kept it; the transaction can then only be rolled back.
    """
    await session.driver.execute(f"SET LOCAL lock_timeout = {patience_ms}")
    try:
        locked = await lock(session, [key])
    except pg.LockNotAvailableError as error:
        raise TreeHeldError from error
    await session.driver.execute("SET LOCAL lock_timeout TO DEFAULT")
    return locked


def patience_until(end: float) -> int:
    """How many milliseconds are left until a moment of the monotonic clock; at least one, for 0 waits without end."""
    return max(int((end - monotonic()) * 1000), 1)


async def advance(
    session: WriteSession,
    *locked: LockedTree,
    decided: Sequence[DecisionRecord] = (),
    statement: str = JOURNAL,
    arguments: Sequence[object] = (),
) -> None:
    """Write the counters of locked trees back, with what is told of them and the records of decisions.

    Whoever has taken a number of a tree's sequence ends with this.

    Args:
        statement: what `journalled` made, where something else is written with them.
        arguments: of its other parts.
    """
    told = [event for tree in locked for event in tree.told]
    if not told and not decided and not arguments:
        await session.driver.execute(ADVANCE, *_columns(locked))
        return
    journal = (*decisions.columns(decided), *events.columns(told), *_columns(locked))
    await session.driver.execute(statement, *arguments, *journal)
    for tree in locked:
        tree.told.clear()


def _columns(locked: Iterable[LockedTree]) -> list[list[object]]:
    """The arrays that `ADVANCE` takes."""
    rows = [
        (
            tree.tenant_id,
            tree.root_run_id,
            tree.seq,
            tree.added_children,
            tree.added_fences,
            tree.queued,
            tree.running,
            tree.paused,
        )
        for tree in locked
    ]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(8)]
