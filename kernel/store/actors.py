"""The chain of actors behind a run: who spawned it, who spawned that one, and so on up."""

from uuid import UUID

from kernel.store.engine import ReadSession

# A token names the nearest of them, and the root besides: it travels with every call.
MAX_ACTORS = 32

CHAIN = """
WITH RECURSIVE up AS (
  SELECT r.run_id, r.parent_run_id, 1 AS hop FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = $2
  UNION ALL
  SELECT p.run_id, p.parent_run_id, u.hop + 1
  FROM up u JOIN agent_runs p ON p.tenant_id = $1 AND p.run_id = u.parent_run_id
  WHERE u.hop < $3
)
SELECT array_agg(run_id ORDER BY hop) FROM up
"""


async def chain(session: ReadSession, tenant_id: UUID, parent_run_id: UUID) -> tuple[UUID, ...]:
    """A run and those above it, nearest first, at most `MAX_ACTORS`."""
    return tuple(await session.driver.fetchval(CHAIN, tenant_id, parent_run_id, MAX_ACTORS) or ())
