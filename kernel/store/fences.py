"""Open fences, and whom they cover."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from kernel.domain.fences import Fence, FenceScope, StandingFences, Step
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.trees import TreeKey

# Tree by tree (OFFSET 0): the fences that are open elsewhere may be thousands.
OPEN = """
SELECT c.tenant_id, c.root_run_id, c.cancellation_id, c.run_id, c.scope, c.fence_seq, c.reason, c.group_id,
  c.grace_until
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, root_run_id)
CROSS JOIN LATERAL (
  SELECT * FROM cancellations c
  WHERE c.tenant_id = q.tenant_id AND c.root_run_id = q.root_run_id AND c.drained_at IS NULL OFFSET 0
) c
"""

# Up to the root on the primary key: a thousand levels take about a millisecond.
WALK = """
WITH RECURSIVE walk AS (
  SELECT r.tenant_id, r.run_id AS start_id, 0 AS hop, r.run_id, r.parent_run_id, r.orchestration_group_id,
    r.spawned_seq, r.finalized_seq
  FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, run_id)
  JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.run_id = q.run_id
  UNION ALL
  SELECT p.tenant_id, w.start_id, w.hop + 1, p.run_id, p.parent_run_id, p.orchestration_group_id,
    p.spawned_seq, p.finalized_seq
  FROM walk w
  JOIN agent_runs p ON p.tenant_id = w.tenant_id AND p.run_id = w.parent_run_id
)
SELECT tenant_id, start_id, run_id, parent_run_id, orchestration_group_id, spawned_seq, finalized_seq
FROM walk ORDER BY start_id, hop
"""

# Likewise, but only the runs themselves and those above them that one of some fences may stand on: once for all runs
# with one parent, so that ten siblings a thousand levels down cost one walk, and a handful of rows.
CANDIDATES = """
WITH RECURSIVE own AS MATERIALIZED (
  SELECT r.tenant_id, r.run_id, r.parent_run_id, r.orchestration_group_id, r.spawned_seq, r.finalized_seq
  FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, run_id)
  JOIN agent_runs r ON r.tenant_id = q.tenant_id AND r.run_id = q.run_id
), above AS (
  SELECT s.tenant_id, s.parent_run_id AS start_id, p.run_id, p.parent_run_id, p.orchestration_group_id,
    p.spawned_seq, p.finalized_seq
  FROM (SELECT DISTINCT tenant_id, parent_run_id FROM own) s
  JOIN agent_runs p ON p.tenant_id = s.tenant_id AND p.run_id = s.parent_run_id
  UNION ALL
  SELECT a.tenant_id, a.start_id, p.run_id, p.parent_run_id, p.orchestration_group_id, p.spawned_seq,
    p.finalized_seq
  FROM above a
  JOIN agent_runs p ON p.tenant_id = a.tenant_id AND p.run_id = a.parent_run_id
), hit AS (
  SELECT * FROM above
  WHERE run_id = ANY ($3::uuid[]) OR parent_run_id = ANY ($3) OR orchestration_group_id = ANY ($4::uuid[])
)
SELECT tenant_id, run_id AS start_id, run_id, parent_run_id, orchestration_group_id, spawned_seq, finalized_seq FROM own
UNION ALL
SELECT h.tenant_id, o.run_id, h.run_id, h.parent_run_id, h.orchestration_group_id, h.spawned_seq, h.finalized_seq
FROM hit h JOIN own o ON o.tenant_id = h.tenant_id AND o.parent_run_id = h.start_id
"""

# The end of a grace is reckoned by the database's clock, the only one that all processes share.
INSERT = """
INSERT INTO cancellations (tenant_id, cancellation_id, root_run_id, run_id, scope, group_id, reason, fence_seq,
  fenced_at, grace_until)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp(),
  CASE WHEN $9 > 0 THEN clock_timestamp() + make_interval(secs => $9::int) END)
RETURNING grace_until
"""

RunKey = tuple[UUID, UUID]
# With the root of its tree: `(tenant_id, root_run_id, run_id)`.
RunInTree = tuple[UUID, UUID, UUID]


async def insert(session: WriteSession, tenant_id: UUID, root_run_id: UUID, fence: Fence, *, grace_s: int) -> Fence:
    """Write a fence of a tree whose lock this transaction holds; it is handed back with the end of its grace."""
    grace_until: datetime | None = await session.driver.fetchval(
        INSERT,
        tenant_id,
        fence.cancellation_id,
        root_run_id,
        fence.run_id,
        fence.scope.value,
        fence.group_id,
        fence.reason,
        fence.fence_seq,
        grace_s,
    )
    return replace(fence, grace_until=grace_until)


async def clock(session: ReadSession) -> datetime:
    """What a grace's end is held against."""
    now: datetime = await session.driver.fetchval("SELECT clock_timestamp()")
    return now


