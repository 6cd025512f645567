"""What must be true of a database, whatever happened to the processes that wrote it, asked in SQL.

`python -m load.audit URL` prints what is wrong, a sentence a line, and fails if there is any. Retention takes events
and decisions away by age; of a database on which it has run, those checks say so.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg

# Every check selects `tenant_id` and `finding`; a database in order gives no row.


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: its name, and the query that finds whatever breaks it."""

    name: str
    sql: str


LINEAGE = (
    Check(
        "children_total",
        """
        SELECT t.tenant_id, format('tree %s: children_total is %s, and %s runs are below its root',
          t.root_run_id, t.children_total, coalesce(r.n, 0)) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id, count(*) AS n FROM agent_runs WHERE parent_run_id IS NOT NULL
          GROUP BY 1, 2) r ON r.tenant_id = t.tenant_id AND r.root_run_id = t.root_run_id
        WHERE t.children_total <> coalesce(r.n, 0)
        """,
    ),
    Check(
        "children_count",
        """
        SELECT p.tenant_id, format('run %s: children_count is %s, and it has %s children',
          p.run_id, p.children_count, coalesce(c.n, 0)) AS finding
        FROM agent_runs p
        LEFT JOIN (SELECT tenant_id, parent_run_id, count(*) AS n FROM agent_runs GROUP BY 1, 2) c
          ON c.tenant_id = p.tenant_id AND c.parent_run_id = p.run_id
        WHERE p.children_count <> coalesce(c.n, 0)
        """,
    ),
    Check(
        "status_counters",
        """
        SELECT t.tenant_id, format('tree %s: counts %s queued, %s running, %s paused, and has %s, %s, %s',
          t.root_run_id, t.queued_runs, t.running_runs, t.paused_runs, coalesce(r.queued, 0), coalesce(r.running, 0),
          coalesce(r.paused, 0)) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id,
            count(*) FILTER (WHERE status = 'queued') AS queued,
            count(*) FILTER (WHERE status = 'running') AS running,
            count(*) FILTER (WHERE status = 'paused') AS paused
          FROM agent_runs GROUP BY 1, 2) r ON r.tenant_id = t.tenant_id AND r.root_run_id = t.root_run_id
        WHERE (t.queued_runs, t.running_runs, t.paused_runs)
          <> (coalesce(r.queued, 0), coalesce(r.running, 0), coalesce(r.paused, 0))
        """,
    ),
    Check(
        "root",
        """
        SELECT t.tenant_id, format('tree %s: its root run is missing', t.root_run_id) AS finding
        FROM run_trees t
        LEFT JOIN agent_runs r ON r.tenant_id = t.tenant_id AND r.run_id = t.root_run_id AND r.parent_run_id IS NULL
        WHERE r.run_id IS NULL
        """,
    ),
    Check(
        "depth",
        """
        SELECT c.tenant_id, format('run %s: its depth is %s, and that of its parent %s',
          c.run_id, c.depth, coalesce(p.depth::text, 'none')) AS finding
        FROM agent_runs c LEFT JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE c.depth <> coalesce(p.depth + 1, 0)
        """,
    ),
    Check(
        "same_tree",
        """
        SELECT c.tenant_id, format('run %s: is in tree %s, and its parent in %s', c.run_id, c.root_run_id,
          coalesce(p.root_run_id::text, 'none')) AS finding
        FROM agent_runs c LEFT JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE c.parent_run_id IS NOT NULL AND c.root_run_id IS DISTINCT FROM p.root_run_id
        """,
    ),
    Check(
        "spawn_key",
        """
        SELECT tenant_id, format('run %s: has %s children with the key %s', parent_run_id, count(*), spawn_key)
          AS finding
        FROM agent_runs WHERE parent_run_id IS NOT NULL GROUP BY tenant_id, parent_run_id, spawn_key
        HAVING count(*) > 1 OR spawn_key IS NULL
        """,
    ),
    Check(
        "root_key",
        """
        SELECT k.tenant_id, format('idempotency key %s of agent %s: its run %s is missing, or no root of that agent',
          k.idempotency_key, k.agent_id, k.run_id) AS finding
        FROM root_run_keys k
        LEFT JOIN agent_runs r ON r.tenant_id = k.tenant_id AND r.run_id = k.run_id AND r.agent_id = k.agent_id
          AND r.parent_run_id IS NULL
        WHERE r.run_id IS NULL
        """,
    ),
    Check(
        "scopes_shrink",
        """
        SELECT c.tenant_id, format('run %s: holds %s, and its parent %s', c.run_id, c.effective_scopes,
          p.effective_scopes) AS finding
        FROM agent_runs c JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE NOT c.effective_scopes <@ p.effective_scopes
        """,
    ),
    Check(
        "acted_after_its_end",
        """
        SELECT c.tenant_id, format('run %s: was spawned at %s by a run that had ended at %s', c.run_id, c.spawned_seq,
          p.finalized_seq) AS finding
        FROM agent_runs c JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE c.spawned_seq >= p.finalized_seq
        """,
    ),
)

