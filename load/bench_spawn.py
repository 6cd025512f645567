"""Spawning: single calls over many trees and in one, groups, one client alone; beside the plain INSERT of its rows.

Run `python -m load.bench_spawn [SECONDS]` (needs `wrk`). Everything runs on this machine: the service, PostgreSQL, OPA
and the load generator share its cores.
"""

import argparse
import statistics
import time
import uuid

from rich.console import Console
from rich.table import Table

from kernel.identifiers import new_id
from load.arguments import at_least_one
from load.generator import find_or_install, wrk
from load.subject import Subject, run_measurement, running

CONNECTIONS = 32
TREES = 1_000
GROUP = 1_000
ROUNDS = 5
ALONE = 200
WARM_UP_S = 3

# The rows of a group's members, written as plainly as PostgreSQL takes them, with every index and key in place; their
# ids and keys are of the same kind as ours, which an index takes at its right edge.
PLAIN_INSERT = """
WITH made AS (
  INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, depth, spawn_key, ordinal, agent_id, surface,
    status, background, effective_scopes, failure_policy, spawned_seq)
  SELECT $1, id, $2, $2, 1, $5 || ':' || n - 1, n - 1, $3, 'option_b_runtime_primitives', 'queued', true, '{read}',
    'best_effort', 2
  FROM unnest($4::uuid[]) WITH ORDINALITY AS q (id, n)
)
INSERT INTO run_payloads (tenant_id, run_id, input) SELECT $1, id, '{"n": 1}' FROM unnest($4::uuid[]) AS q (id)
"""


async def groups_and_inserts(subject: Subject, callers: list[str], rounds: int = ROUNDS) -> tuple[float, float]:
    """Children per second through `spawn-group`, and of the limit: in turn, on the same tables as they are then."""
    connection = await subject.database()
    ours, limit = [], []
    try:
        # In a tree of its own, for an agent for which nobody claims: no counter knows of what is inserted past it.
        (root,) = await subject.roots(1)
        for number in range(rounds):
            started = time.perf_counter()
            await subject.group(callers[number % len(callers)], GROUP)
            ours.append(GROUP / (time.perf_counter() - started))
            ids, key = [new_id() for _ in range(GROUP)], uuid.uuid4().hex
            started = time.perf_counter()
            await connection.execute(PLAIN_INSERT, subject.tenant_id, root, subject.orchestrator, ids, key)
            limit.append(GROUP / (time.perf_counter() - started))
    finally:
        await connection.close()
    return statistics.median(ours), statistics.median(limit)


async def alone(subject: Subject, callers: list[str]) -> list[float]:
    """Milliseconds per spawn of one client."""
    milliseconds = []
    for number in range(ALONE):
        started = time.perf_counter()
        await subject.spawn(callers[number % len(callers)])
        milliseconds.append((time.perf_counter() - started) * 1000)
    return sorted(milliseconds)


async def main(seconds: int) -> None:
    find_or_install()
    table = Table("what", "figure", "beside the limit", title="spawning")
    async with running() as subject:
        callers = await subject.roots(TREES)
        await wrk(subject, callers, connections=CONNECTIONS, seconds=WARM_UP_S)
        many = [await wrk(subject, callers, connections=CONNECTIONS, seconds=seconds) for _ in range(3)]
        one = [await wrk(subject, callers[:1], connections=CONNECTIONS, seconds=seconds) for _ in range(3)]
        rate, slowest = sorted(many)[1]
        table.add_row(
            f"single spawns, {TREES} trees, {CONNECTIONS} connections", f"{rate:,.0f}/s, p99 {slowest:.0f} ms", ""
        )
        rate, slowest = sorted(one)[1]
        table.add_row(f"single spawns, one tree, {CONNECTIONS} connections", f"{rate:,.0f}/s, p99 {slowest:.0f} ms", "")
        ours, limit = await groups_and_inserts(subject, callers)
        table.add_row(
            f"groups of {GROUP}", f"{ours:,.0f} children/s", f"{ours / limit:.2f} of {limit:,.0f} by plain INSERT"
        )
        times = await alone(subject, callers)
        table.add_row(
            "one client alone", f"median {statistics.median(times):.1f} ms, p99 {times[int(ALONE * 0.99)]:.1f} ms", ""
        )
    Console().print(table)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="python -m load.bench_spawn", description=__doc__)
    arguments.add_argument("seconds", type=at_least_one, nargs="?", default=8, help="of single spawns each (default 8)")
    run_measurement(main(arguments.parse_args().seconds))
