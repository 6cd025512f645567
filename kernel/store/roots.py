"""Root runs: the facts that decide one, and the rows that make one."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession, WriteSession

Row = Mapping[str, Any]

LOAD = """
SELECT a.agent_id, a.slug, a.kind, a.status, a.capability_tags, a.revision, n.slug AS tenant_slug, n.time_zone,
  f.option_a_graphspec_v2 AS option_a, f.option_b_runtime_primitives AS option_b
FROM agents a
JOIN tenants n ON n.tenant_id = a.tenant_id
LEFT JOIN tenant_flags f ON f.tenant_id = a.tenant_id
WHERE a.tenant_id = $1 AND a.agent_id = $2
"""

# A root is covered by a fence on itself and by no other. One snapshot sees the fence open, or what its drain has done.
EARLIER = """
SELECT k.request_digests, r.run_id, r.effective_scopes, r.agent_id, l.decision_id,
  CASE WHEN r.finalized_seq IS NULL AND EXISTS (
    SELECT 1 FROM cancellations c
    WHERE c.tenant_id = k.tenant_id AND c.root_run_id = k.run_id AND c.drained_at IS NULL AND c.run_id = k.run_id
      AND c.scope = 'run'
  ) THEN 'cancelled' ELSE r.status END AS status
FROM root_run_keys k
JOIN agent_runs r ON r.tenant_id = k.tenant_id AND r.run_id = k.run_id
JOIN run_payloads l ON l.tenant_id = k.tenant_id AND l.run_id = k.run_id
WHERE k.tenant_id = $1 AND k.agent_id = $2 AND k.idempotency_key = $3
"""

# A second caller with the key waits here for the first one's commit, and then takes nothing.
TAKE_KEY = """
INSERT INTO root_run_keys (tenant_id, agent_id, idempotency_key, run_id, request_digests)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING run_id
"""

PLANT = """
WITH tree AS (
  INSERT INTO run_trees (tenant_id, root_run_id, seq, queued_runs, running_runs)
  VALUES ($1, $2, 1, CASE WHEN $5 THEN 1 ELSE 0 END, CASE WHEN $5 THEN 0 ELSE 1 END)
), run AS (
  INSERT INTO agent_runs (tenant_id, run_id, root_run_id, depth, agent_id, surface, status, background,
    effective_scopes, failure_policy, timeout_s, spawned_seq, started_seq, started_at)
  VALUES ($1, $2, $2, 0, $3, $4, CASE WHEN $5 THEN 'queued' ELSE 'running' END, $5, $6::text[], 'best_effort', $7, 1,
    CASE WHEN $5 THEN NULL ELSE 1 END, CASE WHEN $5 THEN NULL ELSE now() END)
), due AS (
  INSERT INTO run_deadlines (tenant_id, run_id, root_run_id, deadline)
  SELECT $1, $2, $2, now() + make_interval(secs => $7::int) WHERE $7::int IS NOT NULL
)
INSERT INTO run_payloads (tenant_id, run_id, input, decision_id, trace_parent) VALUES ($1, $2, $8, $9, $10)
"""


async def load(session: ReadSession, tenant_id: UUID, agent_id: UUID) -> Row | None:
    """The agent and its tenant."""
    row: Row | None = await session.driver.fetchrow(LOAD, tenant_id, agent_id)
    return row


async def earlier(session: ReadSession, tenant_id: UUID, agent_id: UUID, key: str) -> Row | None:
    """The root run that was started under a key."""
    row: Row | None = await session.driver.fetchrow(EARLIER, tenant_id, agent_id, key)
    return row


async def take_key(
    session: WriteSession, tenant_id: UUID, agent_id: UUID, key: str, run_id: UUID, digests: str
) -> bool:
    """Whether the key is ours now."""
    return await session.driver.fetchval(TAKE_KEY, tenant_id, agent_id, key, run_id, digests) is not None


async def plant(session: WriteSession, *values: object) -> None:
    """Make a tree with its root: the values as `PLANT` numbers them."""
    await session.driver.execute(PLANT, *values)
