"""Runs as they stand, and their steps from one status to another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from kernel.domain.events import Surface
from kernel.domain.run import ACTIVE, RunStatus
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.trees import LockedTree, TreeKey

# The lease is judged by the clock of the statement, which is read after the lock.
LOAD = """
SELECT r.tenant_id, r.run_id, r.root_run_id, r.parent_run_id, r.status, r.background, r.surface, r.depth,
  r.orchestration_group_id, r.children_count, r.finalized_seq, r.finalized_at, r.agent_id, n.slug AS tenant_slug,
  coalesce(p.is_active AND p.parent_close_policy = 'cancel', false) AS closes_children,
  l.lease, l.granted, l.expires_at > clock_timestamp() AS lease_runs, l.attempt, l.max_attempts
FROM unnest($2::uuid[]) AS q (run_id)
JOIN agent_runs r ON r.tenant_id = $1 AND r.run_id = q.run_id
JOIN tenants n ON n.tenant_id = r.tenant_id
LEFT JOIN orchestrator_policies p ON p.tenant_id = r.tenant_id AND p.agent_id = r.agent_id
LEFT JOIN run_leases l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id
"""

# A run's root never changes, so the tree to lock may be looked up before the lock.
ROOTS = "SELECT run_id, root_run_id FROM agent_runs WHERE tenant_id = $1 AND run_id = ANY ($2::uuid[])"

# What a run leaves behind goes with its status: payload, deadline and lease in the same statement. That a lease is held
# is told by `expires_at`, for `lease IS NOT NULL` would bring in the index of all that are held.
END = """
WITH ended AS (
  SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[]) AS q (run_id, status, output, error)
), given AS (
  UPDATE run_payloads l SET output = q.output::json, error = q.error::json
  FROM ended q
  WHERE l.tenant_id = $1 AND l.run_id = q.run_id AND (q.output IS NOT NULL OR q.error IS NOT NULL)
), due AS (
  DELETE FROM run_deadlines d USING ended q WHERE d.tenant_id = $1 AND d.run_id = q.run_id
), released AS (
  UPDATE run_leases l SET lease = NULL, expires_at = NULL
  FROM ended q WHERE l.tenant_id = $1 AND l.run_id = q.run_id AND l.expires_at IS NOT NULL
)
UPDATE agent_runs r SET status = q.status, finalized_seq = $6, finalized_at = clock_timestamp()
FROM ended q
WHERE r.tenant_id = $1 AND r.run_id = q.run_id
RETURNING r.run_id, r.finalized_at
"""

# A run that was running before keeps the number of its first start where it goes on after a pause.
MOVE = """
UPDATE agent_runs r SET status = $3, started_seq = coalesce(r.started_seq, $4),
  started_at = coalesce(r.started_at, clock_timestamp())
WHERE r.tenant_id = $1 AND r.run_id = $2
"""

PAYLOAD = "SELECT output::text AS output, error::text AS error FROM run_payloads WHERE tenant_id = $1 AND run_id = $2"

# Nobody walks where the tree has nothing active, and nobody far: this is asked under the lock of the tree. Every step
# is limited, as in the look of a drain. A `CASE`, because only that keeps what is not needed from being evaluated.
MAY_HAVE_ACTIVE_DESCENDANTS = """
WITH RECURSIVE below AS (
  (SELECT r.run_id, r.status FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = $2 LIMIT $4)
  UNION ALL
  SELECT c.run_id, c.status
  FROM below b
  CROSS JOIN LATERAL (
    SELECT r.run_id, r.status FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = b.run_id LIMIT $4
  ) c
)
SELECT CASE WHEN t.queued_runs + t.running_runs + t.paused_runs + $5::int <= 0 THEN false ELSE (
  SELECT coalesce(bool_or(status IN ('queued', 'running', 'paused')), false) OR count(*) = $4
  FROM (SELECT status FROM below LIMIT $4) seen
) END
FROM run_trees t WHERE t.tenant_id = $1 AND t.root_run_id = $3
"""

# By the time at which the statement begins: held against a clock that goes on, every row would be read.
DUE = """
SELECT d.tenant_id, d.root_run_id, d.run_id
FROM run_deadlines d
WHERE d.deadline <= statement_timestamp() AND NOT d.run_id = ANY ($2::uuid[])
  AND NOT d.root_run_id = ANY ($3::uuid[])
ORDER BY d.deadline
LIMIT $1
"""

STILL_DUE = """
SELECT d.run_id FROM run_deadlines d
WHERE d.tenant_id = $1 AND d.run_id = ANY ($2::uuid[]) AND d.deadline <= clock_timestamp()
"""

# Each run is counted by the fence that changed it; what ends before a drain has looked at it has been looked at, too.
COUNT_CANCELLED = """
UPDATE cancellations c SET cancelled_count = c.cancelled_count + q.cancelled,
  scanned_count = greatest(c.scanned_count, c.cancelled_count + q.cancelled)
