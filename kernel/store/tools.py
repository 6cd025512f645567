"""Tools and their versions, and the runs that are made by calling them."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession, WriteSession

Row = Mapping[str, Any]

# The slug's row is locked by whoever numbers a version, so concurrent ones get distinct, consecutive numbers.
NEXT_VERSION = """
INSERT INTO tools AS t (tenant_id, tool_id, slug, latest_version) VALUES ($1, $2, $3, 1)
ON CONFLICT ON CONSTRAINT tools_slug DO UPDATE SET latest_version = t.latest_version + 1, updated_at = now()
RETURNING t.tool_id, t.slug, t.is_active, t.latest_version AS version, t.created_at, t.updated_at
"""

INSERT_VERSION = """
INSERT INTO tool_versions (tenant_id, tool_id, version, name, implementation_type, config, input_schema, output_schema)
VALUES ($1, $2, $3, $4, $5, $6::json, $7::json, $8::json)
"""

NEWEST = """
SELECT t.tool_id, t.slug, t.is_active, v.version, v.name, v.implementation_type, v.config, v.input_schema,
  v.output_schema, t.created_at, t.updated_at
FROM tools t
JOIN tool_versions v ON v.tenant_id = t.tenant_id AND v.tool_id = t.tool_id AND v.version = t.latest_version
WHERE t.tenant_id = $1
"""
ONE = NEWEST + "AND t.slug = $2"
PAGE = NEWEST + "AND t.slug > $2 ORDER BY t.slug LIMIT $3"

VERSIONS = """
SELECT v.version, v.name, v.implementation_type, v.config, v.input_schema, v.output_schema, v.created_at
FROM tool_versions v WHERE v.tenant_id = $1 AND v.tool_id = $2
ORDER BY v.version DESC LIMIT $3
"""

SET_ACTIVE = "UPDATE tools SET is_active = $3, updated_at = now() WHERE tenant_id = $1 AND slug = $2"

# All that a call rests on, each part null where there is none: the newest version, the caller, and what an earlier
# call with the same key has made.
CALL = """
SELECT t.tool_id, t.is_active, v.version, v.implementation_type, v.config, v.input_schema, v.output_schema,
  c.run_id AS caller_run_id, c.effective_scopes AS caller_scopes,
  e.run_id AS earlier_run_id, p.request_digests AS earlier_digests
FROM (SELECT) AS one
LEFT JOIN tools t ON t.tenant_id = $1 AND t.slug = $2
LEFT JOIN tool_versions v ON v.tenant_id = t.tenant_id AND v.tool_id = t.tool_id AND v.version = t.latest_version
LEFT JOIN agent_runs c ON c.tenant_id = $1 AND c.run_id = $3
LEFT JOIN agent_runs e ON e.tenant_id = $1 AND e.parent_run_id = $3 AND e.spawn_key = $4
LEFT JOIN run_payloads p ON p.tenant_id = e.tenant_id AND p.run_id = e.run_id
"""

TARGET = """
SELECT a.agent_id, a.slug, a.status FROM agents a
WHERE a.tenant_id = $1 AND (a.agent_id = $2 OR a.slug = $3)
"""

# A child that was called, and by the database's clock how long it has left.
CALLED = """
SELECT r.run_id, r.root_run_id, r.parent_run_id, r.parent_node_id, r.depth, r.spawn_key, r.orchestration_group_id,
  r.status, r.finalized_seq, r.effective_scopes, r.surface, r.timeout_s, r.agent_id, a.slug AS agent_slug, p.output,
  p.error,
  extract(epoch FROM r.created_at + make_interval(secs => r.timeout_s) - clock_timestamp())::float8 AS left_s
FROM agent_runs r
JOIN agents a ON a.tenant_id = r.tenant_id AND a.agent_id = r.agent_id
JOIN run_payloads p ON p.tenant_id = r.tenant_id AND p.run_id = r.run_id
WHERE r.tenant_id = $1 AND r.run_id = $2
"""

WITH_PREFIX = """
SELECT r.run_id FROM agent_runs r
WHERE r.tenant_id = $1 AND r.run_id = ANY ($2::uuid[]) AND starts_with(r.spawn_key, $3)
"""

DROP_DEADLINE = "DELETE FROM run_deadlines WHERE tenant_id = $1 AND run_id = $2"


async def next_version(session: WriteSession, tenant_id: UUID, tool_id: UUID, slug: str) -> Row:
    """Take the next number of a slug's versions; `tool_id` is that of a new slug."""
    row: Row = await session.driver.fetchrow(NEXT_VERSION, tenant_id, tool_id, slug)
    return row


async def insert_version(
    session: WriteSession,
    tenant_id: UUID,
    tool_id: UUID,
    version: int,
    *,
    name: str,
    implementation_type: str,
    config: str,
    input_schema: str | None,
    output_schema: str | None,
) -> None:
    """Write a version; config and schemas are JSON texts."""
    await session.driver.execute(
        INSERT_VERSION, tenant_id, tool_id, version, name, implementation_type, config, input_schema, output_schema
    )


async def find(session: ReadSession, tenant_id: UUID, slug: str) -> Row | None:
    """A tool as its newest version has it."""
    row: Row | None = await session.driver.fetchrow(ONE, tenant_id, slug)
    return row


async def page(session: ReadSession, tenant_id: UUID, after: str, limit: int) -> Sequence[Row]:
    """Tools by slug, beyond `after`."""
    rows: Sequence[Row] = await session.driver.fetch(PAGE, tenant_id, after, limit)
    return rows


async def versions(session: ReadSession, tenant_id: UUID, tool_id: UUID, limit: int) -> Sequence[Row]:
    """The newest versions of a tool, the newest first."""
    rows: Sequence[Row] = await session.driver.fetch(VERSIONS, tenant_id, tool_id, limit)
    return rows


async def set_active(session: WriteSession, tenant_id: UUID, slug: str, *, is_active: bool) -> None:
    """Switch a tool on or off."""
    await session.driver.execute(SET_ACTIVE, tenant_id, slug, is_active)


async def load_call(session: ReadSession, tenant_id: UUID, slug: str, caller_run_id: UUID, key: str) -> Row:
    """What a call of a tool rests on, in one round trip."""
    row: Row = await session.driver.fetchrow(CALL, tenant_id, slug, caller_run_id, key)
    return row


async def target(session: ReadSession, tenant_id: UUID, agent_id: UUID | None, slug: str | None) -> Row | None:
    """The agent that a tool would call, by its id or its slug."""
    row: Row | None = await session.driver.fetchrow(TARGET, tenant_id, agent_id, slug)
    return row


async def called(session: ReadSession, tenant_id: UUID, run_id: UUID) -> Row:
    """A run that was made by a call, and what it gave back."""
    row: Row = await session.driver.fetchrow(CALLED, tenant_id, run_id)
    return row


async def with_key_prefix(session: ReadSession, tenant_id: UUID, run_ids: Sequence[UUID], prefix: str) -> set[UUID]:
    """Which of some runs were spawned under a key that begins so."""
    rows = await session.driver.fetch(WITH_PREFIX, tenant_id, list(run_ids), prefix)
    return {row["run_id"] for row in rows}


async def drop_deadline(session: WriteSession, tenant_id: UUID, run_id: UUID) -> None:
    """Take a run's deadline away; its tree is locked."""
    await session.driver.execute(DROP_DEADLINE, tenant_id, run_id)
