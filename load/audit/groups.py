"""Groups, their members and their decisions."""

from load.audit.check import Check
from load.audit.fences import UNDER_FENCES

# What the members that had ended by some number amount to, as a group's parameters have it; null while undecided.
_VERDICT = """
CASE
  WHEN {mode} = 'quorum' THEN
    CASE WHEN {ok} >= g.quorum_threshold THEN 'completed' WHEN g.size - {bad} < g.quorum_threshold THEN 'failed' END
  WHEN {mode} = 'first_success' THEN
    CASE WHEN {ok} > 0 THEN 'completed' WHEN {bad} = g.size THEN 'failed' END
  WHEN {mode} = 'fail_fast' THEN
    CASE WHEN {bad} > 0 THEN 'failed' WHEN {ok} = g.size THEN 'completed' END
  WHEN {ok} + {bad} = g.size THEN CASE WHEN {bad} > 0 THEN 'completed_with_errors' ELSE 'completed' END
END
"""
_MODE = """
(CASE WHEN g.join_mode IN ('all', 'best_effort') THEN g.failure_policy ELSE g.join_mode END)
"""


def _verdict(prefix: str) -> str:
    return _VERDICT.format(mode=_MODE, ok=f"m.{prefix}ok", bad=f"m.{prefix}bad")


_MEMBERS = """
CROSS JOIN LATERAL (
  SELECT count(*) AS n,
    count(*) FILTER (WHERE r.status = 'completed') AS ok,
    count(*) FILTER (WHERE r.status IN ('failed', 'cancelled')) AS bad,
    count(*) FILTER (WHERE r.status = 'completed' AND r.finalized_seq <= g.decided_seq) AS then_ok,
    count(*) FILTER (WHERE r.status IN ('failed', 'cancelled') AND r.finalized_seq <= g.decided_seq) AS then_bad,
    count(*) FILTER (WHERE r.status = 'completed' AND r.finalized_seq < g.decided_seq) AS before_ok,
    count(*) FILTER (WHERE r.status IN ('failed', 'cancelled') AND r.finalized_seq < g.decided_seq) AS before_bad,
    array_agg(r.ordinal ORDER BY r.ordinal) AS ordinals
  FROM agent_runs r
  WHERE r.tenant_id = g.tenant_id AND r.root_run_id = g.root_run_id AND r.spawned_seq = g.spawned_seq
    AND r.orchestration_group_id = g.group_id
) m
"""

