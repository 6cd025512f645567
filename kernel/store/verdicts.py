"""The verdicts that a run was given on the children of runs: the last one for each of its nodes that asked."""

from dataclasses import dataclass
from uuid import UUID

from kernel.store.engine import ReadSession, WriteSession

FIND = """
SELECT (verdicts -> $3::text -> 'given')::text FROM run_payloads
WHERE tenant_id = $1 AND run_id = $2 AND (verdicts -> $3::text ->> 'visit')::int = $4
"""

KEEP = """
UPDATE run_payloads
SET verdicts = coalesce(verdicts, '{}')
  || jsonb_build_object($3::text, jsonb_build_object('visit', $4::int, 'given', $5::jsonb))
WHERE tenant_id = $1 AND run_id = $2
"""


@dataclass(frozen=True, slots=True)
class Asking:
    """Which node of a run's graph asks, and on which visit of it, counted from 0 on.

    What a node has asked on a visit is the same whenever that visit is repeated.
    """

    node_id: str
    visit: int


async def find(session: ReadSession, tenant_id: UUID, run_id: UUID, asking: Asking) -> str | None:
    """The verdict that was given already, as JSON."""
    found: str | None = await session.driver.fetchval(FIND, tenant_id, run_id, asking.node_id, asking.visit)
    return found


async def keep(session: WriteSession, tenant_id: UUID, run_id: UUID, asking: Asking, given: str) -> None:
    """Keep a verdict, as JSON, in the place of the one that the node was given on its visit before."""
    await session.driver.execute(KEEP, tenant_id, run_id, asking.node_id, asking.visit, given)
