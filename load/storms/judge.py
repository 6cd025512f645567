"""The verdict on a storm, by a process of its own that reads the database.

`python -m load.storms.judge DIRECTORY --database URL` takes what the storm wrote down there, waits until what it fenced
has drained, and fails if an invariant is broken, an acknowledged call is missing or an answer was not as it should be.
"""

import argparse
import asyncio
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from load import audit
from load.storms import acknowledgements
from load.storms.verdict import HTML, NOT_JUDGED, OBSERVED, VERDICT, Verdict

POLL_S = 0.1

OPEN_FENCES = """
SELECT c.tenant_id, format('fence %s of tree %s: is open since %s', c.cancellation_id, c.root_run_id, c.fenced_at)
  AS finding
FROM cancellations c WHERE c.drained_at IS NULL AND c.fenced_at <= $1 ORDER BY c.fenced_at
"""


async def still_open(connection: asyncpg.Connection, ended: datetime, within_s: float) -> list[str]:
    """Wait for the drains of what was fenced until a storm ended; the fences that are open still."""
    deadline = time.monotonic() + within_s
    while True:
        rows = await connection.fetch(OPEN_FENCES, ended)
        if not rows or time.monotonic() > deadline:
            told = [f"open_fence: {row['finding']}" for row in rows[: audit.MOST_PER_CHECK]]
            rest = len(rows) - len(told)
            return [*told, f"open_fence: and {rest} more"] if rest else told
        await asyncio.sleep(POLL_S)


async def judge(connection: asyncpg.Connection, directory: Path, *, drain_s: float, max_rss_mib: float) -> Verdict:
    """Hold what a storm saw, and what the service acknowledged to it, against the database.

    Args:
        connection: to the service's database; a temporary table is left on it.
        directory: where the storm wrote down what it saw.
        drain_s: how long fences may stay open.
        max_rss_mib: what the service's process may have taken.
    """
    observed: dict[str, Any] = orjson.loads((directory / OBSERVED).read_bytes())
    findings = await still_open(connection, datetime.fromisoformat(observed["ended"]), drain_s)
    # The tables have grown in minutes from nothing; plans made for empty ones would take for ever.
    await connection.execute("ANALYZE")
    acknowledged = await acknowledgements.load(connection, directory)
    started = time.monotonic()
    findings += await audit.audit(connection, checks=(*audit.CHECKS, *audit.OVERDUE, *acknowledgements.CHECKS))
    audit_s = time.monotonic() - started
    runs = await connection.fetchval("SELECT count(*) FROM agent_runs")
    if acknowledged != observed["acknowledged_calls"]:
        told = observed["acknowledged_calls"]
        findings.append(f"ledger: holds {acknowledged} calls, and {told} were written")
    findings += _memory(observed["service"], max_rss_mib)
    return Verdict(observed=observed, audited_runs=runs, audit_s=audit_s, findings=findings)


async def judge_database(directory: Path, database: str, *, drain_s: float, max_rss_mib: float) -> Verdict:
    """Judge by the database at a URL."""
    connection: asyncpg.Connection = await asyncpg.connect(database.replace("+asyncpg", "", 1))
    try:
        return await judge(connection, directory, drain_s=drain_s, max_rss_mib=max_rss_mib)
    finally:
        await connection.close()


def _memory(service: Mapping[str, float], max_rss_mib: float) -> list[str]:
    most = service.get("rss_mib_max", 0.0)
    return [f"memory: the service took {most:.0f} MiB, limit {max_rss_mib:.0f}"] if most > max_rss_mib else []


def main() -> int:
    """Judge, print the verdict and write it into the report's directory."""
    parser = argparse.ArgumentParser(prog="python -m load.storms.judge", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--database", required=True)
    parser.add_argument("--drain-s", type=float, default=30.0)
    parser.add_argument("--max-rss-mib", type=float, default=300.0)
    options = parser.parse_args()
    judging = judge_database(
        options.directory, options.database, drain_s=options.drain_s, max_rss_mib=options.max_rss_mib
    )
    try:
        verdict = asyncio.run(judging)
    except KeyboardInterrupt:
        print("interrupted: not judged", file=sys.stderr)
        return NOT_JUDGED
    except Exception:  # noqa: BLE001 - whatever it was, it is no verdict, and must not look like one
        traceback.print_exc()
        return NOT_JUDGED
    (options.directory / VERDICT).write_bytes(orjson.dumps(verdict.told(), option=orjson.OPT_INDENT_2))
    (options.directory / HTML).write_text(verdict.page())
    sys.stdout.write(verdict.text())
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
