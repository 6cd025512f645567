"""What a batch of spawns writes, in one statement: all of it or nothing."""

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

RUNS = """
WITH made AS (
  INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, parent_node_id, depth, spawn_key,
    orchestration_group_id, ordinal, agent_id, surface, status, background, effective_scopes, failure_policy,
    timeout_s, spawned_seq, started_seq, started_at)
  SELECT q.tenant_id, q.run_id, q.root_run_id, q.parent_run_id, q.parent_node_id, q.depth, q.spawn_key, q.group_id,
    q.ordinal, q.agent_id, q.surface, CASE WHEN q.background THEN 'queued' ELSE 'running' END, q.background,
    string_to_array(q.scopes, ' '), q.failure_policy, q.timeout_s, q.spawned_seq,
    CASE WHEN q.background THEN NULL ELSE q.spawned_seq END, CASE WHEN q.background THEN NULL ELSE now() END
  FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::int[], $7::text[], $8::uuid[],
    $9::int[], $10::uuid[], $11::text[], $12::boolean[], $13::text[], $14::text[], $15::int[], $16::bigint[])
    AS q (tenant_id, run_id, root_run_id, parent_run_id, parent_node_id, depth, spawn_key, group_id, ordinal,
    agent_id, surface, background, scopes, failure_policy, timeout_s, spawned_seq)
), given AS (
  INSERT INTO run_payloads (tenant_id, run_id, input, request_digests, policy_snapshot, decision_id, trace_parent)
  SELECT q.tenant_id, q.run_id, q.input::json, q.digests::json, q.snapshot::json, q.decision_id, q.trace_parent
  FROM unnest($1::uuid[], $2::uuid[], $17::text[], $18::text[], $19::text[], $20::uuid[], $21::text[])
    AS q (tenant_id, run_id, input, digests, snapshot, decision_id, trace_parent)
), due AS (
  INSERT INTO run_deadlines (tenant_id, run_id, root_run_id, deadline)
  SELECT q.tenant_id, q.run_id, q.root_run_id, now() + make_interval(secs => q.timeout_s)
  FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $15::int[]) AS q (tenant_id, run_id, root_run_id, timeout_s)
  WHERE q.timeout_s IS NOT NULL
)
UPDATE agent_runs r SET children_count = r.children_count + q.added
FROM (
  SELECT tenant_id, parent_run_id, count(*)::int AS added
  FROM unnest($1::uuid[], $4::uuid[]) AS q (tenant_id, parent_run_id) GROUP BY 1, 2
) q
WHERE r.tenant_id = q.tenant_id AND r.run_id = q.parent_run_id
"""


@dataclass(slots=True)
class SpawnWrites:
    """Rows of a batch, gathered while its trees are locked. The trees are those that the batch changes."""

    groups: list[tuple[object, ...]] = field(default_factory=list)
    runs: list[tuple[object, ...]] = field(default_factory=list)
    decisions: list[DecisionRecord] = field(default_factory=list)
    trees: dict[tuple[UUID, UUID], LockedTree] = field(default_factory=dict)


async def write(session: WriteSession, writes: SpawnWrites) -> None:
    """Write a batch."""
    if writes.groups:
        await session.driver.execute(GROUPS, *_turn(writes.groups))
    if writes.runs:
        await session.driver.execute(RUNS, *_turn(writes.runs))
    await trees.advance(session, *writes.trees.values(), decided=writes.decisions)


def _turn(rows: list[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]
