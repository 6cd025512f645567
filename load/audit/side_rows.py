"""The rows beside runs: payloads, deadlines, leases."""

from load.audit.check import Check

SIDE_ROWS = (
    Check(
        "payload",
        """
        SELECT r.tenant_id, format('run %s: has no payload', r.run_id) AS finding
        FROM agent_runs r LEFT JOIN run_payloads l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id
        WHERE l.run_id IS NULL
        """,
    ),
    Check(
        "payload_of_nothing",
        """
        SELECT l.tenant_id, format('run %s: has a payload, and does not exist', l.run_id) AS finding
        FROM run_payloads l LEFT JOIN agent_runs r ON r.tenant_id = l.tenant_id AND r.run_id = l.run_id
        WHERE r.run_id IS NULL
        """,
    ),
    Check(
        "deadline",
        """
        SELECT r.tenant_id, format('run %s: is %s, with a timeout of %s s, and its deadline is %s', r.run_id, r.status,
          coalesce(r.timeout_s::text, 'no'), coalesce(d.deadline::text, 'missing')) AS finding
        FROM agent_runs r LEFT JOIN run_deadlines d ON d.tenant_id = r.tenant_id AND d.run_id = r.run_id
        WHERE CASE WHEN r.status IN ('completed', 'failed', 'cancelled') THEN d.run_id IS NOT NULL
          ELSE r.timeout_s IS NOT NULL AND d.run_id IS NULL END
        """,
    ),
    Check(
        "lease",
        """
        SELECT r.tenant_id, format('run %s: is %s, and its lease is held until %s', r.run_id, r.status, l.expires_at)
          AS finding
        FROM run_leases l JOIN agent_runs r ON r.tenant_id = l.tenant_id AND r.run_id = l.run_id
        WHERE l.lease IS NOT NULL AND r.status NOT IN ('running', 'paused')
        """,
    ),
    # What a worker executes runs under its lease; the row stays, so that its attempt fences whoever held it before.
    # Only that of a first lease goes, where its worker had hung up: it is queued again, and may end without one.
    Check(
        "lease_missing",
        """
        SELECT r.tenant_id, format('run %s: is %s, was started at %s, and %s', r.run_id, r.status, r.started_seq,
          CASE WHEN l.run_id IS NULL THEN 'nobody was granted a lease' ELSE 'nobody holds it' END) AS finding
        FROM agent_runs r LEFT JOIN run_leases l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id
        WHERE r.background AND ((r.status IN ('running', 'paused') AND l.lease IS NULL)
          OR (r.status = 'completed' AND l.run_id IS NULL))
        """,
    ),
    Check(
        "attempts",
        """
        SELECT tenant_id, format('run %s: is at attempt %s of %s', run_id, attempt, max_attempts) AS finding
        FROM run_leases WHERE attempt > max_attempts
        """,
    ),
    Check(
        "tree_of_side_rows",
        """
        SELECT s.tenant_id, format('%s of run %s: names tree %s, and the run is in %s', s.what, s.run_id, s.root_run_id,
          coalesce(r.root_run_id::text, 'none')) AS finding
        FROM (
          SELECT 'lease' AS what, tenant_id, run_id, root_run_id FROM run_leases
          UNION ALL SELECT 'deadline', tenant_id, run_id, root_run_id FROM run_deadlines
          UNION ALL SELECT 'fence', tenant_id, run_id, root_run_id FROM cancellations
          UNION ALL SELECT 'group', tenant_id, orchestrator_run_id, root_run_id FROM orchestration_groups
        ) s
        LEFT JOIN agent_runs r ON r.tenant_id = s.tenant_id AND r.run_id = s.run_id
        WHERE s.root_run_id IS DISTINCT FROM r.root_run_id
        """,
    ),
)
