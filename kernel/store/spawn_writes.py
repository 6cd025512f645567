"""What a batch of spawns writes: its runs and the journal of its trees in one statement, after the groups, if any."""

from dataclasses import dataclass, field
from uuid import UUID

from kernel.policy.records import DecisionRecord
from kernel.store import trees
from kernel.store.engine import WriteSession
from kernel.store.trees import LockedTree

GROUPS = """
INSERT INTO orchestration_groups (tenant_id, group_id, root_run_id, orchestrator_run_id, parent_node_id,
  spawn_key_prefix, surface, status, join_mode, failure_policy, quorum_threshold, timeout_s, size, spawned_seq,
  deadline, decision_id, request_digests, policy_snapshot, effective_scopes, decided_at)
SELECT q.tenant_id, q.group_id, q.root_run_id, q.orchestrator_run_id, q.parent_node_id, q.prefix, q.surface,
  CASE WHEN q.size = 0 THEN 'empty' ELSE 'running' END, q.join_mode, q.failure_policy, q.quorum_threshold,
  q.timeout_s, q.size, q.spawned_seq, now() + make_interval(secs => q.timeout_s), q.decision_id, q.digests::json,
  q.snapshot::json, string_to_array(q.scopes, ' '), CASE WHEN q.size = 0 THEN now() END
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
  $9::text[], $10::int[], $11::int[], $12::int[], $13::bigint[], $14::uuid[], $15::text[], $16::text[], $17::text[])
  AS q (tenant_id, group_id, root_run_id, orchestrator_run_id, parent_node_id, prefix, surface, join_mode,
  failure_policy, quorum_threshold, timeout_s, size, spawned_seq, decision_id, digests, snapshot, scopes)
"""

# What the members of a group have in common is sent once: each run names the place of its order, counted from 1.
_RUNS = """
orders AS MATERIALIZED (
  SELECT *, string_to_array(scopes, ' ') AS effective_scopes
  FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::int[], $6::text[], $7::uuid[], $8::text[],
    $9::boolean[], $10::text[], $11::text[], $12::int[], $13::bigint[], $14::text[], $15::text[], $16::uuid[],
    $17::text[])
    WITH ORDINALITY AS o (tenant_id, root_run_id, parent_run_id, parent_node_id, depth, key, group_id, surface,
    background, scopes, failure_policy, timeout_s, spawned_seq, digests, snapshot, decision_id, trace_parent, place)
), made AS (
  INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, parent_node_id, depth, spawn_key,
    orchestration_group_id, ordinal, agent_id, surface, status, background, effective_scopes, failure_policy,
    timeout_s, spawned_seq, started_seq, started_at)
  SELECT o.tenant_id, c.run_id, o.root_run_id, o.parent_run_id, o.parent_node_id, o.depth,
    CASE WHEN o.group_id IS NULL THEN o.key ELSE o.key || ':' || c.ordinal END, o.group_id, c.ordinal, c.agent_id,
    o.surface, CASE WHEN o.background THEN 'queued' ELSE 'running' END, o.background, o.effective_scopes,
    o.failure_policy, o.timeout_s, o.spawned_seq,
    CASE WHEN o.background THEN NULL ELSE o.spawned_seq END, CASE WHEN o.background THEN NULL ELSE now() END
  FROM unnest($18::bigint[], $19::uuid[], $20::int[], $21::uuid[]) AS c (place, run_id, ordinal, agent_id)
  JOIN orders o ON o.place = c.place
), given AS (
  INSERT INTO run_payloads (tenant_id, run_id, input, request_digests, policy_snapshot, decision_id, trace_parent)
  SELECT o.tenant_id, c.run_id, c.input::json, o.digests::json, o.snapshot::json, o.decision_id, o.trace_parent
  FROM unnest($18::bigint[], $19::uuid[], $22::text[]) AS c (place, run_id, input)
  JOIN orders o ON o.place = c.place
), due AS (
  INSERT INTO run_deadlines (tenant_id, run_id, root_run_id, deadline)
  SELECT o.tenant_id, c.run_id, o.root_run_id, now() + make_interval(secs => o.timeout_s)
  FROM unnest($18::bigint[], $19::uuid[]) AS c (place, run_id)
  JOIN orders o ON o.place = c.place
  WHERE o.timeout_s IS NOT NULL
), counted AS (
  UPDATE agent_runs r SET children_count = r.children_count + q.added
  FROM (
    SELECT o.tenant_id, o.parent_run_id, count(*)::int AS added
    FROM unnest($18::bigint[]) AS c (place) JOIN orders o ON o.place = c.place GROUP BY 1, 2
  ) q
  WHERE r.tenant_id = q.tenant_id AND r.run_id = q.parent_run_id
),
"""
RUNS = trees.journalled(_RUNS, 22)


@dataclass(slots=True)
class SpawnWrites:
    """Rows of a batch, gathered while its trees are locked. The trees are those that the batch changes."""

    groups: list[tuple[object, ...]] = field(default_factory=list)
    orders: list[tuple[object, ...]] = field(default_factory=list)
    runs: list[tuple[object, ...]] = field(default_factory=list)
    decisions: list[DecisionRecord] = field(default_factory=list)
    trees: dict[tuple[UUID, UUID], LockedTree] = field(default_factory=dict)


async def write(session: WriteSession, writes: SpawnWrites) -> None:
    """Write a batch."""
    if writes.groups:
        await session.driver.execute(GROUPS, *_turn(writes.groups))
    if writes.runs:
        runs = (*_turn(writes.orders), *_turn(writes.runs))
        await trees.advance(session, *writes.trees.values(), decided=writes.decisions, statement=RUNS, arguments=runs)
    else:
        await trees.advance(session, *writes.trees.values(), decided=writes.decisions)


def _turn(rows: list[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]
