"""What a drain reads and writes: the runs under a fence, a chunk of them at a time."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from asyncpg import Record

from kernel.domain.events import EventType, Surface
from kernel.domain.fences import Fence, FenceScope, Step
from kernel.domain.lineage import Ancestry
from kernel.store.effective import WAY_UP
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.groups import MEMBER
from kernel.store.trees import TreeKey

# A chunk holds the lock of its tree for ten or twenty milliseconds: as long as others in the tree may have to wait.
CHUNK_RUNS = 1_000
# So many runs that were spawned after a fence are looked at for children of the run that it stands on.
MAX_LATER = 1_000
# A drain that stands still between two chunks for longer than this is no longer waited for by others.
IDLE_TIMEOUT = "10s"

_OPEN = """
SELECT c.tenant_id, c.root_run_id, c.cancellation_id, c.run_id, c.scope, c.fence_seq, c.reason, c.group_id,
  c.grace_until, c.fenced_at, n.slug AS tenant_slug, r.surface, r.orchestration_group_id AS own_group_id,
  t.queued_runs + t.running_runs + t.paused_runs AS active_runs
FROM ({found}) c
JOIN tenants n ON n.tenant_id = c.tenant_id
JOIN agent_runs r ON r.tenant_id = c.tenant_id AND r.run_id = c.run_id
JOIN run_trees t ON t.tenant_id = c.tenant_id AND t.root_run_id = c.root_run_id
ORDER BY c.fenced_at
"""

# The longest open first; those that the caller has looked at and that only wait for a grace to end are passed over.
# Chosen before anything is joined to them: in a storm thousands are open, and this is asked after each drain. NOT IN is
# looked up by hash, where each of the open would be held against all that are passed over (<> ALL).
OPEN = _OPEN.format(
    found="""
  SELECT * FROM cancellations WHERE drained_at IS NULL AND cancellation_id NOT IN (SELECT unnest($2::uuid[]))
    AND root_run_id NOT IN (SELECT unnest($3::uuid[]))
  ORDER BY fenced_at LIMIT $1"""
)
# How many runs are active in trees that have open fences.
ACTIVE_UNDER_OPEN = """
SELECT t.tenant_id, t.root_run_id, t.queued_runs + t.running_runs + t.paused_runs AS active_runs
FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, root_run_id)
JOIN run_trees t ON t.tenant_id = q.tenant_id AND t.root_run_id = q.root_run_id
WHERE t.open_fences > 0
"""
# Said so that it is looked up by its id, and not among all that are open.
OPEN_ONE = _OPEN.format(
    found="SELECT * FROM cancellations WHERE tenant_id = $1 AND cancellation_id = $2 AND num_nulls(drained_at) = 1"
)

GRACE_ENDED = """
SELECT c.cancellation_id FROM cancellations c
WHERE c.cancellation_id = ANY ($1::uuid[]) AND c.tenant_id = ANY ($2::uuid[])
  AND (c.drained_at IS NOT NULL OR c.grace_until <= clock_timestamp())
"""

CLAIM = """
SELECT CASE WHEN pg_try_advisory_lock($1) THEN set_config('idle_session_timeout', $2, false) IS NOT NULL
  ELSE false END
