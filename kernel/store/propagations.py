"""Whom the decision of a group has cancelled."""

from dataclasses import dataclass
from uuid import UUID

from kernel.store import drains
from kernel.store.engine import ReadSession
from kernel.store.groups import MEMBER, Group

# The fence of a group stands on its orchestrator.
FENCE = """
SELECT c.cancellation_id, c.root_run_id, c.reason, c.cancelled_count, c.fence_seq, c.drained_at IS NOT NULL AS drained
FROM cancellations c
WHERE c.tenant_id = $1 AND c.run_id = $2 AND c.group_id = $3 AND c.scope = 'group'
ORDER BY c.fence_seq
LIMIT 1
"""

# Of the members that had not ended before the fence, and of all below them, those that a condition holds for. The order
# of the tree comes after the limit, so that the walk ends with the last row that is wanted.
_LOSERS = f"""
WITH RECURSIVE below AS (
  SELECT r.tenant_id, r.run_id, r.status, r.spawned_seq, r.ordinal, r.finalized_seq
  FROM orchestration_groups g JOIN agent_runs r ON {MEMBER}
  WHERE g.tenant_id = $1 AND g.group_id = $2 AND (r.finalized_seq IS NULL OR r.finalized_seq >= $3)
  UNION ALL
  SELECT r.tenant_id, r.run_id, r.status, r.spawned_seq, r.ordinal, r.finalized_seq
  FROM below b
  JOIN agent_runs r ON r.tenant_id = b.tenant_id AND r.parent_run_id = b.run_id
)
SELECT run_id FROM (
  SELECT run_id, spawned_seq, ordinal FROM below
  WHERE {{which}}
  LIMIT $4
) losers
ORDER BY spawned_seq, ordinal
"""

# While it drains: whom the fence has cancelled, as the events of their ends name it, and whom it will. In one
# statement, so that nobody ends between two looks.
LOSERS_SO_FAR = _LOSERS.format(
    which="""status IN ('queued', 'running', 'paused') OR (status = 'cancelled' AND finalized_seq IN (
    SELECT e.seq FROM orchestration_groups g
    JOIN run_events e ON e.tenant_id = g.tenant_id AND e.root_run_id = g.root_run_id AND e.seq > $3
    WHERE g.tenant_id = $1 AND g.group_id = $2 AND e.data ->> 'cancellation_id' = $5
  ))"""
)
LOSERS_UNTOLD = _LOSERS.format(which="status = 'cancelled' AND finalized_seq >= $3")

MAX_LISTED = 1_000


@dataclass(frozen=True, slots=True)
class Propagated:
    """Whom the decision of a group cancels; of the ids at most 1,000."""

    count: int
    run_ids: tuple[UUID, ...]
    reason: str


async def propagated(session: ReadSession, group: Group) -> Propagated | None:
    """What the decision of a group cancelled, if anything; what its fence covers counts from the fence's commit on.

    But for what another fence is quicker to cancel: that is counted, and listed, there.
    """
    fence = await session.driver.fetchrow(FENCE, group.tenant_id, group.orchestrator_run_id, group.group_id)
    if fence is None:
        return None
    count: int = fence["cancelled_count"]
    of_group = (group.tenant_id, group.group_id, fence["fence_seq"])
    if not fence["drained"]:
        cancellation_id = str(fence["cancellation_id"])
        rows = await session.driver.fetch(LOSERS_SO_FAR, *of_group, MAX_LISTED, cancellation_id)
        return Propagated(max(count, len(rows)), tuple(row["run_id"] for row in rows), fence["reason"])
    # No more than there are, so that no event after the last of the drain is looked at.
    listed = min(count, MAX_LISTED)
    run_ids = await drains.cancelled_ids(
        session, group.tenant_id, fence["root_run_id"], fence["cancellation_id"], fence["fence_seq"], listed
    )
    if len(run_ids) < listed:
        # The events were let go: what is left to go by is who was cancelled after the fence.
        run_ids = [row["run_id"] for row in await session.driver.fetch(LOSERS_UNTOLD, *of_group, listed)]
    return Propagated(count, tuple(run_ids), fence["reason"])
