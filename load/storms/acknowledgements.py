"""Whether the database holds what the service acknowledged."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from load.audit import Check
from load.storms.ledger import NAME

# One line of the ledger is one row, with the fields that its kind of call has; a group has a row per member as well.
TABLE = """
CREATE TEMPORARY TABLE acknowledged (
  call text NOT NULL, tenant_id uuid NOT NULL, run_id uuid, group_id uuid, cancellation_id uuid, decision_id uuid,
  caller_run_id uuid, key text, status text, decided_seq bigint, attempt int, fence_seq bigint, include_root boolean,
  reused boolean
)
"""
# The columns, by the names that the ledger has for them.
FIELDS = {
    "call": "call",
    "tenant": "tenant_id",
    "run": "run_id",
    "group": "group_id",
    "cancellation": "cancellation_id",
    "decision": "decision_id",
    "caller": "caller_run_id",
    "key": "key",
    "status": "status",
    "decided_seq": "decided_seq",
    "attempt": "attempt",
    "fence_seq": "fence_seq",
    "include_root": "include_root",
    "reused": "reused",
}

CHECKS = (
    Check(
        "acknowledged_run",
        """
        SELECT a.tenant_id, format('run %s: its %s was acknowledged, and it is %s', a.run_id, a.call,
          CASE WHEN r.run_id IS NULL THEN 'missing' ELSE 'another caller''s, key''s or group''s' END) AS finding
        FROM acknowledged a
        LEFT JOIN agent_runs r ON r.tenant_id = a.tenant_id AND r.run_id = a.run_id
        WHERE a.call IN ('start', 'spawn', 'member') AND (r.run_id IS NULL
          OR r.parent_run_id IS DISTINCT FROM a.caller_run_id
          OR (a.key IS NOT NULL AND r.spawn_key IS DISTINCT FROM a.key)
          OR r.orchestration_group_id IS DISTINCT FROM a.group_id)
        """,
    ),
    Check(
        "acknowledged_group",
        """
        SELECT a.tenant_id, format('group %s: its spawn was acknowledged, and it is %s', a.group_id,
          CASE WHEN g.group_id IS NULL THEN 'missing' ELSE 'another caller''s or key''s' END) AS finding
        FROM acknowledged a
        LEFT JOIN orchestration_groups g ON g.tenant_id = a.tenant_id AND g.group_id = a.group_id
        WHERE a.call = 'group' AND (g.group_id IS NULL
          OR (g.orchestrator_run_id, g.spawn_key_prefix) IS DISTINCT FROM (a.caller_run_id, a.key))
        """,
    ),
    Check(
        "acknowledged_start",
        """
        SELECT a.tenant_id, format('run %s: its claim was acknowledged as attempt %s, and %s', a.run_id, a.attempt,
          CASE WHEN r.run_id IS NULL THEN 'it is missing' WHEN r.started_seq IS NULL THEN 'it has never started'
            ELSE 'it is at attempt ' || coalesce(l.attempt::text, 'none') END) AS finding
        FROM acknowledged a
        LEFT JOIN agent_runs r ON r.tenant_id = a.tenant_id AND r.run_id = a.run_id
        LEFT JOIN run_leases l ON l.tenant_id = a.tenant_id AND l.run_id = a.run_id
        -- Others may have claimed it since.
        WHERE a.call = 'claim' AND (r.started_seq IS NULL OR (a.attempt <= l.attempt) IS FALSE
          OR (a.attempt IS NOT NULL AND l.run_id IS NULL))
        """,
    ),
    Check(
        "acknowledged_twice",
        """
        SELECT a.tenant_id, format('run %s: its attempt %s was given to %s workers', a.run_id, a.attempt, count(*))
          AS finding
        FROM acknowledged a WHERE a.call = 'claim' AND a.attempt IS NOT NULL
        GROUP BY a.tenant_id, a.run_id, a.attempt HAVING count(*) > 1
        """,
    ),
    Check(
        "acknowledged_end",
        """
        SELECT a.tenant_id, format('run %s: was acknowledged as %s, and is %s', a.run_id, a.status,
          coalesce(r.status, 'missing')) AS finding
        FROM acknowledged a
        LEFT JOIN agent_runs r ON r.tenant_id = a.tenant_id AND r.run_id = a.run_id
        WHERE a.call = 'end' AND r.status IS DISTINCT FROM a.status
        """,
    ),
    Check(
        "acknowledged_fence",
        """
        SELECT a.tenant_id, format('fence %s: was acknowledged at %s upon run %s (include_root: %s), and %s',
          a.cancellation_id, a.fence_seq, a.run_id, a.include_root, CASE WHEN c.cancellation_id IS NULL
            THEN 'is missing' ELSE format('is at %s upon run %s (%s)', c.fence_seq, c.run_id, c.scope) END) AS finding
        FROM acknowledged a
        LEFT JOIN cancellations c ON c.tenant_id = a.tenant_id AND c.cancellation_id = a.cancellation_id
        -- A repeat names the fence that was there, which may stand further up and cover more.
        WHERE a.call = 'cancel' AND (c.cancellation_id IS NULL OR c.fence_seq <> a.fence_seq
          OR (a.reused IS FALSE AND (c.run_id, c.scope)
            IS DISTINCT FROM (a.run_id, CASE WHEN a.include_root THEN 'run' ELSE 'children' END)))
        """,
    ),
    Check(
        "acknowledged_denial",
        """
        SELECT a.tenant_id, format('decision %s: was answered as a denial, and is %s on record', a.decision_id,
          coalesce(d.outcome, 'not')) AS finding
        FROM acknowledged a
        LEFT JOIN policy_decisions d ON d.tenant_id = a.tenant_id AND d.decision_id = a.decision_id
        WHERE a.call = 'deny' AND d.outcome IS DISTINCT FROM 'deny'
        """,
    ),
    Check(
        "acknowledged_join",
        """
        SELECT a.tenant_id, format('group %s: was told as %s at %s, and is %s at %s', a.group_id, a.status,
          a.decided_seq, coalesce(g.status, 'missing'), g.decided_seq) AS finding
        FROM acknowledged a
        LEFT JOIN orchestration_groups g ON g.tenant_id = a.tenant_id AND g.group_id = a.group_id
        WHERE a.call = 'join' AND (g.status, g.decided_seq) IS DISTINCT FROM (a.status, a.decided_seq)
        """,
    ),
)


async def load(connection: asyncpg.Connection, directory: Path) -> int:
    """Put a ledger beside the database's own tables, for as long as the connection lasts; how many calls it holds."""
    await connection.execute(TABLE)
    with (directory / NAME).open("rb") as file:
        lines = [orjson.loads(line) for line in file]
    rows = (tuple(row.get(field) for field in FIELDS) for line in lines for row in _rows(line))
    await connection.copy_records_to_table("acknowledged", records=rows, columns=tuple(FIELDS.values()))
    await connection.execute("ANALYZE acknowledged")
    return len(lines)


def _rows(line: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    match line["call"]:
        case "group":
            yield line
            for ordinal, run in enumerate(line["runs"]):
                yield {**line, "call": "member", "run": run, "key": f"{line['key']}:{ordinal}"}
        case "claim":
            # Ledgers of before have no attempts.
            for run, attempt in zip_longest(line["runs"], line.get("attempts", ())):
                yield {**line, "run": run, "attempt": attempt}
        case _:
            yield line
