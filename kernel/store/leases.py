"""Leases: who may work on which run, and until when."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from kernel.store.actors import MAX_ACTORS
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.trees import TreeKey

AGENTS = "SELECT slug, agent_id FROM agents WHERE tenant_id = $1 AND slug = ANY ($2::text[])"

# From tree to tree by the index, one probe each: a tree of 100,000 queued runs costs as much as a tree of three. Each
# agent's trees from the one after `after` to the last, then from the first up to `after`; both ends are in the index's
# condition, or the last probe would read through all that is queued beyond.
TREES = """
WITH RECURSIVE found AS (
  SELECT w.agent_id, w.place, p.round, 0 AS hop, p.root_run_id, p.last
  FROM unnest($2::uuid[], $3::uuid[]) WITH ORDINALITY AS w (agent_id, after, place)
  CROSS JOIN LATERAL (VALUES
    (0, w.after, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid),
    (1, '00000000-0000-0000-0000-000000000000'::uuid, w.after)) AS p (round, root_run_id, last)
  UNION ALL
  SELECT f.agent_id, f.place, f.round, f.hop + 1, n.root_run_id, f.last
  FROM found f
  CROSS JOIN LATERAL (
    SELECT r.root_run_id FROM agent_runs r
    WHERE r.tenant_id = $1 AND r.agent_id = f.agent_id AND r.status = 'queued' AND r.root_run_id > f.root_run_id
      AND r.root_run_id <= f.last
    ORDER BY r.root_run_id
    LIMIT 1
  ) n
  WHERE f.hop < $4
)
SELECT agent_id, root_run_id FROM found WHERE hop > 0
ORDER BY row_number() OVER (PARTITION BY agent_id ORDER BY round, hop), place
"""

# Under the locks: what is queued now, for each agent in each tree, in the order of the tree, after a position in it.
QUEUED = """
SELECT q.agent_id, q.root_run_id, r.run_id, r.surface, r.orchestration_group_id,
  (SELECT n.slug FROM tenants n WHERE n.tenant_id = $1) AS tenant_slug, r.spawned_seq, r.ordinal
FROM unnest($2::uuid[], $3::uuid[], $5::bigint[], $6::int[]) WITH ORDINALITY
  AS q (agent_id, root_run_id, after_seq, after_ordinal, place)
CROSS JOIN LATERAL (
  SELECT r.run_id, r.surface, r.orchestration_group_id, r.spawned_seq, r.ordinal FROM agent_runs r
  WHERE r.tenant_id = $1 AND r.agent_id = q.agent_id AND r.root_run_id = q.root_run_id AND r.status = 'queued'
    AND (r.spawned_seq, r.ordinal) > (q.after_seq, q.after_ordinal)
  ORDER BY r.spawned_seq, r.ordinal
  LIMIT $4
) r
ORDER BY q.place, r.spawned_seq, r.ordinal
"""

GRANT = """
WITH taken AS (
  SELECT * FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::uuid[]) AS q (run_id, root_run_id, seq, lease)
), started AS (
  UPDATE agent_runs r SET status = 'running', started_seq = q.seq, started_at = clock_timestamp()
  FROM taken q WHERE r.tenant_id = $1 AND r.run_id = q.run_id
)
INSERT INTO run_leases AS l (tenant_id, run_id, root_run_id, attempt, lease, granted, expires_at, token_expires_at)
SELECT $1, q.run_id, q.root_run_id, 1, q.lease, q.lease, clock_timestamp() + make_interval(secs => $6),
  clock_timestamp() + make_interval(secs => $7)
FROM taken q
ON CONFLICT (tenant_id, run_id) DO UPDATE SET attempt = l.attempt + 1, lease = EXCLUDED.lease,
  granted = EXCLUDED.granted, expires_at = EXCLUDED.expires_at, token_expires_at = EXCLUDED.token_expires_at
