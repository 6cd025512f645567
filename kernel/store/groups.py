"""Groups: their tallies, their decisions, and those whose time is up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from asyncpg import Record

from kernel.domain.events import Surface
from kernel.domain.joins import FailurePolicy, GroupStatus, JoinMode, JoinParameters, Tally
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.trees import TreeKey

_COLUMNS = """
g.tenant_id, g.group_id, g.root_run_id, g.orchestrator_run_id, g.surface, g.status, g.join_mode, g.failure_policy,
g.quorum_threshold, g.timeout_s, g.size, g.success_count, g.failure_count, g.decided_seq, g.propagation_reason,
g.deadline, (SELECT n.slug FROM tenants n WHERE n.tenant_id = g.tenant_id) AS tenant_slug
"""

LOAD = f"""
SELECT {_COLUMNS}
FROM unnest($2::uuid[]) AS q (group_id)
JOIN orchestration_groups g ON g.tenant_id = $1 AND g.group_id = q.group_id
ORDER BY g.group_id
"""

# A decided group goes on counting, so that its numbers stay true; its decision is not touched.
COUNT = f"""
UPDATE orchestration_groups g SET
  success_count = g.success_count + q.successes,
  failure_count = g.failure_count + q.failures
FROM unnest($2::uuid[], $3::int[], $4::int[]) AS q (group_id, successes, failures)
WHERE g.tenant_id = $1 AND g.group_id = q.group_id
RETURNING {_COLUMNS}
"""

# An undecided group is known by its `decided_at`, for `status = 'running'` would bring in the index of all deadlines.
DECIDE = """
UPDATE orchestration_groups g SET status = q.status, decided_seq = q.seq, decided_at = clock_timestamp(),
  propagation_reason = q.reason
FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::text[]) AS q (group_id, status, seq, reason)
WHERE g.tenant_id = $1 AND g.group_id = q.group_id AND g.decided_at IS NULL
"""

# Closed with its orchestrator: that is no decision, so it has no number and no losers.
CLOSE = """
UPDATE orchestration_groups g SET status = 'cancelled', decided_at = clock_timestamp()
WHERE g.tenant_id = $1 AND g.group_id = ANY ($2::uuid[]) AND g.decided_at IS NULL
"""

# The timeout runs from the group's start, whenever it is named.
REPARAMETERISE = f"""
UPDATE orchestration_groups g SET join_mode = $3, quorum_threshold = $4, timeout_s = $5::int,
  deadline = g.created_at + make_interval(secs => $5::int)
WHERE g.tenant_id = $1 AND g.group_id = $2 AND g.decided_at IS NULL
RETURNING {_COLUMNS}
"""

DUE = """
SELECT g.tenant_id, g.root_run_id, g.group_id
FROM orchestration_groups g
WHERE g.status = 'running' AND g.deadline <= statement_timestamp() AND NOT g.group_id = ANY ($2::uuid[])
  AND NOT g.root_run_id = ANY ($3::uuid[])
ORDER BY g.deadline
LIMIT $1
"""

STILL_DUE = f"""
SELECT {_COLUMNS}
FROM orchestration_groups g
WHERE g.tenant_id = $1 AND g.group_id = ANY ($2::uuid[]) AND g.decided_at IS NULL
  AND g.deadline <= clock_timestamp()
ORDER BY g.deadline, g.group_id
"""

NEXT_DEADLINE = """
SELECT extract(epoch FROM min(deadline) - clock_timestamp())::float8 FROM orchestration_groups WHERE status = 'running'
"""

# The members of a group share the number of their spawn, which no other run of their tree has; so the index in tree
# order finds them, and none by group is needed.
MEMBER = """
r.tenant_id = g.tenant_id AND r.root_run_id = g.root_run_id AND r.spawned_seq = g.spawned_seq
  AND r.orchestration_group_id = g.group_id
"""

MEMBERS = f"""
SELECT r.run_id FROM orchestration_groups g JOIN agent_runs r ON {MEMBER}
WHERE g.tenant_id = $1 AND g.group_id = $2
ORDER BY r.ordinal
"""


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it stands."""

    tenant_id: UUID
    group_id: UUID
    root_run_id: UUID
    orchestrator_run_id: UUID
    surface: Surface
    status: GroupStatus
    parameters: JoinParameters
    tally: Tally
    timeout_s: int
    decided_seq: int | None
    propagation_reason: str | None
    deadline: datetime
    tenant_slug: str

    @property
    def undecided(self) -> bool:
        return self.status is GroupStatus.RUNNING


