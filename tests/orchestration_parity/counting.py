"""What the counters say of a play, held against what the database says: each event is counted, and once."""

import asyncio
from collections import Counter
from uuid import UUID

from prometheus_client import REGISTRY

from tests.orchestration_parity.stage import Stage

# Counters are raised after the commit that others see.
PATIENCE_S = 10.0
LOOK_S = 0.02

# Each metric with the labels that it is told by, beside the tenant's, and what it is to be.
WRITTEN = {
    "remit_decisions_total": (
        ("action", "surface", "outcome"),
        "SELECT action, surface, outcome, count(*) FROM policy_decisions WHERE tenant_id = $1 GROUP BY 1, 2, 3",
    ),
    "remit_denials_total": (
        ("action", "surface", "reason"),
        """
        SELECT action, surface, reason ->> 'code', count(*) FROM policy_decisions, json_array_elements(reasons) reason
        WHERE tenant_id = $1 AND outcome <> 'allow' GROUP BY 1, 2, 3
        """,
    ),
    "remit_surface_requests_total": (
        ("surface",),
        # The tests look at runs, and so use no surface.
        "SELECT surface, count(*) FROM policy_decisions WHERE tenant_id = $1 AND action <> 'query_tree' GROUP BY 1",
    ),
    "remit_spawned_runs_total": (
        ("surface",),
        "SELECT surface, count(*) FROM agent_runs WHERE tenant_id = $1 GROUP BY 1",
    ),
    "remit_run_transitions_total": (
        ("status",),
        """
        SELECT status, count(*) FROM (
          SELECT CASE WHEN background THEN 'queued' ELSE 'running' END AS status FROM agent_runs
          WHERE tenant_id = $1 AND parent_run_id IS NOT NULL
          UNION ALL SELECT child ->> 'status' FROM run_events,
            json_array_elements(coalesce(data -> 'children', json_build_array(data))) AS child
          WHERE tenant_id = $1 AND type = 'orchestration.child_lifecycle'
            AND child ->> 'status' IN ('queued', 'running', 'paused')
          UNION ALL SELECT status FROM agent_runs WHERE tenant_id = $1 AND finalized_at IS NOT NULL
        ) AS reached GROUP BY 1
        """,
    ),
    "remit_joins_total": (
        ("mode", "outcome"),
        """
        SELECT join_mode, status, count(*) FROM orchestration_groups
        WHERE tenant_id = $1 AND decided_seq IS NOT NULL GROUP BY 1, 2
        """,
    ),
    "remit_cancellations_total": (
        ("reason",),
        # What callers say is without bound.
        """
        SELECT CASE WHEN reason IN ('cancelled_by_orchestration', 'parent_closed') OR scope = 'group' THEN reason
          ELSE 'other' END, count(*) FROM cancellations WHERE tenant_id = $1 GROUP BY 1
        """,
    ),
    "remit_cancelled_runs_total": (
        (),
        "SELECT sum(cancelled_count) FROM cancellations WHERE tenant_id = $1 HAVING sum(cancelled_count) > 0",
    ),
}


async def miscounted(stage: Stage) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """What was counted of a tenant and what was written, where they differ for good."""
    wrong: dict[str, tuple[Counter[str], Counter[str]]] = {}
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while True:
        async with stage.database.read() as session:
            rows = {
                metric: await session.driver.fetch(query, UUID(stage.kit.tenant_id))
                for metric, (_, query) in WRITTEN.items()
            }
        written = {
            metric: Counter({" ".join(map(str, labels)): int(count) for *labels, count in found})
            for metric, found in rows.items()
        }
        counted = _counted(stage.kit.slug)
        wrong = {metric: (counted[metric], written[metric]) for metric in WRITTEN if counted[metric] != written[metric]}
        if not wrong or loop.time() > until:
            return wrong
        await asyncio.sleep(LOOK_S)


def _counted(slug: str) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = {metric: Counter() for metric in WRITTEN}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name in WRITTEN and sample.labels["tenant"] == slug:
                names, _ = WRITTEN[sample.name]
                counted[sample.name][" ".join(sample.labels[name] for name in names)] += int(sample.value)
    return counted
