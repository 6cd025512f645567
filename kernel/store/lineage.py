"""Where a run stands in its tree: facts about it, the way up, and what is below."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from kernel.domain.lineage import GroupNode, Node, Position, Rollup
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.groups import MEMBER

Row = Mapping[str, Any]

# So many of the children of a run that failed, or were cancelled, are listed.
MAX_LISTED = 1_000

# One round trip, and one snapshot. The way up is walked only where somebody's reach depends on it.
STANDING = """
WITH RECURSIVE subject AS (
  SELECT r.run_id, r.root_run_id, r.parent_run_id, r.agent_id, r.status, r.depth, r.surface, r.replan_attempts,
    r.children_count, r.spawned_seq, r.ordinal, t.children_total, t.open_fences
  FROM agent_runs r
  JOIN run_trees t ON t.tenant_id = r.tenant_id AND t.root_run_id = r.root_run_id
  WHERE r.tenant_id = $1 AND r.run_id = $2
), up AS (
  SELECT s.run_id, s.parent_run_id FROM subject s
  WHERE ($3::uuid IS NOT NULL AND $3 <> $2) OR ($4::uuid IS NOT NULL AND $4 <> $2)
  UNION ALL
  SELECT p.run_id, p.parent_run_id FROM up u
  JOIN agent_runs p ON p.tenant_id = $1 AND p.run_id = u.parent_run_id
)
SELECT n.slug AS tenant_slug, n.time_zone, f.option_a_graphspec_v2 AS option_a,
  f.option_b_runtime_primitives AS option_b,
  s.run_id, s.root_run_id, s.agent_id, s.status, s.depth, s.surface, s.replan_attempts, s.children_count, s.spawned_seq,
  s.ordinal, s.children_total, s.open_fences,
  $3 IS NULL OR $3 = $2 OR EXISTS (SELECT FROM up WHERE up.run_id = $3) AS within_caller,
  $4 IS NULL OR $4 = $2 OR EXISTS (SELECT FROM up WHERE up.run_id = $4) AS within_principal,
  c.run_id AS caller_run_id, c.agent_id AS caller_agent_id, a.slug AS caller_agent_slug, c.status AS caller_status,
  c.depth AS caller_depth, c.effective_scopes AS caller_scopes, c.children_count AS caller_children_count,
  c.root_run_id AS caller_root_run_id, ct.children_total AS caller_children_total,
  ct.open_fences AS caller_open_fences,
  p.agent_id AS policy_agent_id, p.max_depth, p.max_fanout, p.max_children_total, p.join_timeout_s,
  p.default_failure_policy, p.enforce_published_only, p.allowed_scope_subset, p.parent_close_policy, p.is_active
FROM tenants n
LEFT JOIN tenant_flags f ON f.tenant_id = n.tenant_id
LEFT JOIN subject s ON true
LEFT JOIN agent_runs c ON c.tenant_id = n.tenant_id AND c.run_id = $3
LEFT JOIN run_trees ct ON ct.tenant_id = c.tenant_id AND ct.root_run_id = c.root_run_id
LEFT JOIN agents a ON a.tenant_id = c.tenant_id AND a.agent_id = c.agent_id
LEFT JOIN orchestrator_policies p ON p.tenant_id = n.tenant_id
  AND p.agent_id = CASE WHEN $5 THEN s.agent_id ELSE c.agent_id END
