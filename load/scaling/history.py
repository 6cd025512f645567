"""Runs that have ended, written into the tables as fast as they take them: whole trees, in order by the audit.

Each tree is a root and a group of its children, all completed, with the decisions, events, payloads and leases that the
service would have left. The two decisions are copies of those that the service has made for a small tree of its own.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import asyncpg

MEMBERS = 100
TREES_AT_ONCE = 500
# Each on a connection of its own; the server has two cores where the figures are taken.
WRITERS = 2
# Rows that are enough for the planner to see; ANALYZE follows at the end.
MAINTENANCE = "VACUUM (ANALYZE) {table}"
TABLES = (
    "run_trees",
    "agent_runs",
    "orchestration_groups",
    "run_payloads",
    "run_leases",
    "run_events",
    "policy_decisions",
)

PREPARE = """
CREATE TEMP TABLE tree (
  tree int, root uuid, start_decision uuid, group_id uuid, group_decision uuid, members uuid[]
);
CREATE TEMP TABLE member (tree int, root uuid, group_id uuid, ordinal int, run_id uuid);
CREATE TEMP TABLE given (
  tenant_id uuid, template uuid, orchestrator uuid, worker uuid, root_scopes text[], member_scopes text[], members int
)
"""

# Whose trees they are, after which tree, and of how many members.
GIVE = """
INSERT INTO given
SELECT r.tenant_id, r.run_id, r.agent_id, c.agent_id, r.effective_scopes, c.effective_scopes, $3::int
FROM agent_runs r JOIN agent_runs c ON c.tenant_id = r.tenant_id AND c.parent_run_id = r.run_id
WHERE r.tenant_id = $1 AND r.run_id = $2
LIMIT 1
"""

# Ids in the order of time, as the service makes them: an index then grows at its right edge.
DRAW = (
    "TRUNCATE tree, member",
    """
INSERT INTO tree (tree, root, start_decision, group_id, group_decision)
SELECT n, uuidv7(), uuidv7(), uuidv7(), uuidv7() FROM generate_series(1, $1::int) AS n
""",
    """
INSERT INTO member SELECT t.tree, t.root, t.group_id, o, uuidv7()
FROM tree t CROSS JOIN generate_series(0, $1::int - 1) AS o ORDER BY t.tree, o
""",
    """
UPDATE tree t SET members = m.run_ids
FROM (SELECT tree, array_agg(run_id ORDER BY ordinal) AS run_ids FROM member GROUP BY 1) m WHERE m.tree = t.tree
""",
    "ANALYZE tree, member",
)

WRITE = (
    """
INSERT INTO run_trees (tenant_id, root_run_id, children_total, seq)
SELECT v.tenant_id, root, v.members, 6 FROM tree CROSS JOIN given v
""",
    """
INSERT INTO agent_runs (tenant_id, run_id, root_run_id, depth, agent_id, surface, status, background,
  effective_scopes, failure_policy, children_count, spawned_seq, started_seq, finalized_seq, started_at, finalized_at)
SELECT v.tenant_id, root, root, 0, v.orchestrator, 'option_b_runtime_primitives', 'completed', false,
  v.root_scopes, 'best_effort',
  v.members, 1, 1, 6, now(), now()
FROM tree CROSS JOIN given v
""",
    """
INSERT INTO orchestration_groups (tenant_id, group_id, root_run_id, orchestrator_run_id, spawn_key_prefix, surface,
  status, join_mode, failure_policy, timeout_s, size, success_count, spawned_seq, decided_seq, deadline, decided_at,
  decision_id, request_digests, policy_snapshot, effective_scopes)
SELECT v.tenant_id, t.group_id, t.root, t.root, t.group_id::text, g.surface, 'completed', g.join_mode, g.failure_policy,
  g.timeout_s, v.members, v.members, 2, 4, now() + interval '1 minute', now(), t.group_decision, g.request_digests,
  g.policy_snapshot, g.effective_scopes
FROM given v CROSS JOIN tree t
JOIN orchestration_groups g ON g.tenant_id = v.tenant_id AND g.orchestrator_run_id = v.template
""",
    """
INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, depth, spawn_key, orchestration_group_id,
  ordinal, agent_id, surface, status, background, effective_scopes, failure_policy, spawned_seq, started_seq,
  finalized_seq, started_at, finalized_at)
SELECT v.tenant_id, run_id, root, root, 1, group_id::text || ':' || ordinal, group_id, ordinal, v.worker,
  'option_b_runtime_primitives', 'completed', true, v.member_scopes, 'best_effort', 2, 3, 4, now(), now()
FROM member CROSS JOIN given v
""",
    """
INSERT INTO run_payloads (tenant_id, run_id, input, output, decision_id)
SELECT v.tenant_id, root, '{}'::json, NULL::json, start_decision FROM tree CROSS JOIN given v
UNION ALL
SELECT v.tenant_id, run_id, '{"n":1}', '{"ok":1}', NULL FROM member CROSS JOIN given v
""",
    """
