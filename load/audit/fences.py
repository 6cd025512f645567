"""Fences, and what they cover."""

from load.audit.check import Check

UNDER_FENCES = """
WITH RECURSIVE first AS (
  SELECT c.tenant_id, c.cancellation_id, c.fence_seq, c.drained_at, r.run_id
  FROM cancellations c JOIN agent_runs r ON r.tenant_id = c.tenant_id AND r.run_id = c.run_id
  WHERE c.scope = 'run'
  UNION ALL
  SELECT c.tenant_id, c.cancellation_id, c.fence_seq, c.drained_at, r.run_id
  FROM cancellations c JOIN agent_runs r ON r.tenant_id = c.tenant_id AND r.parent_run_id = c.run_id
  WHERE c.scope = 'children' AND r.spawned_seq < c.fence_seq
  UNION ALL
  SELECT c.tenant_id, c.cancellation_id, c.fence_seq, c.drained_at, r.run_id
  FROM cancellations c JOIN agent_runs r ON r.tenant_id = c.tenant_id AND r.orchestration_group_id = c.group_id
  WHERE c.scope = 'group' AND (r.finalized_seq IS NULL OR r.finalized_seq >= c.fence_seq)
), under AS (
  SELECT * FROM first
  UNION
  SELECT u.tenant_id, u.cancellation_id, u.fence_seq, u.drained_at, r.run_id
  FROM under u JOIN agent_runs r ON r.tenant_id = u.tenant_id AND r.parent_run_id = u.run_id
)
"""

FENCES = (
    Check(
        "open_fences",
        """
        SELECT t.tenant_id, format('tree %s: open_fences is %s, and %s are not drained', t.root_run_id, t.open_fences,
          coalesce(c.n, 0)) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id, count(*) AS n FROM cancellations WHERE drained_at IS NULL
          GROUP BY 1, 2) c ON c.tenant_id = t.tenant_id AND c.root_run_id = t.root_run_id
        WHERE t.open_fences <> coalesce(c.n, 0)
        """,
    ),
    Check(
        "escaped",
        f"""
        {UNDER_FENCES}
        SELECT u.tenant_id, format('run %s: spawned at %s, started at %s, %s at %s, under fence %s of %s', r.run_id,
          r.spawned_seq, r.started_seq, r.status, r.finalized_seq, u.cancellation_id, u.fence_seq) AS finding
        FROM under u JOIN agent_runs r ON r.tenant_id = u.tenant_id AND r.run_id = u.run_id
        WHERE r.spawned_seq > u.fence_seq OR r.started_seq > u.fence_seq
          OR (r.finalized_seq > u.fence_seq AND r.status <> 'cancelled')
        """,
    ),
    Check(
        "drained",
        f"""
        {UNDER_FENCES}
        SELECT u.tenant_id, format('run %s: is %s, and fence %s above it is drained', r.run_id, r.status,
          u.cancellation_id) AS finding
        FROM under u JOIN agent_runs r ON r.tenant_id = u.tenant_id AND r.run_id = u.run_id
        WHERE u.drained_at IS NOT NULL AND r.status IN ('queued', 'running', 'paused')
        """,
    ),
    Check(
        "cancelled_count",
        """
        SELECT c.tenant_id, format('tree %s: its fences count %s cancelled runs, and %s are cancelled', c.root_run_id,
          c.n, coalesce(r.n, 0)) AS finding
        FROM (SELECT tenant_id, root_run_id, sum(cancelled_count) AS n FROM cancellations GROUP BY 1, 2) c
        LEFT JOIN (SELECT tenant_id, root_run_id, count(*) AS n FROM agent_runs WHERE status = 'cancelled'
          GROUP BY 1, 2) r ON r.tenant_id = c.tenant_id AND r.root_run_id = c.root_run_id
        WHERE c.n > coalesce(r.n, 0)
        """,
    ),
)