WHERE n.tenant_id = $1
"""


async def standing(
    session: ReadSession,
    tenant_id: UUID,
    run_id: UUID,
    caller_run_id: UUID | None,
    principal_run_id: UUID | None,
    *,
    policy_of_subject: bool,
) -> Row | None:
    """A run, the run on whose behalf somebody asks about it, whether it is within their reach, and one's policy.

    What the tenant does not have has null ids; None when there is no such tenant.
    """
    row: Row | None = await session.driver.fetchrow(
        STANDING, tenant_id, run_id, caller_run_id, principal_run_id, policy_of_subject
    )
    return row


_NODE = """
r.run_id, r.parent_run_id, r.parent_node_id, r.depth, r.spawn_key, r.orchestration_group_id, r.ordinal, r.agent_id,
a.slug AS agent_slug, a.name AS agent_name, r.status, r.spawned_seq, r.started_seq, r.finalized_seq, r.created_at,
r.started_at, r.finalized_at
"""

# Straight down the index in tree order; the agents are joined to the page only.
TREE_PAGE = f"""
SELECT {_NODE}
FROM (
  SELECT * FROM agent_runs
  WHERE tenant_id = $1 AND root_run_id = $2 AND (spawned_seq, ordinal) > ($3, $4) AND depth <= $5
    AND ($6::text[] IS NULL OR status = ANY ($6))
  ORDER BY spawned_seq, ordinal LIMIT $7
) r
JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
ORDER BY r.spawned_seq, r.ordinal
"""

# A run and what is below it, down to a depth. It ends with the first level past the limit of what is looked at.
_BELOW = """
WITH RECURSIVE below AS (
  SELECT r.run_id, r.status, r.depth, r.agent_id, r.spawned_seq, r.ordinal
  FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = $2
  UNION ALL
  SELECT c.run_id, c.status, c.depth, c.agent_id, c.spawned_seq, c.ordinal
  FROM below b
  CROSS JOIN LATERAL (
    SELECT r.run_id, r.status, r.depth, r.agent_id, r.spawned_seq, r.ordinal
    FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = b.run_id OFFSET 0
  ) c
  WHERE b.depth < $3
)
"""

# Every step is limited, or the planner may choose one that reads all children of a run before it gives one.
SUBTREE_PAGE = f"""
{_BELOW.replace("OFFSET 0", "LIMIT $8 + 1")}
, visited AS MATERIALIZED (SELECT * FROM below LIMIT $8 + 1)
, page AS (
  SELECT run_id FROM visited
  WHERE (spawned_seq, ordinal) > ($4, $5) AND ($6::text[] IS NULL OR status = ANY ($6))
  ORDER BY spawned_seq, ordinal LIMIT $7
)
SELECT (SELECT count(*) FROM visited) AS seen, {_NODE}
FROM (SELECT 1) one
LEFT JOIN (
  page JOIN agent_runs r ON r.tenant_id = $1 AND r.run_id = page.run_id
  JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
) ON true
ORDER BY r.spawned_seq, r.ordinal
"""

GROUPS = """
SELECT g.group_id, g.orchestrator_run_id, g.status, g.failure_policy, g.join_mode, g.quorum_threshold, g.timeout_s,
  g.parent_node_id
FROM orchestration_groups g WHERE g.tenant_id = $1 AND g.orchestrator_run_id = ANY ($2::uuid[])
ORDER BY g.spawned_seq, g.group_id
"""

# What the open fences of a tree cover: from where they stand, down.
_COVERED = f"""
covered AS (
  (
    SELECT c.run_id FROM cancellations c
    WHERE c.tenant_id = $1 AND c.root_run_id = $2 AND c.drained_at IS NULL AND c.scope = 'run'
    UNION ALL
    SELECT r.run_id FROM cancellations c
    JOIN agent_runs r ON r.tenant_id = c.tenant_id AND r.parent_run_id = c.run_id AND r.spawned_seq < c.fence_seq
    WHERE c.tenant_id = $1 AND c.root_run_id = $2 AND c.drained_at IS NULL AND c.scope = 'children'
    UNION ALL
    SELECT r.run_id FROM cancellations c
    JOIN orchestration_groups g ON g.tenant_id = c.tenant_id AND g.group_id = c.group_id
    JOIN agent_runs r ON {MEMBER}
      AND (r.finalized_seq IS NULL OR r.finalized_seq >= c.fence_seq)
    WHERE c.tenant_id = $1 AND c.root_run_id = $2 AND c.drained_at IS NULL AND c.scope = 'group'
  )
  UNION
  SELECT d.run_id
  FROM covered b
  CROSS JOIN LATERAL (
    SELECT r.run_id FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = b.run_id OFFSET 0
  ) d
)
"""

_COUNT = """
SELECT CASE WHEN c.run_id IS NOT NULL AND n.status IN ('queued', 'running', 'paused') THEN 'cancelled'
    ELSE n.status END AS status, n.depth, n.agent_id, count(*) AS runs