"""
LEAVE = "SELECT pg_advisory_unlock($1), set_config('idle_session_timeout', '0', false)"

FIRST_ACTIVE = """
SELECT run_id FROM agent_runs
WHERE tenant_id = $1 AND run_id = ANY ($2::uuid[]) AND status IN ('queued', 'running', 'paused') LIMIT 1
"""
# Each by its key: a plan that was made while the table was empty would join it as a whole.
ACTIVE_AMONG = """
SELECT r.run_id FROM unnest($1::uuid[], $2::uuid[]) AS q (tenant_id, run_id)
CROSS JOIN LATERAL (
  SELECT run_id, status FROM agent_runs WHERE tenant_id = q.tenant_id AND run_id = q.run_id OFFSET 0
) r
WHERE r.status IN ('queued', 'running', 'paused')
"""

_COLUMNS = "r.run_id, r.status, r.spawned_seq, r.ordinal"
_STARTS = {
    FenceScope.RUN: f"""
  SELECT {_COLUMNS} FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = $2 AND $3::bigint IS NOT NULL""",
    FenceScope.CHILDREN: f"""
  SELECT {_COLUMNS} FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = $2 AND r.spawned_seq < $3""",
    FenceScope.GROUP: f"""
  SELECT {_COLUMNS} FROM orchestration_groups g JOIN agent_runs r ON {MEMBER}
  WHERE g.tenant_id = $1 AND g.group_id = $2 AND (r.finalized_seq IS NULL OR r.finalized_seq >= $3)""",
}

# Down through the ended as well, for only fences cancel. OFFSET 0 keeps the planner from joining a wide level with the
# whole table: every step is a descent of the index on (tenant, parent, key).
_BELOW = """
WITH RECURSIVE below AS (
  {start}
  UNION ALL
  SELECT c.run_id, c.status, c.spawned_seq, c.ordinal
  FROM below b
  CROSS JOIN LATERAL (
    SELECT {columns} FROM agent_runs r WHERE r.tenant_id = $1 AND r.parent_run_id = b.run_id OFFSET 0
  ) c
)
"""
BELOW = {scope: _BELOW.format(start=start, columns=_COLUMNS) for scope, start in _STARTS.items()}

# The whole tree needs no walk. All forms take the same arguments, also those that have no use for the fence's number.
WHOLE_TREE = f"""
WITH below AS (
  SELECT {_COLUMNS} FROM agent_runs r
  WHERE r.tenant_id = $1 AND r.root_run_id = $2 AND $3::bigint IS NOT NULL
)
"""

# The walk stops as soon as the limit is reached, so looking costs the same under a million runs as under a few. Every
# step is limited, too, or the planner may choose one that reads all children of a run (a bitmap) before it gives one.
_LOOK = """
SELECT count(*)::int AS scanned, count(*) FILTER (WHERE is_active)::int AS active,
  array_agg(run_id ORDER BY status <> 'queued', spawned_seq, ordinal) FILTER (WHERE is_active) AS run_ids