async def open_fences(session: ReadSession, trees: Iterable[TreeKey]) -> dict[TreeKey, list[Fence]]:
    """The open fences of trees."""
    wanted = list(set(trees))
    rows = await session.driver.fetch(OPEN, [key[0] for key in wanted], [key[1] for key in wanted])
    found: dict[TreeKey, list[Fence]] = {}
    for row in rows:
        found.setdefault((row["tenant_id"], row["root_run_id"]), []).append(
            Fence(
                cancellation_id=row["cancellation_id"],
                run_id=row["run_id"],
                scope=FenceScope(row["scope"]),
                fence_seq=row["fence_seq"],
                reason=row["reason"],
                group_id=row["group_id"],
                grace_until=row["grace_until"],
            )
        )
    return found


async def paths(session: ReadSession, runs: Iterable[RunKey]) -> dict[RunKey, list[Step]]:
    """The way from each run up to its root, the run itself first."""
    wanted = list(set(runs))
    rows = await session.driver.fetch(WALK, [key[0] for key in wanted], [key[1] for key in wanted])
    return _steps(rows)


async def _candidates(
    session: ReadSession, runs: Iterable[RunKey], fences: Iterable[StandingFences]
) -> dict[RunKey, list[Step]]:
    """Of the way from each run up to its root, the run itself and whatever one of the fences may stand on."""
    wanted, standing = list(set(runs)), list(fences)
    rows = await session.driver.fetch(
        CANDIDATES,
        [key[0] for key in wanted],
        [key[1] for key in wanted],
        [run_id for here in standing for run_id in here.run_ids],
        [group_id for here in standing for group_id in here.group_ids],
    )
    return _steps(rows)


def _steps(rows: Iterable[Record]) -> dict[RunKey, list[Step]]:
    found: dict[RunKey, list[Step]] = {}
    for row in rows:
        found.setdefault((row["tenant_id"], row["start_id"]), []).append(
            Step(
                row["run_id"],
                row["parent_run_id"],
                row["orchestration_group_id"],
                row["spawned_seq"],
                row["finalized_seq"],
            )
        )
    return found


async def over(session: ReadSession, runs: Iterable[RunInTree]) -> dict[RunKey, list[Fence]]:
    """All the open fences that some runs are under; a run that is under none is absent. See `covered`."""
    wanted = list(runs)
    return await _over(session, wanted, await _standing(session, wanted))


async def covered(session: ReadSession, runs: Iterable[RunInTree]) -> dict[RunKey, Fence]:
    """Which of some runs are under an open fence, and under which.

    Args:
        session: a transaction that holds the trees' locks, or a reader that wants the effective status.
        runs: runs in trees that have open fences; asking for others is correct and costs a query.
    """
    wanted = list(runs)
    standing = await _standing(session, wanted)
    hit: dict[RunKey, Fence] = {}
    unsure: list[RunInTree] = []
    for tenant_id, root_id, run_id in wanted:
        if (tenant_id, root_id) not in standing:
            continue
        # A fence on the root covers everything, whatever the way up.
        whole = standing[tenant_id, root_id].on_run(root_id)
        if whole is not None:
            hit[tenant_id, run_id] = whole
        else:
            unsure.append((tenant_id, root_id, run_id))
    for run, found in (await _over(session, unsure, standing)).items():
        hit[run] = min(found, key=lambda fence: fence.fence_seq)
    return hit


async def _standing(session: ReadSession, runs: Iterable[RunInTree]) -> dict[TreeKey, StandingFences]:
    """The open fences of the trees of some runs."""
    trees = {(tenant_id, root_id) for tenant_id, root_id, _ in runs}
    found = await open_fences(session, trees) if trees else {}
    return {tree: StandingFences(fences) for tree, fences in found.items()}


async def _over(
    session: ReadSession, runs: Iterable[RunInTree], standing: Mapping[TreeKey, StandingFences]
) -> dict[RunKey, list[Fence]]:
    trees = {
        (tenant_id, run_id): (tenant_id, root_id)
        for tenant_id, root_id, run_id in runs
        if (tenant_id, root_id) in standing
    }
    if not trees:
        return {}
    ways = await _candidates(session, trees, [standing[tree] for tree in set(trees.values())])
    return {run: found for run, way in ways.items() if (found := standing[trees[run]].over(way))}