EVENTS = (
    Check(
        "sequence",
        """
        SELECT t.tenant_id, format('tree %s: seq is %s, and it has %s events with %s numbers from %s to %s',
          t.root_run_id, t.seq, coalesce(e.n, 0), coalesce(e.numbers, 0), e.first, e.last) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id, count(*) AS n, count(DISTINCT seq) AS numbers, min(seq) AS first,
            max(seq) AS last FROM run_events GROUP BY 1, 2) e
          ON e.tenant_id = t.tenant_id AND e.root_run_id = t.root_run_id
        WHERE (coalesce(e.n, 0), coalesce(e.numbers, 0), e.first, e.last) IS DISTINCT FROM (t.seq, t.seq, 1, t.seq)
        """,
    ),
    Check(
        "event_without_tree",
        """
        SELECT e.tenant_id, format('event %s of tree %s: there is no such tree', e.seq, e.root_run_id) AS finding
        FROM run_events e LEFT JOIN run_trees t ON t.tenant_id = e.tenant_id AND t.root_run_id = e.root_run_id
        WHERE t.root_run_id IS NULL
        """,
    ),
    Check(
        "transitions_in_order",
        """
        SELECT r.tenant_id, format('run %s: spawned at %s, started at %s, ended at %s, in a tree that is at %s',
          r.run_id, r.spawned_seq, r.started_seq, r.finalized_seq, t.seq) AS finding
        FROM agent_runs r JOIN run_trees t ON t.tenant_id = r.tenant_id AND t.root_run_id = r.root_run_id
        WHERE r.spawned_seq < 1 OR r.started_seq < r.spawned_seq OR r.finalized_seq <= r.spawned_seq
          OR r.finalized_seq <= r.started_seq
          OR greatest(r.spawned_seq, r.started_seq, r.finalized_seq) > t.seq
        """,
    ),
    Check(
        "transitions_told",
        """
        SELECT r.tenant_id, format('run %s: no event with the number %s tells of it', r.run_id, q.seq) AS finding
        FROM agent_runs r
        CROSS JOIN LATERAL (VALUES (r.spawned_seq), (r.started_seq), (r.finalized_seq)) AS q (seq)
        LEFT JOIN (SELECT tenant_id, root_run_id, seq, unnest(subjects) AS run_id FROM run_events) e
          ON e.tenant_id = r.tenant_id AND e.root_run_id = r.root_run_id AND e.seq = q.seq AND e.run_id = r.run_id
        WHERE q.seq IS NOT NULL AND e.seq IS NULL
        """,
    ),
)

_UNDER_FENCES = """
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
        {_UNDER_FENCES}
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
        {_UNDER_FENCES}
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
)

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

SIDE_TABLES = (
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

CHECKS = (*LINEAGE, *EVENTS, *FENCES, *GROUPS, *DECISIONS, *SIDE_TABLES)


async def audit(
    connection: asyncpg.Connection, *, tenant_id: UUID | str | None = None, checks: Sequence[Check] = CHECKS
) -> list[str]:
    """What is wrong with a database, or with one tenant in it; each finding a sentence that begins with its check.

    All the checks see the same instant: the database may be in use meanwhile.
    """
    tenant = UUID(str(tenant_id)) if tenant_id is not None else None
    findings: list[str] = []
    async with _one_instant(connection):
        for check in checks:
            rows = await connection.fetch(
                f"SELECT q.finding FROM ({check.sql}) q WHERE $1::uuid IS NULL OR q.tenant_id = $1 ORDER BY 1", tenant
            )
            findings.extend(f"{check.name}: {row['finding']}" for row in rows)
    return findings


@asynccontextmanager
async def _one_instant(connection: asyncpg.Connection) -> AsyncIterator[None]:
    if connection.is_in_transaction():
        yield
        return
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield


async def main(url: str) -> int:
    """Audit the database at a URL; how many findings there are."""
    connection = await asyncpg.connect(url.replace("+asyncpg", "", 1))
    try:
        findings = await audit(connection)
    finally:
        await connection.close()
    sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return len(findings)


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(sys.argv[1])) else 0)
