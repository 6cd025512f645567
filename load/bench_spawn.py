"""Spawning: single calls over many trees and in one, groups, one client alone; beside the plain INSERT of its rows.

Run `python -m load.bench_spawn [SECONDS]` (needs `wrk`). Everything runs on this machine: the service, PostgreSQL, OPA
and the load generator share its cores.
"""

import asyncio
import statistics
import sys
import time
import uuid

import asyncpg
from rich.console import Console
from rich.table import Table

from load.subject import Subject, running, wrk

CONNECTIONS = 32
TREES = 1_000
GROUP = 1_000
ROUNDS = 5
ALONE = 200
WARM_UP_S = 3

# The rows of a group's members, written as plainly as PostgreSQL takes them, with every index and key in place.
PLAIN_INSERT = """
WITH made AS (
  INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, depth, spawn_key, ordinal, agent_id, surface,
    status, background, effective_scopes, failure_policy, spawned_seq)
  SELECT $1, id, $2, $2, 1, id::text, n, $3, 'option_b_runtime_primitives', 'queued', true, '{read}', 'best_effort', 2
  FROM unnest($4::uuid[]) WITH ORDINALITY AS q (id, n)
)
INSERT INTO run_payloads (tenant_id, run_id, input) SELECT $1, id, '{"n": 1}' FROM unnest($4::uuid[]) AS q (id)
"""


async def plain_insert(subject: Subject, connection: asyncpg.Connection, root: str, agent: str) -> float:
    """Children per second of the limit."""
    seconds = []
    for _ in range(ROUNDS):
        ids = [uuid.uuid4() for _ in range(GROUP)]
        started = time.perf_counter()
        await connection.execute(PLAIN_INSERT, subject.tenant_id, root, agent, ids)
        seconds.append(time.perf_counter() - started)
    return GROUP / statistics.median(seconds)


async def groups(subject: Subject, callers: list[str]) -> float:
    """Children per second through `spawn-group`."""
    seconds = []
    for number in range(ROUNDS * 2):
        started = time.perf_counter()
        await subject.group(callers[number % len(callers)], GROUP)
        seconds.append(time.perf_counter() - started)
    return GROUP / statistics.median(seconds)


async def alone(subject: Subject, callers: list[str]) -> list[float]:
    """Milliseconds per spawn of one client."""
    milliseconds = []
    for number in range(ALONE):
        started = time.perf_counter()
        await subject.spawn(callers[number % len(callers)])
        milliseconds.append((time.perf_counter() - started) * 1000)
    return sorted(milliseconds)


async def main(seconds: int) -> None:
    table = Table("what", "figure", "beside the limit", title="spawning")
    async with running() as subject:
        callers = await subject.roots(TREES)
        connection = await subject.database()
        await wrk(subject, callers, connections=CONNECTIONS, seconds=WARM_UP_S)
        many = [await wrk(subject, callers, connections=CONNECTIONS, seconds=seconds) for _ in range(3)]
        one = [await wrk(subject, callers[:1], connections=CONNECTIONS, seconds=seconds) for _ in range(3)]
        rate, slowest = sorted(many)[1]
        table.add_row(
            f"single spawns, {TREES} trees, {CONNECTIONS} connections", f"{rate:,.0f}/s, p99 {slowest:.0f} ms", ""
        )
        rate, slowest = sorted(one)[1]
        table.add_row(f"single spawns, one tree, {CONNECTIONS} connections", f"{rate:,.0f}/s, p99 {slowest:.0f} ms", "")
        worker = await connection.fetchval("SELECT agent_id FROM agents WHERE slug = 'worker'")
        # In turn with what it is held against, on the same tables as they are then.
        ours = await groups(subject, callers)
        limit = await plain_insert(subject, connection, callers[0], worker)
        table.add_row(
            f"groups of {GROUP}", f"{ours:,.0f} children/s", f"{ours / limit:.2f} of {limit:,.0f} by plain INSERT"
        )
        times = await alone(subject, callers)
        table.add_row(
            "one client alone", f"median {statistics.median(times):.1f} ms, p99 {times[int(ALONE * 0.99)]:.1f} ms", ""
        )
        await connection.close()
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