FROM (
  SELECT run_id, status, spawned_seq, ordinal, status IN ('queued', 'running', 'paused') AS is_active
  FROM below LIMIT $4
) seen
"""
LOOK = {
    scope: _BELOW.format(start=f"({start} LIMIT $4)", columns=_COLUMNS).replace("OFFSET 0", "LIMIT $4") + _LOOK
    for scope, start in _STARTS.items()
}
LOOK_AT_TREE = WHOLE_TREE + _LOOK

# In one statement, so that no snapshot outlives it: neither vacuum nor the memory of this process feels the size.
FILL = """
, listed AS (
  INSERT INTO {table} (n, run_id)
  SELECT row_number() OVER (ORDER BY status <> 'queued', spawned_seq, ordinal), run_id
  FROM below WHERE status IN ('queued', 'running', 'paused')
  RETURNING 1
)
SELECT (SELECT count(*) FROM below) AS scanned, (SELECT count(*) FROM listed) AS active
"""

# One statement for all that becomes of a chunk, so that the ids of its runs need not leave the database. Arrays and not
# joins, so that every plan goes down the primary keys, in their order. Leases are locked in the order of their runs, as
# heartbeats lock them; that one is held is told by `expires_at`, for which no index offers itself.
_CANCEL = """
WITH changed AS (
  UPDATE agent_runs r SET status = 'cancelled', finalized_seq = $3, finalized_at = clock_timestamp()
  WHERE r.tenant_id = $1 AND r.run_id = ANY ({chunk}) AND r.status IN ('queued', 'running', 'paused')
    AND ($4::timestamptz IS NULL OR r.status = 'queued' OR $4 <= clock_timestamp() OR NOT EXISTS (
      SELECT 1 FROM run_leases l
      WHERE l.tenant_id = r.tenant_id AND l.run_id = r.run_id AND l.expires_at > clock_timestamp()))
  RETURNING r.run_id, r.orchestration_group_id AS group_id, r.spawned_seq, r.ordinal, old.status AS before
), told AS (
  INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)
  SELECT $1, $5, $3, $6, $7, $8, c.run_ids, json_build_object(
    'reason', $9::text, 'cancelled_run_ids', to_json(c.run_ids), 'count', cardinality(c.run_ids),
    'include_root', $10::boolean, 'cancellation_id', $11::uuid, 'orchestration_group_id', $12::uuid)
  FROM (SELECT array_agg(run_id ORDER BY spawned_seq, ordinal) AS run_ids FROM changed) c WHERE c.run_ids IS NOT NULL
), due AS (
  DELETE FROM run_deadlines WHERE tenant_id = $1 AND run_id = ANY (ARRAY(SELECT run_id FROM changed))
), held AS (
  SELECT run_id FROM run_leases
  WHERE tenant_id = $1 AND run_id = ANY (ARRAY(SELECT run_id FROM changed WHERE before <> 'queued'))
    AND expires_at IS NOT NULL
  ORDER BY run_id FOR UPDATE
), released AS (
  UPDATE run_leases SET lease = NULL, expires_at = NULL
  WHERE tenant_id = $1 AND run_id = ANY (ARRAY(SELECT run_id FROM held))
), counted AS (
  UPDATE cancellations SET cancelled_count = cancelled_count + (SELECT count(*) FROM changed),
    scanned_count = greatest(scanned_count, $14)
  WHERE tenant_id = $1 AND cancellation_id = $11 AND EXISTS (SELECT FROM changed)
)
SELECT group_id, before, count(*)::int AS runs, (array_agg(run_id ORDER BY spawned_seq, ordinal))[:$13] AS first
FROM changed GROUP BY 1, 2
"""

# Of a chunk, the runs that are active and left alone: under a grace, with a worker that may still acknowledge.
_LEFT = """
SELECT run_id FROM agent_runs
WHERE tenant_id = $1 AND run_id = ANY ({chunk}) AND status IN ('queued', 'running', 'paused')
"""

# Groups whose orchestrator is under the same fence: all but those that reach out of what it covers.
CLOSE_COVERED = """
UPDATE orchestration_groups g SET
  failure_count = g.failure_count + q.failures,
  status = CASE WHEN g.status = 'running' THEN 'cancelled' ELSE g.status END,
  decided_at = coalesce(g.decided_at, clock_timestamp())
FROM unnest($2::uuid[], $3::int[]) AS q (group_id, failures)
WHERE g.tenant_id = $1 AND g.group_id = q.group_id
  AND g.group_id IS DISTINCT FROM $4 AND g.orchestrator_run_id IS DISTINCT FROM $5
RETURNING g.group_id
"""

CLOSE = """
UPDATE cancellations SET drained_at = clock_timestamp(), scanned_count = greatest(scanned_count, $3)
WHERE tenant_id = $1 AND cancellation_id = $2 AND num_nulls(drained_at) = 1
RETURNING extract(epoch FROM drained_at - fenced_at)::float AS seconds
"""

NOTE_SCANNED = """
UPDATE cancellations SET scanned_count = $3 WHERE tenant_id = $1 AND cancellation_id = $2 AND scanned_count < $3
"""

READ = """
SELECT c.cancellation_id, c.root_run_id, c.run_id, c.scope, c.group_id, c.reason, c.fence_seq, c.fenced_at,
  c.grace_until, c.drained_at, c.cancelled_count, c.scanned_count
