"""Runs of graph agents: where some are queued, the graph that each began with, and how they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession, WriteSession

# One probe for each graph agent, however much is queued.
QUEUED = """
SELECT a.tenant_id, a.slug
FROM agents a
CROSS JOIN LATERAL (
  SELECT 1 FROM agent_runs r
  WHERE r.tenant_id = a.tenant_id AND r.agent_id = a.agent_id AND r.status = 'queued' LIMIT 1
) r
WHERE a.kind = 'graph'
ORDER BY a.tenant_id, a.slug
"""

# The first that claims a run stores the graph of that moment; whoever claims it later finds it.
BEGIN = """
UPDATE run_payloads l SET graph = coalesce(l.graph, a.graph_definition)
FROM agent_runs r
JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
WHERE l.tenant_id = $1 AND l.run_id = $2 AND r.tenant_id = l.tenant_id AND r.run_id = l.run_id
RETURNING l.graph, r.surface
"""

# A graph goes on from its checkpoint, so an attempt that was cut off has not failed; this bounds what is hopeless.
ALLOW_ATTEMPTS = """
UPDATE run_leases SET max_attempts = $3 WHERE tenant_id = $1 AND run_id = ANY ($2::uuid[]) AND max_attempts < $3
"""

STANDING = """
SELECT q.tenant_id, q.run_id, r.status IN ('running', 'paused') AND l.lease IS NOT DISTINCT FROM q.lease AS held,
  t.open_fences > 0 AS doubtful
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS q (tenant_id, run_id, lease)
JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.run_id = q.run_id
JOIN run_leases l ON l.tenant_id = q.tenant_id AND l.run_id = q.run_id
JOIN run_trees t ON t.tenant_id = r.tenant_id AND t.root_run_id = r.root_run_id
WHERE r.status NOT IN ('running', 'paused') OR l.lease IS DISTINCT FROM q.lease OR t.open_fences > 0
"""

# Runs that ended while nobody executed them, or whose worker died before it had cleared up behind them.
LEFT_BEHIND = """
SELECT r.tenant_id, r.run_id
FROM (SELECT DISTINCT thread_id FROM langgraph.checkpoints) c
JOIN agent_runs r ON r.tenant_id = split_part(c.thread_id, ':', 1)::uuid
  AND r.run_id = split_part(c.thread_id, ':', 2)::uuid
WHERE r.finalized_at < clock_timestamp() - make_interval(secs => $1)
LIMIT $2
"""

LET_GO = """
UPDATE run_leases l SET expires_at = clock_timestamp()
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS q (tenant_id, run_id, lease)
WHERE l.tenant_id = q.tenant_id AND l.run_id = q.run_id AND l.lease = q.lease
"""


@dataclass(frozen=True, slots=True)
class Begun:
    """The graph that a run began with, and the surface of the run."""

    graph: Mapping[str, Any] | None
    surface: str


@dataclass(frozen=True, slots=True)
class HeldGraph:
    """A run that somebody holds under a lease."""

    tenant_id: UUID
    run_id: UUID
    lease: UUID


@dataclass(frozen=True, slots=True)
class Doubt:
    """A held run that is to be looked at: its lease is gone (`held` is false), or a fence may cover it."""

    run_id: UUID
    held: bool


async def queued(session: ReadSession) -> dict[UUID, list[str]]:
    """The graph agents that have queued runs, by tenant, as slugs."""
    found: dict[UUID, list[str]] = {}
    for row in await session.driver.fetch(QUEUED):
        found.setdefault(row["tenant_id"], []).append(row["slug"])
    return found


async def begin(session: WriteSession, tenant_id: UUID, run_id: UUID) -> Begun:
    """The graph of a run that is claimed; it stays the same whatever becomes of the agent."""
    row = await session.driver.fetchrow(BEGIN, tenant_id, run_id)
    return Begun(row["graph"], row["surface"])


async def allow_attempts(session: WriteSession, tenant_id: UUID, run_ids: Sequence[UUID], attempts: int) -> None:
    """Let claimed runs be claimed again so often."""
    await session.driver.execute(ALLOW_ATTEMPTS, tenant_id, list(run_ids), attempts)


async def doubts(session: ReadSession, held: Sequence[HeldGraph]) -> list[Doubt]:
    """Which of the runs that are held may not be any more."""
    rows = await session.driver.fetch(STANDING, *_columns(held))
    return [Doubt(row["run_id"], row["held"]) for row in rows]


async def left_behind(session: ReadSession, *, ended_s: float, limit: int) -> list[tuple[UUID, UUID]]:
    """Runs that have ended so many seconds ago and still have checkpoints, as `(tenant_id, run_id)`."""
    rows = await session.driver.fetch(LEFT_BEHIND, ended_s, limit)
    return [(row["tenant_id"], row["run_id"]) for row in rows]


async def let_go(session: WriteSession, held: Sequence[HeldGraph]) -> None:
    """Let leases run out now, so that others take the runs over."""
    await session.driver.execute(LET_GO, *_columns(held))


def _columns(held: Sequence[HeldGraph]) -> tuple[list[UUID], list[UUID], list[UUID]]:
    return [one.tenant_id for one in held], [one.run_id for one in held], [one.lease for one in held]