INSERT INTO run_leases (tenant_id, run_id, root_run_id, attempt, granted, token_expires_at)
SELECT v.tenant_id, run_id, root, 1, uuidv7(), now() FROM member CROSS JOIN given v
""",
    """
INSERT INTO policy_decisions (tenant_id, decision_id, action, surface, outcome, reasons, revision, caller_run_id,
  root_run_id, input, result, duration_us)
SELECT v.tenant_id, CASE d.action WHEN 'start_run' THEN t.start_decision ELSE t.group_decision END, d.action, d.surface,
  d.outcome, d.reasons, d.revision, CASE d.action WHEN 'spawn_group' THEN t.root END,
  CASE d.action WHEN 'spawn_group' THEN t.root END, d.input, d.result, d.duration_us
FROM given v CROSS JOIN tree t
JOIN policy_decisions d ON d.tenant_id = v.tenant_id AND d.decision_id IN (
  (SELECT decision_id FROM run_payloads WHERE tenant_id = v.tenant_id AND run_id = v.template),
  (SELECT decision_id FROM orchestration_groups WHERE tenant_id = v.tenant_id AND orchestrator_run_id = v.template))
""",
    """
INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)
SELECT v.tenant_id, t.root, e.seq, e.type, 'option_b_runtime_primitives', e.run_id, e.subjects, e.data
FROM given v CROSS JOIN tree t
CROSS JOIN LATERAL (
  SELECT json_agg(json_build_object('child_run_id', m, 'status', 'running', 'orchestration_group_id', t.group_id))
      AS started,
    json_agg(json_build_object('child_run_id', m, 'status', 'completed', 'orchestration_group_id', t.group_id))
      AS ended
  FROM unnest(t.members) AS m
) c
CROSS JOIN LATERAL (VALUES
  (1, 'orchestration.child_lifecycle', t.root, ARRAY[t.root],
    json_build_object('child_run_id', t.root, 'status', 'running', 'orchestration_group_id', NULL)),
  (2, 'orchestration.spawn_decision', t.root, t.root || t.members,
    json_build_object('node_id', NULL, 'target_agent_id', v.worker, 'target_agent_slug', 'worker',
      'spawned_run_ids', to_json(t.members), 'idempotent', false, 'decision_id', t.group_decision,
      'orchestration_group_id', t.group_id)),
  (3, 'orchestration.child_lifecycle', t.members[1], t.members,
    json_build_object('status', 'running', 'children', c.started)),
  (4, 'orchestration.child_lifecycle', t.members[1], t.members,
    json_build_object('status', 'completed', 'children', c.ended)),
  (5, 'orchestration.join_decision', t.root, ARRAY[t.root],
    json_build_object('group_id', t.group_id, 'mode', 'all', 'status', 'completed', 'complete', true,
      'success_count', v.members, 'failure_count', 0, 'running_count', 0)),
  (6, 'orchestration.child_lifecycle', t.root, ARRAY[t.root],
    json_build_object('child_run_id', t.root, 'status', 'completed', 'orchestration_group_id', NULL))
) AS e (seq, type, run_id, subjects, data)
""",
)


async def write_history(
    connect: Callable[[], Awaitable[asyncpg.Connection]],
    *,
    tenant_id: str,
    template_root: str,
    runs: int,
) -> float:
    """Write trees that have ended.

    Args:
        connect: opens a connection to the service's PostgreSQL.
        template_root: a completed root of the tenant, with one group, whose decisions are copied.
        runs: how many runs below roots, in trees of 100.

    Returns:
        The seconds that it took, without the VACUUM at the end.
    """
    trees = -(-runs // MEMBERS)
    chunks = iter([min(TREES_AT_ONCE, trees - done) for done in range(0, trees, TREES_AT_ONCE)])
    started = time.perf_counter()
    tenant, root = uuid.UUID(tenant_id), uuid.UUID(template_root)

    async def write() -> None:
        connection = await connect()
        try:
            await connection.execute(PREPARE)
            await connection.execute(GIVE, tenant, root, MEMBERS)
            for count in chunks:
                await _write_chunk(connection, count)
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as writers:
        for _ in range(WRITERS):
            writers.create_task(write())
    seconds = time.perf_counter() - started
    connection = await connect()
    try:
        for table in TABLES:
            await connection.execute(MAINTENANCE.format(table=table))
    finally:
        await connection.close()
    return seconds


async def _write_chunk(connection: asyncpg.Connection, trees: int) -> None:
    truncate, draw, members, gather, analyze = DRAW
    async with connection.transaction():
        await connection.execute(truncate)
        await connection.execute(draw, trees)
        await connection.execute(members, MEMBERS)
        await connection.execute(gather)
        await connection.execute(analyze)
        for statement in WRITE:
            await connection.execute(statement)