FROM cancellations c WHERE c.tenant_id = $1 AND c.cancellation_id = $2
"""

# The way from a run up to its root, and the fences on it, open or drained: those that may cover the run. The fences on
# an orchestrator's groups pile up: of them, only that on the group of the run below it on this way.
FENCES_ABOVE = """
WITH RECURSIVE walk AS (
  SELECT 0 AS hop, r.run_id, r.parent_run_id, r.orchestration_group_id, r.spawned_seq, r.finalized_seq
  FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = $2
  UNION ALL
  SELECT w.hop + 1, p.run_id, p.parent_run_id, p.orchestration_group_id, p.spawned_seq, p.finalized_seq
  FROM walk w
  JOIN agent_runs p ON p.tenant_id = $1 AND p.run_id = w.parent_run_id
)
SELECT w.hop, w.run_id, w.parent_run_id, w.orchestration_group_id, w.spawned_seq, w.finalized_seq,
  c.cancellation_id, c.scope, c.fence_seq, c.reason, c.group_id, c.grace_until, c.drained_at,
  c.grace_until - clock_timestamp() AS grace_left
FROM walk w
LEFT JOIN LATERAL (
  SELECT * FROM cancellations c WHERE c.tenant_id = $1 AND c.run_id = w.run_id
    AND (c.group_id IS NULL OR c.group_id IN (SELECT orchestration_group_id FROM walk)) OFFSET 0
) c ON true
ORDER BY w.hop
"""

# The same for many runs, each run on their ways once, however many share it.
FENCES_ABOVE_ALL = f"""
WITH RECURSIVE {WAY_UP}
SELECT u.run_id, u.parent_run_id, u.orchestration_group_id, u.spawned_seq, u.finalized_seq,
  c.cancellation_id, c.scope, c.fence_seq, c.reason, c.group_id, c.grace_until
FROM up u
LEFT JOIN LATERAL (
  SELECT * FROM cancellations c WHERE c.tenant_id = $1 AND c.run_id = u.run_id
    AND (c.group_id IS NULL OR c.group_id IN (SELECT orchestration_group_id FROM up)) OFFSET 0
) c ON true
"""

# What a fence has cancelled, as the events of its drain tell it, and those of runs that ended under it by themselves.
# In the order in which the events are read (OFFSET 0 keeps their order apart from what is looked for in them, or each
# partition would be read up to its first hit), so that it ends with the last that is wanted, whatever the tree has told
# since.
CANCELLED_IDS = """
SELECT unnest(e.subjects) AS run_id
FROM (
  SELECT type, subjects, data FROM run_events
  WHERE tenant_id = $1 AND root_run_id = $2 AND seq > $3
  ORDER BY seq OFFSET 0
) e
WHERE e.type IN ('orchestration.cancellation_propagation', 'orchestration.child_lifecycle')
  AND e.data ->> 'cancellation_id' = $4