"""

COUNT_TREE = f"""
WITH RECURSIVE {_COVERED}
{_COUNT}
FROM agent_runs n LEFT JOIN covered c ON c.run_id = n.run_id
WHERE n.tenant_id = $1 AND n.root_run_id = $2 AND n.depth <= $3
GROUP BY 1, 2, 3
"""

COUNT_SUBTREE = f"""
{_BELOW.replace("$2", "$4")}, {_COVERED}
{_COUNT}
FROM below n LEFT JOIN covered c ON c.run_id = n.run_id
GROUP BY 1, 2, 3
"""

# Without open fences there is nothing to hold the runs against.
COUNT_PLAIN_TREE = """
SELECT status, depth, agent_id, count(*) AS runs FROM agent_runs
WHERE tenant_id = $1 AND root_run_id = $2 AND depth <= $3
GROUP BY 1, 2, 3
"""


async def tree_page(
    session: ReadSession,
    tenant_id: UUID,
    root_run_id: UUID,
    after: Position,
    *,
    limit: int,
    max_depth: int,
    statuses: Sequence[str] | None,
) -> list[Node]:
    """The next runs of a tree in tree order, with their stored statuses."""
    rows = await session.driver.fetch(
        TREE_PAGE, tenant_id, root_run_id, after.spawned_seq, after.ordinal, max_depth, statuses, limit
    )
    return [Node(**row) for row in rows]


async def subtree_page(
    session: ReadSession,
    tenant_id: UUID,
    run_id: UUID,
    after: Position,
    *,
    limit: int,
    max_depth: int,
    statuses: Sequence[str] | None,
    most_runs: int,
) -> list[Node] | None:
    """The next of a run and those below it, in tree order; None where there are more than `most_runs` in all."""
    rows = await session.driver.fetch(
        SUBTREE_PAGE,
        tenant_id,
        run_id,
        max_depth,
        after.spawned_seq,
        after.ordinal,
        statuses,
        limit,
        most_runs,
    )
    if rows[0]["seen"] > most_runs:
        return None
    return [
        Node(**{name: value for name, value in row.items() if name != "seen"})
        for row in rows
        if row["run_id"] is not None
    ]


async def groups_of(session: ReadSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> list[GroupNode]:
    """The groups that some runs have spawned, with their stored statuses."""
    return [GroupNode(**row) for row in await session.driver.fetch(GROUPS, tenant_id, run_ids)]


async def count(
    session: ReadSession, tenant_id: UUID, root_run_id: UUID, run_id: UUID, *, max_depth: int, fenced: bool
) -> Rollup:
    """Count a run and those below it down to a depth, by their effective statuses.

    Args:
        fenced: whether the tree has open fences.
    """
    if run_id != root_run_id:
        rows = await session.driver.fetch(COUNT_SUBTREE, tenant_id, root_run_id, max_depth, run_id)
    else:
        rows = await session.driver.fetch(COUNT_TREE if fenced else COUNT_PLAIN_TREE, tenant_id, root_run_id, max_depth)
    by_status: Counter[str] = Counter()
    by_depth: Counter[int] = Counter()
    by_agent: Counter[UUID] = Counter()
    for row in rows:
        by_status[row["status"]] += row["runs"]
        by_depth[row["depth"]] += row["runs"]
        by_agent[row["agent_id"]] += row["runs"]
    return Rollup(by_status.total(), by_status, by_depth, by_agent)


RUN = """
SELECT r.run_id, r.root_run_id, r.parent_run_id, r.parent_node_id, r.depth, r.spawn_key, r.orchestration_group_id,
  r.ordinal, r.agent_id, a.slug AS agent_slug, a.name AS agent_name, r.surface, r.status, r.background,
  r.effective_scopes, r.failure_policy, r.children_count, r.timeout_s, r.spawned_seq, r.started_seq, r.finalized_seq,
  r.created_at, r.started_at, r.finalized_at, l.attempt, p.input, p.output, p.error, p.decision_id
FROM agent_runs r
JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
JOIN run_payloads p ON p.tenant_id = r.tenant_id AND p.run_id = r.run_id
LEFT JOIN run_leases l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id
WHERE r.tenant_id = $1 AND r.run_id = $2
"""

# In one statement, so that every child is counted once. The listed ones are read apart: an aggregate with an order
# would sort all of them, also the million that nobody wants listed.
CHILDREN = """
SELECT s.status, s.runs, CASE WHEN q.status IS NOT NULL THEN ARRAY(
    SELECT r.run_id FROM agent_runs r
    WHERE r.tenant_id = $1 AND r.parent_run_id = $2 AND r.status = s.status ORDER BY r.spawned_seq, r.ordinal
    LIMIT q.at_most
  ) END AS run_ids
FROM (
  SELECT r.status, count(*) AS runs FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = $2 GROUP BY 1
) s
LEFT JOIN unnest($3::text[], $4::int[]) AS q (status, at_most) ON q.status = s.status
"""

ADD_ATTEMPT = """
UPDATE agent_runs SET replan_attempts = replan_attempts + 1 WHERE tenant_id = $1 AND run_id = $2
"""


async def run(session: ReadSession, tenant_id: UUID, run_id: UUID) -> Row:
    """A run that exists, with its agent, its payload and the number of its last lease."""
    row: Row = await session.driver.fetchrow(RUN, tenant_id, run_id)
    return row


async def children(
    session: ReadSession, tenant_id: UUID, run_id: UUID, listed: Sequence[str], whole: Sequence[str] = ()
) -> dict[str, tuple[int, list[UUID]]]:
    """The children of a run by stored status: how many, and which, in order.

    Args:
        listed: the statuses of which the first ids are wanted, at most 1,000 of each.
        whole: the statuses of which all ids are wanted.
    """
    at_most = [*[MAX_LISTED] * len(listed), *[None] * len(whole)]
    rows = await session.driver.fetch(CHILDREN, tenant_id, run_id, [*listed, *whole], at_most)
    return {row["status"]: (row["runs"], row["run_ids"] or []) for row in rows}


async def add_attempt(session: WriteSession, tenant_id: UUID, run_id: UUID) -> None:
    """Count one more replan of a run in a locked tree."""
    await session.driver.execute(ADD_ATTEMPT, tenant_id, run_id)