FROM unnest($2::uuid[], $3::int[]) AS q (cancellation_id, cancelled)
WHERE c.tenant_id = $1 AND c.cancellation_id = q.cancellation_id
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands.

    `closes_children`: its agent's policy in force cancels active descendants when it completes or fails.
    `lease` is the one that is held, `granted` the last one that ever was; `lease_runs`: it has not expired by the
    database's clock. All are None where nobody has leased it.
    """

    tenant_id: UUID
    run_id: UUID
    root_run_id: UUID
    parent_run_id: UUID | None
    status: RunStatus
    background: bool
    surface: Surface
    depth: int
    group_id: UUID | None
    children_count: int
    finalized_seq: int | None
    finalized_at: datetime | None
    agent_id: UUID
    tenant_slug: str
    closes_children: bool
    lease: UUID | None
    granted: UUID | None
    lease_runs: bool | None
    attempt: int | None
    max_attempts: int | None

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    def held_by(self, lease: UUID | None) -> bool:
        """Whether a lease is the current one, and has not expired."""
        return lease is not None and self.lease == lease and self.lease_runs is True


@dataclass(frozen=True, slots=True)
class Payload:
    """What a run gave back, as JSON texts."""

    output: str | None
    error: str | None


def _run(row: Record) -> Run:
    return Run(
        tenant_id=row["tenant_id"],
        run_id=row["run_id"],
        root_run_id=row["root_run_id"],
        parent_run_id=row["parent_run_id"],
        status=RunStatus(row["status"]),
        background=row["background"],
        surface=Surface(row["surface"]),
        depth=row["depth"],
        group_id=row["orchestration_group_id"],
        children_count=row["children_count"],
        finalized_seq=row["finalized_seq"],
        finalized_at=row["finalized_at"],
        agent_id=row["agent_id"],
        tenant_slug=row["tenant_slug"],
        closes_children=row["closes_children"],
        lease=row["lease"],
        granted=row["granted"],
        lease_runs=row["lease_runs"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
    )


async def load(session: ReadSession, tenant_id: UUID, run_ids: Iterable[UUID]) -> dict[UUID, Run]:
    """Runs of a tenant by id; what it does not have is absent."""
    rows = await session.driver.fetch(LOAD, tenant_id, list(run_ids))
    return {row["run_id"]: _run(row) for row in rows}


async def roots(session: ReadSession, tenant_id: UUID, run_ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """The root of each run; runs that the tenant does not have are absent."""
    rows = await session.driver.fetch(ROOTS, tenant_id, list(run_ids))
    return {row["run_id"]: row["root_run_id"] for row in rows}


async def end(
    session: WriteSession,
    tenant_id: UUID,
    endings: Sequence[tuple[UUID, RunStatus, str | None, str | None]],
    *,
    seq: int,
) -> Mapping[UUID, datetime]:
    """Write the ends of active runs of a locked tree, as `(run_id, status, output, error)`; when each ended."""
    ids, statuses, outputs, errors = (list(column) for column in zip(*endings, strict=True))
    rows = await session.driver.fetch(END, tenant_id, ids, [s.value for s in statuses], outputs, errors, seq)
    return {row["run_id"]: row["finalized_at"] for row in rows}


async def move(session: WriteSession, tenant_id: UUID, run_id: UUID, status: RunStatus, *, seq: int) -> None:
    """Write a step to `running` or `paused` of a run of a locked tree."""
    await session.driver.execute(MOVE, tenant_id, run_id, status.value, seq)


async def payload(session: ReadSession, tenant_id: UUID, run_id: UUID) -> Payload:
    """What a run gave back."""
    row = await session.driver.fetchrow(PAYLOAD, tenant_id, run_id)
    return Payload(row["output"], row["error"]) if row is not None else Payload(None, None)


async def may_have_active_descendants(session: WriteSession, tree: LockedTree, run_id: UUID, *, at_most: int) -> bool:
    """Whether anything below a run is active, also below descendants that have ended.

    Args:
        tree: its locked tree, with what this transaction has ended in it.
        at_most: of so many descendants it is not known, and the answer is that there may be.
    """
    moved = tree.queued + tree.running + tree.paused
    found: bool = await session.driver.fetchval(
        MAY_HAVE_ACTIVE_DESCENDANTS, tree.tenant_id, run_id, tree.root_run_id, at_most, moved
    )
    return found


async def due(
    session: ReadSession, *, limit: int, passing_over: Sequence[UUID] = (), elsewhere_than: Sequence[UUID] = ()
) -> list[tuple[TreeKey, UUID]]:
    """Runs past their deadline, the longest overdue first, as `(tree, run_id)`.

    Args:
        passing_over: runs that are left alone.
        elsewhere_than: the roots of trees that are left alone.
    """
    rows = await session.driver.fetch(DUE, limit, list(passing_over), list(elsewhere_than))
    return [((row["tenant_id"], row["root_run_id"]), row["run_id"]) for row in rows]


async def still_due(session: WriteSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> set[UUID]:
    """Which of some runs of a locked tree are past a deadline that still stands."""
    rows = await session.driver.fetch(STILL_DUE, tenant_id, list(run_ids))
    return {row["run_id"] for row in rows}


async def count_cancelled(session: WriteSession, tenant_id: UUID, cancelled: Mapping[UUID, int]) -> None:
    """Add to what fences of a locked tree have cancelled, by their ids."""
    await session.driver.execute(COUNT_CANCELLED, tenant_id, list(cancelled), list(cancelled.values()))
