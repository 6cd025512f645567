"""Reading the event log of a tree, a page at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession
from kernel.store.trees import TreeKey

# A page is cut where it has become long in rows, or in the runs that they tell of.
PAGE_ROWS = 50
PAGE_SUBJECTS = 2_000

PAGE = f"""
SELECT seq, type, surface, run_id, subjects, data, created_at
FROM (
  SELECT *, sum(cardinality(subjects)) OVER (ORDER BY seq) - cardinality(subjects) AS told_before
  FROM (
    SELECT seq, type, surface, run_id, subjects, data, created_at FROM run_events
    WHERE tenant_id = $1 AND root_run_id = $2 AND seq >= $3 AND seq <= $4
    ORDER BY seq LIMIT {PAGE_ROWS}
  ) rows
) page
WHERE told_before < {PAGE_SUBJECTS}
ORDER BY seq
"""

HEADS = """
SELECT t.tenant_id, t.root_run_id, t.seq, t.is_active, t.open_fences
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, root_run_id)
JOIN run_trees t ON t.tenant_id = q.tenant_id AND t.root_run_id = q.root_run_id
"""

# Stops at the first that is active.
ANY_ACTIVE = """
WITH RECURSIVE below AS (
  SELECT r.run_id, r.status FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = $2
  UNION ALL
  SELECT c.run_id, c.status
  FROM below b
  CROSS JOIN LATERAL (
    SELECT r.run_id, r.status FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = b.run_id OFFSET 0
  ) c
)
SELECT EXISTS (SELECT 1 FROM below WHERE status IN ('queued', 'running', 'paused'))
"""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One row of the log; it may tell of many runs."""

    seq: int
    type: str
    surface: str
    run_id: UUID
    subjects: Sequence[UUID]
    data: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Head:
    """How far the log of a tree goes, and whether it can still grow."""

    seq: int
    is_active: bool
    open_fences: int

    @property
    def ended(self) -> bool:
        """Whether all is terminal and drained."""
        return not self.is_active and not self.open_fences


async def page(session: ReadSession, tenant_id: UUID, root_run_id: UUID, *, first: int, last: int) -> list[StoredEvent]:
    """Some of the rows from one number on, at least one if there is one, and none beyond `last`.

    What is at or below the head that a reader has seen never changes, so equal arguments have equal answers.
    """
    rows = await session.driver.fetch(PAGE, tenant_id, root_run_id, first, last)
    return [
        StoredEvent(
            row["seq"],
            row["type"],
            row["surface"],
            row["run_id"],
            row["subjects"],
            row["data"],
            row["created_at"],
        )
        for row in rows
    ]


async def heads(session: ReadSession, trees: Iterable[TreeKey]) -> dict[TreeKey, Head]:
    """The heads of some trees."""
    wanted = list(trees)
    rows = await session.driver.fetch(HEADS, [key[0] for key in wanted], [key[1] for key in wanted])
    return {
        (row["tenant_id"], row["root_run_id"]): Head(row["seq"], row["is_active"], row["open_fences"]) for row in rows
    }


async def any_active(session: ReadSession, tenant_id: UUID, run_id: UUID) -> bool:
    """Whether a run or anything below it is active."""
    found: bool = await session.driver.fetchval(ANY_ACTIVE, tenant_id, run_id)
    return found
