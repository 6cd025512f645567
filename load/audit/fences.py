"""Fences, and what they cover."""

from load.audit.check import Check
from load.audit.events import CANCELLED_BY, LIFECYCLE

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
        "fence_told",
        """
        SELECT c.tenant_id, format('fence %s: was set at %s, and the event with that number is %s of %s',
          c.cancellation_id, c.fence_seq, coalesce(e.type, 'missing'), e.data ->> 'cancellation_id') AS finding
        FROM cancellations c
        LEFT JOIN run_events e ON e.tenant_id = c.tenant_id AND e.root_run_id = c.root_run_id AND e.seq = c.fence_seq
        WHERE e.type IS DISTINCT FROM 'orchestration.cancellation_propagation'
          OR e.data ->> 'cancellation_id' IS DISTINCT FROM c.cancellation_id::text
        """,
    ),
    Check(
        "fence_missing",
        """
        SELECT e.tenant_id, format('event %s of tree %s: tells of fence %s, which does not exist', e.seq, e.root_run_id,
          e.data ->> 'cancellation_id') AS finding
        FROM run_events e
        LEFT JOIN cancellations c ON c.tenant_id = e.tenant_id AND c.root_run_id = e.root_run_id
          AND c.cancellation_id::text = e.data ->> 'cancellation_id'
        WHERE e.type = 'orchestration.cancellation_propagation' AND c.cancellation_id IS NULL
        """,
    ),
    # Grouped and not joined: of what is covered and told of, the planner knows too little to choose a join well.
    Check(
        "told_under_fence",
        f"""
        {UNDER_FENCES}
        SELECT tenant_id, format('run %s: is told to be running or paused at %s, under a fence of %s', run_id,
          max(told_seq), min(fence_seq)) AS finding
        FROM (
          SELECT tenant_id, run_id, fence_seq, NULL::bigint AS told_seq FROM under
          UNION ALL
          SELECT e.tenant_id, e.run_id, NULL, e.seq FROM ({LIFECYCLE}) e WHERE e.status IN ('running', 'paused')
        ) run
        GROUP BY tenant_id, run_id HAVING max(told_seq) > min(fence_seq)
        """,
    ),
    # A difference of sets, because of a join the planner may expect one row and read all that is covered for each run.
    Check(
        "cancelled_uncovered",
        f"""
        {UNDER_FENCES}
        SELECT tenant_id, format('run %s: was cancelled at %s by fence %s, which does not cover it', run_id, seq,
          cancellation_id) AS finding
        FROM (
          SELECT d.tenant_id, d.run_id, d.seq, d.cancellation_id
          FROM ({CANCELLED_BY}) d
          JOIN agent_runs r ON r.tenant_id = d.tenant_id AND r.run_id = d.run_id AND r.finalized_seq = d.seq
          EXCEPT
          SELECT u.tenant_id, u.run_id, r.finalized_seq, u.cancellation_id::text
          FROM under u JOIN agent_runs r ON r.tenant_id = u.tenant_id AND r.run_id = u.run_id
          WHERE r.finalized_seq > u.fence_seq
        ) uncovered
        """,
    ),
    # What answers list as cancelled by a fence is what these events tell.
    Check(
        "cancelled_count",
        f"""
        SELECT c.tenant_id, format('fence %s: counts %s cancelled runs; the events of %s ends name it',
          c.cancellation_id, c.cancelled_count, coalesce(d.n, 0)) AS finding
        FROM cancellations c
        LEFT JOIN (SELECT tenant_id, cancellation_id, count(*) AS n FROM ({CANCELLED_BY}) d GROUP BY 1, 2) d
          ON d.tenant_id = c.tenant_id AND d.cancellation_id = c.cancellation_id::text
        WHERE c.cancelled_count <> coalesce(d.n, 0)
        """,
    ),
    Check(
        "scanned_count",
        """
        SELECT tenant_id, format('fence %s: has cancelled %s runs, and looked at %s', cancellation_id, cancelled_count,
          scanned_count) AS finding
        FROM cancellations WHERE scanned_count < cancelled_count
        """,
    ),
    # Fences overlap; each run that ends as cancelled under one or more of them is counted by one.
    Check(
        "cancelled_sum",
        f"""
        {UNDER_FENCES}
        SELECT c.tenant_id, format('tree %s: its fences count %s cancelled runs, and %s were cancelled under them',
          c.root_run_id, c.n, coalesce(r.n, 0)) AS finding
        FROM (SELECT tenant_id, root_run_id, sum(cancelled_count) AS n FROM cancellations GROUP BY 1, 2) c
        LEFT JOIN (SELECT r.tenant_id, r.root_run_id, count(DISTINCT r.run_id) AS n
          FROM under u JOIN agent_runs r ON r.tenant_id = u.tenant_id AND r.run_id = u.run_id
          WHERE r.status = 'cancelled' AND r.finalized_seq > u.fence_seq GROUP BY 1, 2) r
          ON r.tenant_id = c.tenant_id AND r.root_run_id = c.root_run_id
        WHERE c.n <> coalesce(r.n, 0)
        """,
    ),
    # A policy that was changed about when the run ended may not be the one that was in force then. Only runs without a
    # fence are walked down from.
    Check(
        "parent_close",
        """
        WITH RECURSIVE closed AS (
          SELECT r.tenant_id, r.run_id, r.status, r.finalized_seq
          FROM agent_runs r
          JOIN orchestrator_policies p ON p.tenant_id = r.tenant_id AND p.agent_id = r.agent_id
          WHERE p.is_active AND p.parent_close_policy = 'cancel' AND p.updated_at < r.finalized_at - interval '10 s'
            AND r.status IN ('completed', 'failed') AND r.children_count > 0
            AND NOT EXISTS (SELECT 1 FROM cancellations c WHERE c.tenant_id = r.tenant_id AND c.run_id = r.run_id
              AND c.scope = 'children' AND c.fence_seq > r.finalized_seq)
        ), below AS (
          SELECT tenant_id, run_id AS closed_id, status AS closed_as, finalized_seq AS closed_seq, run_id,
            NULL::bigint AS spawned_seq, NULL::bigint AS ended_seq
          FROM closed
          UNION ALL
          SELECT b.tenant_id, b.closed_id, b.closed_as, b.closed_seq, r.run_id, r.spawned_seq, r.finalized_seq
          FROM below b JOIN agent_runs r ON r.tenant_id = b.tenant_id AND r.parent_run_id = b.run_id
        )
        SELECT tenant_id, format('run %s: %s at %s, left %s runs active that its policy cancels, and set no fence',
          closed_id, closed_as, closed_seq, count(*)) AS finding
        FROM below WHERE spawned_seq < closed_seq AND (ended_seq IS NULL OR ended_seq > closed_seq)
        GROUP BY tenant_id, closed_id, closed_as, closed_seq
        """,
    ),
)