def _group(row: Record) -> Group:
    return Group(
        tenant_id=row["tenant_id"],
        group_id=row["group_id"],
        root_run_id=row["root_run_id"],
        orchestrator_run_id=row["orchestrator_run_id"],
        surface=Surface(row["surface"]),
        status=GroupStatus(row["status"]),
        parameters=JoinParameters(
            size=row["size"],
            mode=JoinMode(row["join_mode"]),
            failure_policy=FailurePolicy(row["failure_policy"]),
            quorum_threshold=row["quorum_threshold"],
        ),
        tally=Tally(row["size"], row["success_count"], row["failure_count"]),
        timeout_s=row["timeout_s"],
        decided_seq=row["decided_seq"],
        propagation_reason=row["propagation_reason"],
        deadline=row["deadline"],
        tenant_slug=row["tenant_slug"],
    )


async def load(session: ReadSession, tenant_id: UUID, group_ids: Sequence[UUID]) -> dict[UUID, Group]:
    """Groups of a tenant by id; what it does not have is absent."""
    rows = await session.driver.fetch(LOAD, tenant_id, list(group_ids))
    return {row["group_id"]: _group(row) for row in rows}


async def count(session: WriteSession, tenant_id: UUID, tallies: Mapping[UUID, tuple[int, int]]) -> list[Group]:
    """Add successes and failures to the tallies of groups of a locked tree; the groups as they are then."""
    rows = await session.driver.fetch(
        COUNT,
        tenant_id,
        list(tallies),
        [successes for successes, _ in tallies.values()],
        [failures for _, failures in tallies.values()],
    )
    return sorted((_group(row) for row in rows), key=lambda group: group.group_id)


async def decide(
    session: WriteSession, tenant_id: UUID, decisions: Sequence[tuple[UUID, GroupStatus, int, str | None]]
) -> None:
    """Write decisions on undecided groups of a locked tree, as `(group_id, status, seq, propagation reason)`."""
    columns = [list(column) for column in zip(*decisions, strict=True)]
    await session.driver.execute(DECIDE, tenant_id, columns[0], [s.value for s in columns[1]], columns[2], columns[3])


async def close(session: WriteSession, tenant_id: UUID, group_ids: Sequence[UUID]) -> None:
    """Close groups of a locked tree whose orchestrator is under a fence; those that are decided stay so."""
    await session.driver.execute(CLOSE, tenant_id, list(group_ids))


async def reparameterise(
    session: WriteSession, tenant_id: UUID, group_id: UUID, parameters: JoinParameters, timeout_s: int
) -> Group:
    """Give an undecided group of a locked tree other parameters."""
    row = await session.driver.fetchrow(
        REPARAMETERISE, tenant_id, group_id, parameters.mode.value, parameters.quorum_threshold, timeout_s
    )
    return _group(row)


async def due(
    session: ReadSession, *, limit: int, passing_over: Sequence[UUID] = (), elsewhere_than: Sequence[UUID] = ()
) -> list[tuple[TreeKey, UUID]]:
    """Undecided groups past their deadline, the longest overdue first, as `(tree, group_id)`.

    Args:
        passing_over: groups that are left alone.
        elsewhere_than: the roots of trees that are left alone.
    """
    rows = await session.driver.fetch(DUE, limit, list(passing_over), list(elsewhere_than))
    return [((row["tenant_id"], row["root_run_id"]), row["group_id"]) for row in rows]


async def still_due(session: WriteSession, tenant_id: UUID, group_ids: Sequence[UUID]) -> list[Group]:
    """Which of some groups of a locked tree are undecided and past their deadline by the database's clock."""
    return [_group(row) for row in await session.driver.fetch(STILL_DUE, tenant_id, list(group_ids))]


async def seconds_to_next_deadline(session: ReadSession) -> float | None:
    """How long until the next undecided group is due; None when there is none."""
    seconds: float | None = await session.driver.fetchval(NEXT_DEADLINE)
    return seconds


async def members(session: ReadSession, tenant_id: UUID, group_id: UUID) -> list[UUID]:
    """The members of a group in order."""
    return [row["run_id"] for row in await session.driver.fetch(MEMBERS, tenant_id, group_id)]