LIMIT $5
"""

# Which fence cancelled a run stands in the event of its end: that of a drain, or its own where it acknowledged.
FENCES_OF_ENDS = """
SELECT q.run_id AS ended_id, c.cancellation_id, c.run_id, c.scope, c.fence_seq, c.reason, c.group_id, c.grace_until
FROM unnest($2::uuid[], $3::uuid[], $4::bigint[]) AS q (run_id, root_run_id, seq)
JOIN run_events e ON e.tenant_id = $1 AND e.root_run_id = q.root_run_id AND e.seq = q.seq
JOIN cancellations c ON c.tenant_id = $1 AND c.cancellation_id = (e.data ->> 'cancellation_id')::uuid
"""

# Whether a run has spawned anything after a number of its tree, as far as so many runs tell that were spawned after it.
SPAWNED_SINCE = """
SELECT count(*) FILTER (WHERE parent_run_id = $3) = 0 AND count(*) < $5 AS nothing
FROM (
  SELECT parent_run_id FROM agent_runs
  WHERE tenant_id = $1 AND root_run_id = $2 AND spawned_seq > $4
  ORDER BY spawned_seq, ordinal LIMIT $5
) later
"""


@dataclass(frozen=True, slots=True)
class OpenFence:
    """A fence that is not drained yet, with what its drain needs to know.

    `own_group_id` is the group of the run that it stands on; its whole tree has at most `active_runs`.
    """

    tenant_id: UUID
    tenant_slug: str
    root_run_id: UUID
    fence: Fence
    surface: Surface
    own_group_id: UUID | None
    active_runs: int

    @property
    def start(self) -> UUID:
        """What the walk starts from: a run, or a group."""
        group_id = self.fence.group_id
        return group_id if self.fence.scope is FenceScope.GROUP and group_id is not None else self.fence.run_id

    @property
    def covers_tree(self) -> bool:
        """Whether it covers everything in its tree."""
        return self.fence.scope is FenceScope.RUN and self.fence.run_id == self.root_run_id


@dataclass(frozen=True, slots=True)
class FenceAbove:
    """A fence on the way up from a run, open or drained; `grace_left` by the database's clock, None without a grace."""

    fence: Fence
    drained: bool
    grace_left: timedelta | None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A fence as its readers see it."""

    cancellation_id: UUID
    root_run_id: UUID
    run_id: UUID
    scope: FenceScope
    group_id: UUID | None
    reason: str
    fence_seq: int
    fenced_at: datetime
    grace_until: datetime | None
    drained_at: datetime | None
    cancelled_count: int
    scanned_count: int

    @property
    def state(self) -> str:
        """How far it is: `draining` until everything that it covers is written down."""
        return "draining" if self.drained_at is None else "drained"

    @property
    def include_root(self) -> bool:
        """Whether it covers the run that it stands on."""
        return self.scope is FenceScope.RUN


@dataclass(frozen=True, slots=True)
class Listed:
    """The active runs under a fence in the order of their drain, or only how many there are, in a table by `table`.

    `is_whole`: these are all; else it was not looked further.
    """

    scanned: int
    active: int
    run_ids: Sequence[UUID] | None = None
    table: str | None = None
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of the listed runs: those after the first `after`, as many as `size`."""

    listed: Listed
    after: int
    size: int

    @property
    def source(self) -> str:
        """The ids in SQL, with one parameter."""
        table = self.listed.table
        return (
            "$2::uuid[]"
            if table is None
            else f"ARRAY(SELECT run_id FROM {table} WHERE n > $2::bigint AND n <= $2 + {self.size})"
        )

    @property
    def argument(self) -> object:
        """What that parameter is."""
        if self.listed.run_ids is None:
            return self.after
        return list(self.listed.run_ids[self.after : self.after + self.size])

    @property
    def is_last(self) -> bool:
        return self.after + self.size >= self.listed.active


@dataclass(frozen=True, slots=True)
class Changed:
    """The runs that a chunk has cancelled: how many by what they were before, and by their group; the first of them."""

    before: Counter[str]
    groups: Counter[UUID]
    first_ids: list[UUID]

    @property
    def runs(self) -> int:
        return self.before.total()


async def open_fences(
    session: ReadSession, *, limit: int, passing_over: Sequence[UUID] = (), elsewhere_than: Sequence[UUID] = ()
) -> list[OpenFence]:
    """Fences of all tenants that are not drained, the longest open first.

    Args:
        passing_over: fences that are left alone.
        elsewhere_than: the roots of trees that are left alone.
    """
    rows = await session.driver.fetch(OPEN, limit, list(passing_over), list(elsewhere_than))
    return [_open_fence(row) for row in rows]


async def active_under_open(session: ReadSession, keys: Collection[TreeKey]) -> dict[TreeKey, int]:
    """How many runs are active in those trees that have open fences still."""
    rows = await session.driver.fetch(ACTIVE_UNDER_OPEN, [key[0] for key in keys], [key[1] for key in keys])
    return {(row["tenant_id"], row["root_run_id"]): row["active_runs"] for row in rows}


