"""Whether the database holds what the service acknowledged."""

from collections.abc import Iterable, Mapping
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
  caller_run_id uuid, key text, status text, decided_seq bigint
)
"""
COLUMNS = (
    *("call", "tenant_id", "run_id", "group_id", "cancellation_id", "decision_id"),
    *("caller_run_id", "key", "status", "decided_seq"),
)

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
        SELECT a.tenant_id, format('run %s: its claim was acknowledged, and %s', a.run_id,
          CASE WHEN r.run_id IS NULL THEN 'it is missing' ELSE 'it has never started' END) AS finding
        FROM acknowledged a
        LEFT JOIN agent_runs r ON r.tenant_id = a.tenant_id AND r.run_id = a.run_id
        WHERE a.call = 'claim' AND r.started_seq IS NULL
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
        SELECT a.tenant_id, format('fence %s of run %s: was acknowledged, and is missing', a.cancellation_id, a.run_id)
          AS finding
        FROM acknowledged a
        LEFT JOIN cancellations c ON c.tenant_id = a.tenant_id AND c.cancellation_id = a.cancellation_id
        WHERE a.call = 'cancel' AND c.cancellation_id IS NULL
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
    rows = (row for line in lines for row in _rows(line))
    await connection.copy_records_to_table("acknowledged", records=rows, columns=COLUMNS)
    await connection.execute("ANALYZE acknowledged")
    return len(lines)


def _rows(line: Mapping[str, Any]) -> Iterable[tuple[object, ...]]:
    call, tenant = line["call"], line["tenant"]
    caller, key, group = line.get("caller"), line.get("key"), line.get("group")
    if call == "group":
        yield (call, tenant, None, group, None, None, caller, key, None, None)
        for ordinal, run in enumerate(line["runs"]):
            yield ("member", tenant, run, group, None, None, caller, f"{key}:{ordinal}", None, None)
    elif call == "claim":
        for run in line["runs"]:
            yield (call, tenant, run, None, None, None, None, None, None, None)
    else:
        cancellation, decision = line.get("cancellation"), line.get("decision")
        status, decided_seq = line.get("status"), line.get("decided_seq")
        yield (call, tenant, line.get("run"), group, cancellation, decision, caller, key, status, decided_seq)
