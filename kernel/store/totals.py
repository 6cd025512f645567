"""Totals by tenant: sums of the trees' own counters, over the trees that have something active."""

from collections.abc import Mapping
from typing import Any

from kernel.store.engine import ReadSession

Row = Mapping[str, Any]

ACTIVE_RUNS = """
SELECT t.tenant_id, n.slug, n.max_active_runs, t.queued, t.running, t.paused
FROM (
  SELECT tenant_id, sum(queued_runs)::bigint AS queued, sum(running_runs)::bigint AS running,
    sum(paused_runs)::bigint AS paused
  FROM run_trees WHERE is_active GROUP BY tenant_id
) t
JOIN tenants n ON n.tenant_id = t.tenant_id
"""


async def active_runs(session: ReadSession) -> list[Row]:
    """The active runs of each tenant that has any, by status, with its slug and its own bound if it has one."""
    rows: list[Row] = await session.driver.fetch(ACTIVE_RUNS)
    return rows