async def open_fence(session: ReadSession, tenant_id: UUID, cancellation_id: UUID) -> OpenFence | None:
    """One fence; None once it is drained."""
    row = await session.driver.fetchrow(OPEN_ONE, tenant_id, cancellation_id)
    return _open_fence(row) if row is not None else None


async def claim(session: ReadSession, cancellation_id: UUID) -> bool:
    """Keep other drains of a fence away until `leave`; it spares work, and nothing rests on it.

    It ends with the connection, and so does the connection when its process stands still.
    """
    claimed: bool = await session.driver.fetchval(CLAIM, _lock_key(cancellation_id), IDLE_TIMEOUT)
    return claimed


async def leave(session: ReadSession, cancellation_id: UUID) -> None:
    """Give back what `claim` and `list_runs` took; else they end with the connection."""
    await session.driver.execute(f"DROP TABLE IF EXISTS pg_temp.{_table(cancellation_id)}")
    await session.driver.execute(LEAVE, _lock_key(cancellation_id))


async def look(session: ReadSession, target: OpenFence, *, limit: int) -> Listed:
    """The active runs under a fence, as far as it covers no more than `limit` runs in all."""
    row = await session.driver.fetchrow(
        LOOK_AT_TREE if target.covers_tree else LOOK[target.fence.scope], *_start(target), limit + 1
    )
    return Listed(row["scanned"], row["active"], run_ids=row["run_ids"] or [], is_whole=row["scanned"] <= limit)


async def list_runs(session: ReadSession, target: OpenFence) -> Listed:
    """Write the active runs under a fence into a temporary table, which `leave` drops."""
    table = _table(target.fence.cancellation_id)
    await session.driver.execute(f"CREATE TEMP TABLE {table} (n bigint NOT NULL, run_id uuid NOT NULL)")
    row = await session.driver.fetchrow(_walk(target) + FILL.format(table=table), *_start(target))
    await session.driver.execute(f"CREATE UNIQUE INDEX ON {table} (n) INCLUDE (run_id)")
    return Listed(row["scanned"], row["active"], table=table)