RETURNING l.run_id, l.attempt, l.expires_at
"""

# All but the lease never changes, so this needs no lock.
DESCRIBE = """
SELECT r.run_id, r.root_run_id, r.parent_run_id, r.parent_node_id, r.depth, r.spawn_key, r.orchestration_group_id,
  r.agent_id, a.slug AS agent_slug, r.surface, r.effective_scopes, l.input::text AS input, l.trace_parent,
  d.deadline AS run_deadline, c.actors
FROM unnest($2::uuid[]) AS q (run_id)
JOIN agent_runs r ON r.tenant_id = $1 AND r.run_id = q.run_id
JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
JOIN run_payloads l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id
LEFT JOIN run_deadlines d ON d.tenant_id = r.tenant_id AND d.run_id = r.run_id
CROSS JOIN LATERAL (
  WITH RECURSIVE up AS (
    SELECT r.parent_run_id AS run_id, 1 AS hop
    UNION ALL
    SELECT p.parent_run_id, u.hop + 1
    FROM up u JOIN agent_runs p ON p.tenant_id = $1 AND p.run_id = u.run_id
    WHERE u.hop < $3
  )
  SELECT array_agg(run_id ORDER BY hop) FILTER (WHERE run_id IS NOT NULL) AS actors FROM up
) c
"""

# Of several leases that are named of one run, at most one is the last that was granted.
HELD = """
SELECT r.run_id, q.lease, r.root_run_id, r.status, r.finalized_seq,
  l.lease = q.lease AND l.expires_at > clock_timestamp() AS held,
  l.token_expires_at < clock_timestamp() + make_interval(secs => $4) AS token_ends,
  extract(epoch FROM l.expires_at - clock_timestamp())::float8 AS left_s, l.expires_at
FROM unnest($2::uuid[], $3::uuid[]) AS q (run_id, lease)
JOIN agent_runs r ON r.tenant_id = $1 AND r.run_id = q.run_id
JOIN run_leases l ON l.tenant_id = r.tenant_id AND l.run_id = r.run_id AND l.granted = q.lease
"""

# An extension never shortens. Rows are taken in the order of their ids, by everybody.
RENEW = """
WITH held AS (
  SELECT l.tenant_id, l.run_id, q.fresh_token
  FROM unnest($2::uuid[], $3::boolean[]) AS q (run_id, fresh_token)
  JOIN run_leases l ON l.tenant_id = $1 AND l.run_id = q.run_id
  ORDER BY l.run_id
  FOR UPDATE OF l
)
UPDATE run_leases l SET
  expires_at = greatest(l.expires_at, clock_timestamp() + make_interval(secs => $4)),
  token_expires_at = CASE WHEN h.fresh_token THEN clock_timestamp() + make_interval(secs => $5)
    ELSE l.token_expires_at END
FROM held h
WHERE l.tenant_id = h.tenant_id AND l.run_id = h.run_id
RETURNING l.run_id, l.expires_at
"""

EXPIRED = """
SELECT l.tenant_id, l.root_run_id, l.run_id
FROM run_leases l
WHERE l.lease IS NOT NULL AND l.expires_at <= statement_timestamp() AND NOT l.run_id = ANY ($2::uuid[])
  AND NOT l.root_run_id = ANY ($3::uuid[])
