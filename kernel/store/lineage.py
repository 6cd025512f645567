"""Where a run stands in its tree: facts about it, the way up, and what is below."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession

Row = Mapping[str, Any]

# One round trip, and one snapshot. The way up is walked only where somebody's reach depends on it.
STANDING = """
WITH RECURSIVE subject AS (
  SELECT r.run_id, r.root_run_id, r.parent_run_id, r.agent_id, r.status, r.depth, r.surface, r.replan_attempts,
    r.children_count, r.spawned_seq, r.ordinal, t.children_total, t.open_fences
  FROM agent_runs r
  JOIN run_trees t ON t.tenant_id = r.tenant_id AND t.root_run_id = r.root_run_id
  WHERE r.tenant_id = $1 AND r.run_id = $2
), up AS (
  SELECT s.run_id, s.parent_run_id FROM subject s
  WHERE ($3::uuid IS NOT NULL AND $3 <> $2) OR ($4::uuid IS NOT NULL AND $4 <> $2)
  UNION ALL
  SELECT p.run_id, p.parent_run_id FROM up u
  JOIN agent_runs p ON p.tenant_id = $1 AND p.run_id = u.parent_run_id
)
SELECT n.slug AS tenant_slug, n.time_zone, f.option_a_graphspec_v2 AS option_a,
  f.option_b_runtime_primitives AS option_b,
  s.run_id, s.root_run_id, s.agent_id, s.status, s.depth, s.surface, s.replan_attempts, s.children_count, s.spawned_seq,
  s.ordinal, s.children_total, s.open_fences,
  $3 IS NULL OR $3 = $2 OR EXISTS (SELECT FROM up WHERE up.run_id = $3) AS within_caller,
  $4 IS NULL OR $4 = $2 OR EXISTS (SELECT FROM up WHERE up.run_id = $4) AS within_principal,
  c.run_id AS caller_run_id, c.agent_id AS caller_agent_id, a.slug AS caller_agent_slug, c.status AS caller_status,
  c.depth AS caller_depth, c.effective_scopes AS caller_scopes, c.children_count AS caller_children_count,
  c.root_run_id AS caller_root_run_id, ct.children_total AS caller_children_total,
  ct.open_fences AS caller_open_fences,
  p.agent_id AS policy_agent_id, p.max_depth, p.max_fanout, p.max_children_total, p.join_timeout_s,
  p.default_failure_policy, p.enforce_published_only, p.allowed_scope_subset, p.parent_close_policy, p.is_active
FROM tenants n
LEFT JOIN tenant_flags f ON f.tenant_id = n.tenant_id
LEFT JOIN subject s ON true
LEFT JOIN agent_runs c ON c.tenant_id = n.tenant_id AND c.run_id = $3
LEFT JOIN run_trees ct ON ct.tenant_id = c.tenant_id AND ct.root_run_id = c.root_run_id
LEFT JOIN agents a ON a.tenant_id = c.tenant_id AND a.agent_id = c.agent_id
LEFT JOIN orchestrator_policies p ON p.tenant_id = c.tenant_id AND p.agent_id = c.agent_id
WHERE n.tenant_id = $1
"""


async def standing(
    session: ReadSession, tenant_id: UUID, run_id: UUID, caller_run_id: UUID | None, principal_run_id: UUID | None
) -> Row | None:
    """A run, the run on whose behalf somebody asks about it, and whether it is within their reach.

    What the tenant does not have has null ids; None when there is no such tenant.
    """
    row: Row | None = await session.driver.fetchrow(STANDING, tenant_id, run_id, caller_run_id, principal_run_id)
    return row
