"""The rows beside a run: payload, deadline, lease."""

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
)