def chunk(listed: Listed, after: int) -> Chunk:
    """The next runs of a list: `CHUNK_RUNS`, or all that are left where they are hardly more.

    A group of 1,000 and its parent are no two transactions.
    """
    left = listed.active - after
    return Chunk(listed, after, left if left <= CHUNK_RUNS * 5 // 4 else CHUNK_RUNS)


async def cancel(session: WriteSession, target: OpenFence, part: Chunk, *, seq: int, keep_ids: int) -> Changed:
    """Cancel those runs of a chunk that are active still, but for those whose worker has a grace left.

    With what goes with it: the event of all of them, their deadlines and leases, and the count of their fence.

    Args:
        seq: the number of this transition; nobody takes it where nothing was cancelled.
        keep_ids: how many of the ids are handed back.
    """
    fence = target.fence
    rows = await session.driver.fetch(
        _CANCEL.format(chunk=part.source),
        target.tenant_id,
        part.argument,
        seq,
        fence.grace_until,
        target.root_run_id,
        EventType.CANCELLATION_PROPAGATION.value,
        target.surface.value,
        fence.run_id,
        fence.reason,
        fence.scope is FenceScope.RUN,
        fence.cancellation_id,
        fence.group_id,
        keep_ids,
        part.listed.scanned,
    )
    before: Counter[str] = Counter()
    groups: Counter[UUID] = Counter()
    for row in rows:
        before[row["before"]] += row["runs"]
        if row["group_id"] is not None:
            groups[row["group_id"]] += row["runs"]
    return Changed(before, groups, [run_id for row in rows for run_id in row["first"]][:keep_ids])


async def left_active(session: ReadSession, target: OpenFence, part: Chunk) -> list[UUID]:
    """Which runs of a chunk are active."""
    rows = await session.driver.fetch(_LEFT.format(chunk=part.source), target.tenant_id, part.argument)
    return [row["run_id"] for row in rows]


async def close_covered(session: WriteSession, target: OpenFence, failures: Mapping[UUID, int]) -> set[UUID]:
    """Count cancelled members in those of some groups whose orchestrator the fence covers, and close those groups."""
    outer_group: UUID | None = None
    outer_orchestrator: UUID | None = None
    match target.fence.scope:
        case FenceScope.RUN:
            outer_group = target.own_group_id
        case FenceScope.CHILDREN:
            outer_orchestrator = target.fence.run_id
        case FenceScope.GROUP:
            outer_group = target.fence.group_id
    rows = await session.driver.fetch(
        CLOSE_COVERED, target.tenant_id, list(failures), list(failures.values()), outer_group, outer_orchestrator
    )
    return {row["group_id"] for row in rows}


async def close(session: WriteSession, target: OpenFence, *, scanned: int) -> float | None:
    """Write down that a fence is drained; the seconds since it was set, for the one that was first to say so."""
    seconds: float | None = await session.driver.fetchval(
        CLOSE, target.tenant_id, target.fence.cancellation_id, scanned
    )
    return seconds


async def note_scanned(session: ReadSession, target: OpenFence, scanned: int) -> None:
    """Write down how many runs a fence covers, while they are being cancelled."""
    await session.driver.execute(NOTE_SCANNED, target.tenant_id, target.fence.cancellation_id, scanned)


async def grace_ended(session: ReadSession, waiting: Mapping[UUID, UUID]) -> set[UUID]:
    """Which of some fences, given with their tenants, have no grace left, by the database's clock."""
    rows = await session.driver.fetch(GRACE_ENDED, list(waiting), list(set(waiting.values())))
    return {row["cancellation_id"] for row in rows}


async def first_active(session: ReadSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> UUID | None:
    """One of some runs that is active, if there is any."""
    found: UUID | None = await session.driver.fetchval(FIRST_ACTIVE, tenant_id, run_ids)
    return found


async def active_among(session: ReadSession, runs: Sequence[tuple[UUID, UUID]]) -> set[UUID]:
    """Which of some runs, each given with its tenant, are active."""
    tenant_ids, run_ids = [run[0] for run in runs], [run[1] for run in runs]
    return {row["run_id"] for row in await session.driver.fetch(ACTIVE_AMONG, tenant_ids, run_ids)}


async def read(session: ReadSession, tenant_id: UUID, cancellation_id: UUID) -> Cancellation | None:
    """A fence, open or drained; None where the tenant has no such."""
    row = await session.driver.fetchrow(READ, tenant_id, cancellation_id)
    if row is None:
        return None
    return Cancellation(**{**dict(row), "scope": FenceScope(row["scope"])})


async def fences_above(
    session: ReadSession, tenant_id: UUID, run_id: UUID
) -> tuple[list[Step], dict[UUID, FenceAbove]]:
    """The way from a run up to its root, the run first; and the fences on it, by id."""
    path: dict[int, Step] = {}
    standing: dict[UUID, FenceAbove] = {}
    for row in await session.driver.fetch(FENCES_ABOVE, tenant_id, run_id):
        path[row["hop"]] = Step(
            row["run_id"], row["parent_run_id"], row["orchestration_group_id"], row["spawned_seq"], row["finalized_seq"]
        )
        if row["cancellation_id"] is not None:
            standing[row["cancellation_id"]] = FenceAbove(
                _fence(row), drained=row["drained_at"] is not None, grace_left=row["grace_left"]
            )
    return list(path.values()), standing


async def spawned_nothing_since(
    session: ReadSession, tenant_id: UUID, root_run_id: UUID, run_id: UUID, seq: int
) -> bool:
    """Whether a run has certainly no children that came after a number of its tree.

    In doubt it has: no more than `MAX_LATER` of what the tree has spawned since are looked at.
    """
    nothing: bool = await session.driver.fetchval(SPAWNED_SINCE, tenant_id, root_run_id, run_id, seq, MAX_LATER)
    return nothing


async def _fences_over(session: ReadSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> dict[UUID, Fence]:
    """The fences, open or drained, that cover runs; of several, the one that was set first.

    What was set when a run had ended is not what has cancelled it.
    """
    steps: dict[UUID, Step] = {}
    standing: list[Fence] = []
    for row in await session.driver.fetch(FENCES_ABOVE_ALL, tenant_id, run_ids):
        steps[row["run_id"]] = Step(
            row["run_id"], row["parent_run_id"], row["orchestration_group_id"], row["spawned_seq"], row["finalized_seq"]
        )
        if row["cancellation_id"] is not None:
            standing.append(_fence(row))
    known = Ancestry(standing, steps)
    found: dict[UUID, Fence] = {}
    for run_id in run_ids:
        fence = known.fence_of(run_id) if run_id in steps else None
        # Where the first that covers the run came after its end, so did all others.
        if fence is not None and fence.fence_seq < (steps[run_id].finalized_seq or math.inf):
            found[run_id] = fence
    return found


async def fences_of_ends(
    session: ReadSession, tenant_id: UUID, ends: Mapping[UUID, tuple[UUID, int]]
) -> dict[UUID, Fence]:
    """The fences that cancelled runs; one that nobody but its runtime cancelled is absent.

    Of a run whose end is not written down, or not told any more, it is the first that was set over it, which is what
    its worker hears.

    Args:
        ends: for each run its root, and the number of its end, or 0.
    """
    rows = await session.driver.fetch(
        FENCES_OF_ENDS, tenant_id, list(ends), [root for root, _ in ends.values()], [seq for _, seq in ends.values()]
    )
    found = {row["ended_id"]: _fence(row) for row in rows}
    untold = [run_id for run_id in ends if run_id not in found]
    return {**found, **(await _fences_over(session, tenant_id, untold))} if untold else found


async def reasons_of_ends(
    session: ReadSession, tenant_id: UUID, ends: Mapping[UUID, tuple[UUID, int]]
) -> dict[UUID, str]:
    """Why runs were cancelled. See `fences_of_ends`."""
    return {run_id: fence.reason for run_id, fence in (await fences_of_ends(session, tenant_id, ends)).items()}


async def cancelled_ids(
    session: ReadSession, tenant_id: UUID, root_run_id: UUID, cancellation_id: UUID, fence_seq: int, limit: int
) -> list[UUID]:
    """The first runs that a fence has cancelled, in the order of their ends.

    Args:
        limit: no more than the fence counts, so that nothing is looked for after the last of them: each is counted in
            the transaction that writes its event.
    """
    if limit == 0:
        return []
    rows = await session.driver.fetch(CANCELLED_IDS, tenant_id, root_run_id, fence_seq, str(cancellation_id), limit)
    return [row["run_id"] for row in rows]


def _walk(target: OpenFence) -> str:
    return WHOLE_TREE if target.covers_tree else BELOW[target.fence.scope]


def _start(target: OpenFence) -> tuple[object, ...]:
    return target.tenant_id, target.start, target.fence.fence_seq


def _lock_key(cancellation_id: UUID) -> int:
    return int.from_bytes(cancellation_id.bytes[8:], signed=True)


def _table(cancellation_id: UUID) -> str:
    return f"drain_{cancellation_id.hex}"


def _fence(row: Record) -> Fence:
    return Fence(
        cancellation_id=row["cancellation_id"],
        run_id=row["run_id"],
        scope=FenceScope(row["scope"]),
        fence_seq=row["fence_seq"],
        reason=row["reason"],
        group_id=row["group_id"],
        grace_until=row["grace_until"],
    )


def _open_fence(row: Record) -> OpenFence:
    return OpenFence(
        tenant_id=row["tenant_id"],
        tenant_slug=row["tenant_slug"],
        root_run_id=row["root_run_id"],
        fence=_fence(row),
        surface=Surface(row["surface"]),
        own_group_id=row["own_group_id"],
        active_runs=row["active_runs"],
    )