ORDER BY l.expires_at
LIMIT $1
"""

# The number and the time of the last start stay: what is queued again has been started.
REQUEUE = """
WITH released AS (
  UPDATE run_leases l SET lease = NULL, expires_at = NULL
  WHERE l.tenant_id = $1 AND l.run_id = ANY ($2::uuid[])
)
UPDATE agent_runs r SET status = 'queued' WHERE r.tenant_id = $1 AND r.run_id = ANY ($2::uuid[])
"""

# As though they had never been granted: nobody has heard of them. What was never leased before has no lease again.
GIVE_BACK = """
WITH first AS (
  DELETE FROM run_leases l WHERE l.tenant_id = $1 AND l.run_id = ANY ($2::uuid[]) AND l.attempt = 1
), repeated AS (
  UPDATE run_leases l SET lease = NULL, expires_at = NULL, attempt = l.attempt - 1
  WHERE l.tenant_id = $1 AND l.run_id = ANY ($2::uuid[]) AND l.attempt > 1
)
UPDATE agent_runs r SET status = 'queued' WHERE r.tenant_id = $1 AND r.run_id = ANY ($2::uuid[])
"""

NEXT_EXPIRY = (
    "SELECT extract(epoch FROM min(expires_at) - clock_timestamp())::float8 FROM run_leases WHERE lease IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Queued:
    """A run that a worker could take."""

    agent_id: UUID
    root_run_id: UUID
    run_id: UUID
    surface: str
    group_id: UUID | None
    tenant_slug: str
    spawned_seq: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease that was granted: by its `attempt` it supersedes all before it."""

    lease: UUID
    attempt: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Described:
    """What a worker is told of a run; the input is JSON text."""

    run_id: UUID
    root_run_id: UUID
    parent_run_id: UUID | None
    parent_node_id: str | None
    depth: int
    spawn_key: str | None
    group_id: UUID | None
    agent_id: UUID
    agent_slug: str
    surface: str
    effective_scopes: tuple[str, ...]
    input: str
    run_deadline: datetime | None
    actors: tuple[UUID, ...]
    trace_parent: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """How the lease stands that was the last to be granted of a run.

    `held`: it is the current one and has not expired. `token_ends`: the run's token is near its end. `left_s`: how many
    seconds are left of the lease, until `expires_at`; both None where it was given back.
    """

    run_id: UUID
    lease: UUID
    root_run_id: UUID
    status: str
    finalized_seq: int | None
    held: bool
    token_ends: bool
    left_s: float | None
    expires_at: datetime | None


async def agents_by_slug(session: ReadSession, tenant_id: UUID, slugs: Iterable[str]) -> dict[str, UUID]:
    """The agents of a tenant by slug; those it does not have are absent."""
    return {row["slug"]: row["agent_id"] for row in await session.driver.fetch(AGENTS, tenant_id, list(slugs))}


async def trees_with_work(
    session: ReadSession, tenant_id: UUID, agents: Sequence[tuple[UUID, UUID]], *, per_agent: int
) -> list[tuple[UUID, UUID]]:
    """Where something is queued, as `(agent_id, root_run_id)`: each agent's next tree, then each one's next but one.

    Args:
        agents: the agents in the order in which they are served, each with the root after which its turn begins.
        per_agent: how many trees of each, both before and after the last one.
    """
    rows = await session.driver.fetch(
        TREES, tenant_id, [a for a, _ in agents], [after for _, after in agents], per_agent
    )
    return [(row["agent_id"], row["root_run_id"]) for row in rows]


async def queued(
    session: WriteSession,
    tenant_id: UUID,
    places: Mapping[tuple[UUID, UUID], tuple[int, int]],
    *,
    per_place: int,
) -> list[Queued]:
    """What is queued in locked trees, in the order of each.

    Args:
        places: as `(agent_id, root_run_id)`, each with the `(spawned_seq, ordinal)` after which it is read.
        per_place: how many runs of each.
    """
    rows = await session.driver.fetch(
        QUEUED,
        tenant_id,
        [agent_id for agent_id, _ in places],
        [root_run_id for _, root_run_id in places],
        per_place,
        [seq for seq, _ in places.values()],
        [ordinal for _, ordinal in places.values()],
    )
    return [Queued(*row.values()) for row in rows]


async def grant(
    session: WriteSession, tenant_id: UUID, taken: Sequence[tuple[UUID, UUID, int, UUID]], *, lease_s: int, token_s: int
) -> dict[UUID, Granted]:
    """Start queued runs of locked trees under leases, as `(run_id, root_run_id, seq, lease)`."""
    columns = [list(column) for column in zip(*taken, strict=True)]
    rows = await session.driver.fetch(GRANT, tenant_id, *columns, lease_s, token_s)
    leases = {run_id: lease for run_id, _, _, lease in taken}
    return {row["run_id"]: Granted(leases[row["run_id"]], row["attempt"], row["expires_at"]) for row in rows}