GROUPS = (
    Check(
        "group_size",
        f"""
        SELECT g.tenant_id, format('group %s: its size is %s, and it has %s members', g.group_id, g.size, m.n)
          AS finding
        FROM orchestration_groups g {_MEMBERS}
        WHERE g.size <> m.n
        """,
    ),
    Check(
        "group_ordinals",
        f"""
        SELECT g.tenant_id, format('group %s: the ordinals of its members are %s', g.group_id, m.ordinals) AS finding
        FROM orchestration_groups g {_MEMBERS}
        WHERE m.n > 0 AND m.ordinals IS DISTINCT FROM (SELECT array_agg(i) FROM generate_series(0, m.n::int - 1) i)
        """,
    ),
    Check(
        "group_members",
        """
        SELECT g.tenant_id, format('group %s: %s members have another key, parent, tree or number', g.group_id,
          count(*)) AS finding
        FROM orchestration_groups g
        JOIN agent_runs r ON r.tenant_id = g.tenant_id AND r.orchestration_group_id = g.group_id
        WHERE r.spawn_key <> g.spawn_key_prefix || ':' || r.ordinal OR r.parent_run_id <> g.orchestrator_run_id
          OR r.root_run_id <> g.root_run_id OR r.spawned_seq <> g.spawned_seq
        GROUP BY g.tenant_id, g.group_id
        """,
    ),
    Check(
        "group_missing",
        """
        SELECT r.tenant_id, format('run %s: is a member of group %s, which does not exist', r.run_id,
          r.orchestration_group_id) AS finding
        FROM agent_runs r
        LEFT JOIN orchestration_groups g ON g.tenant_id = r.tenant_id AND g.group_id = r.orchestration_group_id
        WHERE r.orchestration_group_id IS NOT NULL AND g.group_id IS NULL
        """,
    ),
    Check(
        "group_tally",
        f"""
        SELECT g.tenant_id, format('group %s: counts %s successes and %s failures, and has %s and %s', g.group_id,
          g.success_count, g.failure_count, m.ok, m.bad) AS finding
        FROM orchestration_groups g {_MEMBERS}
        WHERE (g.success_count, g.failure_count) <> (m.ok, m.bad)
        """,
    ),
    Check(
        "group_key",
        """
        SELECT tenant_id, format('run %s: has %s groups with the prefix %s', orchestrator_run_id, count(*),
          spawn_key_prefix) AS finding
        FROM orchestration_groups GROUP BY tenant_id, orchestrator_run_id, spawn_key_prefix HAVING count(*) > 1
        """,
    ),
    Check(
        "decided_seq",
        """
        SELECT g.tenant_id, format('group %s: is %s, made at %s, decided at %s, and event %s is %s', g.group_id,
          g.status, g.spawned_seq, g.decided_seq, g.decided_seq, coalesce(e.type, 'missing')) AS finding
        FROM orchestration_groups g
        LEFT JOIN run_events e ON e.tenant_id = g.tenant_id AND e.root_run_id = g.root_run_id
          AND e.seq = g.decided_seq
        WHERE (g.decided_seq IS NOT NULL)
            <> (g.status IN ('completed', 'completed_with_errors', 'failed', 'timed_out'))
          OR g.decided_seq <= g.spawned_seq
          OR (g.decided_seq IS NOT NULL AND e.seq IS NULL)
          OR (g.status = 'empty') <> (g.size = 0)
        """,
    ),
    Check(
        "decision_of_group",
        f"""
        SELECT g.tenant_id, format('group %s: was decided %s at %s, when %s had succeeded and %s failed of %s',
          g.group_id, g.status, g.decided_seq, m.then_ok, m.then_bad, g.size) AS finding
        FROM orchestration_groups g {_MEMBERS}
        WHERE (g.status IN ('completed', 'completed_with_errors', 'failed')
            AND g.status IS DISTINCT FROM {_verdict("then_")})
          OR (g.status = 'timed_out' AND {_verdict("then_")} IS NOT NULL)
        """,
    ),
    Check(
        "decided_late",
        f"""
        SELECT g.tenant_id, format('group %s: is %s, and could have been decided before %s', g.group_id, g.status,
          coalesce(g.decided_seq::text, 'now')) AS finding
        FROM orchestration_groups g {_MEMBERS}
        WHERE (g.status = 'running' AND {_verdict("")} IS NOT NULL)
          OR (g.decided_seq IS NOT NULL AND {_verdict("before_")} IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM run_events e WHERE e.tenant_id = g.tenant_id
              AND e.root_run_id = g.root_run_id AND e.seq = g.decided_seq
              AND e.type = 'orchestration.join_decision'))
        """,
    ),
    Check(
        "join_told",
        """
        SELECT g.tenant_id, format('group %s: is %s, decided at %s, and %s events tell of its decision: %s, at %s',
          g.group_id, g.status, g.decided_seq, coalesce(e.n, 0), e.status, e.seq) AS finding
        FROM orchestration_groups g
        LEFT JOIN (SELECT tenant_id, root_run_id, data ->> 'group_id' AS group_id, count(*) AS n,
            min(data ->> 'status') AS status, min(seq) AS seq
          FROM run_events WHERE type = 'orchestration.join_decision' AND (data ->> 'complete')::boolean
          GROUP BY 1, 2, 3) e
          ON e.tenant_id = g.tenant_id AND e.root_run_id = g.root_run_id AND e.group_id = g.group_id::text
        WHERE CASE WHEN g.decided_seq IS NULL THEN e.n > 0
          ELSE (e.n, e.status) IS DISTINCT FROM (1, g.status) OR e.seq < g.decided_seq END
        """,
    ),
    Check(
        "losers_fenced",
        f"""
        SELECT g.tenant_id, format('group %s: is %s with %s members left, and has %s fences for %s, set at %s for %s',
          g.group_id, g.status, l.n, coalesce(c.n, 0), g.propagation_reason, c.seqs, c.reasons) AS finding
        FROM orchestration_groups g {_MEMBERS}
        CROSS JOIN LATERAL (
          SELECT CASE WHEN g.decided_seq IS NULL THEN 0 ELSE g.size - m.then_ok - m.then_bad END AS n
        ) l
        LEFT JOIN (SELECT tenant_id, group_id, count(*) AS n, array_agg(fence_seq) AS seqs,
            array_agg(reason) AS reasons, array_agg(run_id) AS run_ids
          FROM cancellations WHERE scope = 'group' GROUP BY 1, 2) c
          ON c.tenant_id = g.tenant_id AND c.group_id = g.group_id
        WHERE CASE WHEN l.n = 0 THEN c.n > 0 OR g.propagation_reason IS NOT NULL
          ELSE (c.n, c.reasons[1], c.run_ids[1]) IS DISTINCT FROM (1, g.propagation_reason, g.orchestrator_run_id)
            OR g.propagation_reason IS NULL OR c.seqs[1] <= g.decided_seq END
        """,
    ),
    Check(
        "closed_uncovered",
        f"""
        {UNDER_FENCES}
        SELECT g.tenant_id, format('group %s: is cancelled, and no fence covers its orchestrator %s', g.group_id,
          g.orchestrator_run_id) AS finding
        FROM orchestration_groups g
        LEFT JOIN under u ON u.tenant_id = g.tenant_id AND u.run_id = g.orchestrator_run_id
        WHERE g.status = 'cancelled' AND u.run_id IS NULL
        """,
    ),
    Check(
        "decided_under_fence",
        f"""
        {UNDER_FENCES}
        SELECT g.tenant_id, format('group %s: was decided at %s, under fence %s of %s', g.group_id, g.decided_seq,
          u.cancellation_id, u.fence_seq) AS finding
        FROM orchestration_groups g
        JOIN under u ON u.tenant_id = g.tenant_id AND u.run_id = g.orchestrator_run_id
        WHERE g.decided_seq > u.fence_seq
        """,
    ),
    # A join that names another timeout moves the deadline with it.
    Check(
        "timed_out_early",
        """
        SELECT tenant_id, format('group %s: was timed out at %s, before its deadline %s', group_id, decided_at,
          deadline) AS finding
        FROM orchestration_groups WHERE status = 'timed_out' AND decided_at < deadline
        """,
    ),
)
