"""What policy has decided, and what came of it."""

from load.audit.check import Check

# A run is allowed by its own decision, a member of a group by its group's.
_ALLOWED = """
SELECT r.tenant_id, r.run_id, r.root_run_id, r.parent_run_id, r.depth, r.effective_scopes, r.spawned_seq,
  coalesce(g.decision_id, l.decision_id) AS decision_id
FROM agent_runs r
LEFT JOIN orchestration_groups g ON g.tenant_id = r.tenant_id AND g.group_id = r.orchestration_group_id
LEFT JOIN run_payloads l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id
"""
# Peers share their number, so a group's members count together.
_COUNTED = """
SELECT r.tenant_id, r.run_id,
  count(*) OVER (PARTITION BY r.tenant_id, r.parent_run_id ORDER BY r.spawned_seq) AS fanout,
  count(*) OVER (PARTITION BY r.tenant_id, r.root_run_id ORDER BY r.spawned_seq) AS total
FROM agent_runs r WHERE r.parent_run_id IS NOT NULL
"""

DECISIONS = (
    Check(
        "allowed",
        f"""
        SELECT r.tenant_id, format('run %s: no decision that allows it is on record (%s: %s)', r.run_id,
          r.decision_id, coalesce(d.outcome, 'missing')) AS finding
        FROM ({_ALLOWED}) r
        LEFT JOIN policy_decisions d ON d.tenant_id = r.tenant_id AND d.decision_id = r.decision_id
        WHERE d.outcome IS DISTINCT FROM 'allow'
          OR d.caller_run_id IS DISTINCT FROM r.parent_run_id
          OR (d.action = 'start_run') <> (r.parent_run_id IS NULL)
        """,
    ),
    Check(
        "allowed_for_nothing",
        """
        SELECT d.tenant_id, format('decision %s: allowed %s, and %s runs or groups came of it', d.decision_id,
          d.action, coalesce(made.n, 0)) AS finding
        FROM policy_decisions d
        LEFT JOIN (SELECT tenant_id, decision_id, count(*) AS n FROM (
            SELECT tenant_id, decision_id FROM run_payloads WHERE decision_id IS NOT NULL
            UNION ALL
            SELECT tenant_id, decision_id FROM orchestration_groups) q
          GROUP BY 1, 2) made ON made.tenant_id = d.tenant_id AND made.decision_id = d.decision_id
        WHERE d.outcome = 'allow' AND d.action IN ('start_run', 'spawn_run', 'spawn_group')
          AND made.n IS DISTINCT FROM 1
        """,
    ),
    Check(
        "limits",
        f"""
        SELECT r.tenant_id, format('run %s: is at depth %s, child %s of its parent and %s of its tree,'
          ' where the decision allowed %s', r.run_id, r.depth, n.fanout, n.total, d.result -> 'limits') AS finding
        FROM ({_ALLOWED}) r
        JOIN ({_COUNTED}) n ON n.tenant_id = r.tenant_id AND n.run_id = r.run_id
        JOIN policy_decisions d ON d.tenant_id = r.tenant_id AND d.decision_id = r.decision_id
        WHERE (r.depth <= (d.result -> 'limits' ->> 'max_depth')::bigint
          AND n.fanout <= (d.result -> 'limits' ->> 'max_fanout')::bigint
          AND n.total <= (d.result -> 'limits' ->> 'max_children_total')::bigint) IS NOT TRUE
        """,
    ),
    Check(
        "scopes_allowed",
        f"""
        SELECT r.tenant_id, format('run %s: holds %s, where the decision allowed %s', r.run_id, r.effective_scopes,
          d.result -> 'effective_scopes') AS finding
        FROM ({_ALLOWED}) r
        JOIN policy_decisions d ON d.tenant_id = r.tenant_id AND d.decision_id = r.decision_id
        CROSS JOIN LATERAL (SELECT
          ARRAY(SELECT json_array_elements_text(d.result -> 'effective_scopes')) AS granted,
          ARRAY(SELECT json_array_elements_text(coalesce(d.input -> 'request' -> 'scopes', '[]'))) AS asked,
          ARRAY(SELECT json_array_elements_text(coalesce(d.result -> 'policy' -> 'allowed_scope_subset', '[]')))
            AS permitted) s
        WHERE NOT (r.effective_scopes <@ s.granted AND r.effective_scopes <@ s.asked
          AND (cardinality(s.permitted) = 0 OR r.effective_scopes <@ s.permitted))
        """,
    ),
    Check(
        "decision_told",
        """
        SELECT d.tenant_id, format('decision %s: %s of %s, and %s events tell of it', d.decision_id, d.outcome,
          d.action, count(e.seq)) AS finding
        FROM policy_decisions d
        LEFT JOIN run_events e ON e.tenant_id = d.tenant_id AND e.root_run_id = d.root_run_id
          AND e.type = CASE d.outcome WHEN 'allow' THEN 'orchestration.spawn_decision'
            ELSE 'orchestration.policy_deny' END
          AND e.data ->> 'decision_id' = d.decision_id::text
        WHERE d.root_run_id IS NOT NULL AND d.action IN ('spawn_run', 'spawn_group')
          AND d.outcome IN ('allow', 'deny')
        GROUP BY d.tenant_id, d.decision_id, d.outcome, d.action HAVING count(e.seq) <> 1
        """,
    ),
)