async def describe(session: ReadSession, tenant_id: UUID, run_ids: Iterable[UUID]) -> dict[UUID, Described]:
    """What their workers are told of runs."""
    rows = await session.driver.fetch(DESCRIBE, tenant_id, list(run_ids), MAX_ACTORS)
    return {row["run_id"]: _described(row) for row in rows}


async def held(
    session: ReadSession, tenant_id: UUID, leases: Iterable[tuple[UUID, UUID]], *, token_margin_s: float
) -> dict[UUID, Held]:
    """How leases stand, by run; one that is not the last of its run is absent. It holds while their trees are locked.

    Args:
        leases: as `(run_id, lease)`.
        token_margin_s: how many seconds before its end a run's token counts as ending.
    """
    wanted = list(leases)
    rows = await session.driver.fetch(
        HELD, tenant_id, [run_id for run_id, _ in wanted], [lease for _, lease in wanted], token_margin_s
    )
    return {row["run_id"]: Held(**dict(row) | {"held": row["held"] is True}) for row in rows}


async def renew(
    session: WriteSession, tenant_id: UUID, fresh_tokens: Mapping[UUID, bool], *, extend_s: int, token_s: int
) -> dict[UUID, datetime]:
    """Extend leases that are held, of locked trees; by run, when each expires now.

    Args:
        fresh_tokens: the runs, and whether each gets a new token, of `token_s` seconds.
    """
    wanted = sorted(fresh_tokens.items())
    rows = await session.driver.fetch(
        RENEW, tenant_id, [r for r, _ in wanted], [f for _, f in wanted], extend_s, token_s
    )
    return {row["run_id"]: row["expires_at"] for row in rows}


async def expired(
    session: ReadSession, *, limit: int, passing_over: Sequence[UUID] = (), elsewhere_than: Sequence[UUID] = ()
) -> list[tuple[TreeKey, UUID]]:
    """Runs whose lease has run out, the longest ago first, as `(tree, run_id)`.

    Args:
        passing_over: runs that are left alone.
        elsewhere_than: the roots of trees that are left alone.
    """
    rows = await session.driver.fetch(EXPIRED, limit, list(passing_over), list(elsewhere_than))
    return [((row["tenant_id"], row["root_run_id"]), row["run_id"]) for row in rows]


async def requeue(session: WriteSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> None:
    """Take back the leases of runs of a locked tree, and put the runs back in the queue."""
    await session.driver.execute(REQUEUE, tenant_id, list(run_ids))


async def give_back(session: WriteSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> None:
    """Take back leases that no worker has heard of, so that they count as no attempt, and queue their runs again."""
    await session.driver.execute(GIVE_BACK, tenant_id, list(run_ids))


async def seconds_to_next_expiry(session: ReadSession) -> float | None:
    """How long until the next lease runs out; None when none is held."""
    seconds: float | None = await session.driver.fetchval(NEXT_EXPIRY)
    return seconds


def _described(row: Record) -> Described:
    return Described(
        run_id=row["run_id"],
        root_run_id=row["root_run_id"],
        parent_run_id=row["parent_run_id"],
        parent_node_id=row["parent_node_id"],
        depth=row["depth"],
        spawn_key=row["spawn_key"],
        group_id=row["orchestration_group_id"],
        agent_id=row["agent_id"],
        agent_slug=row["agent_slug"],
        surface=row["surface"],
        effective_scopes=tuple(row["effective_scopes"]),
        input=row["input"],
        run_deadline=row["run_deadline"],
        actors=tuple(row["actors"] or ()),
        trace_parent=row["trace_parent"],
    )
