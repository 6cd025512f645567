"""Work: claims of many runs at once, completions one by one, over many trees and in one; and dry runs of a spawn.

Run `python -m load.bench_work` (needs `wrk`). Everything runs on this machine: the service, PostgreSQL, OPA and the
load generator share its cores.
"""

import argparse
import asyncio
import statistics
import time

from rich.console import Console
from rich.table import Table

from load.generator import find_or_install, wrk_answers
from load.subject import Subject, run_measurement, running

CONNECTIONS = 32
SECONDS = 5
ROUNDS = 3
TREES = 200
# More than are completed in the time.
RUNS = 30_000
CLAIMERS = 4
AT_ONCE = 100


async def plant(subject: Subject, trees: int, runs: int) -> None:
    """Queue runs in so many trees."""
    for root in await subject.roots(trees):
        for start in range(0, runs // trees, 1_000):
            await subject.group(root, min(1_000, runs // trees - start))


async def claim(subject: Subject, runs: int) -> tuple[list[str], float]:
    """Claim so many runs, by a few workers: a run and its lease a line, and runs per second."""
    leases: list[str] = []

    async def work() -> None:
        while len(leases) < runs:
            body = {"agent_slugs": ["worker"], "max_runs": AT_ONCE, "lease_s": 600}
            claimed = (await subject.post("/work/claim", body))["runs"]
            leases.extend(f"{run['run_id']} {run['lease']}" for run in claimed)
            if not claimed:
                return

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CLAIMERS)))
    return leases, len(leases) / (time.perf_counter() - started)


async def complete(subject: Subject, leases: list[str], seconds: int = SECONDS) -> float:
    """Completions per second, one run a call."""
    path = subject.data_dir / "leases.txt"
    path.write_text("\n".join(leases))
    answers = await wrk_answers(
        subject, [], connections=CONNECTIONS, seconds=seconds, script="complete.lua", LOAD_LEASES=str(path)
    )
    if answers.count > len(leases):
        raise RuntimeError(f"{answers.count} completions were sent for {len(leases)} runs: take more runs")
    return answers.rate


async def work(subject: Subject, trees: int, table: Table) -> None:
    """Claim and complete."""
    await plant(subject, trees, RUNS)
    leases, claimed = await claim(subject, RUNS)
    completed = await complete(subject, leases)
    both = 1 / (1 / claimed + 1 / completed)
    where = "one tree" if trees == 1 else f"{trees} trees"
    table.add_row(f"claims of {AT_ONCE} runs, {where}", f"{claimed:,.0f} runs/s", "")
    table.add_row(f"completions one by one, {where}", f"{completed:,.0f} runs/s", "")
    table.add_row(f"claimed and completed, {where}", f"{both:,.0f} runs/s", "one after the other")


async def dry_runs(subject: Subject, table: Table) -> None:
    """Decisions that are asked for, and change nothing."""
    callers = await subject.roots(TREES)
    answers = [
        await wrk_answers(subject, callers, connections=CONNECTIONS, seconds=SECONDS, LOAD_DRY_RUN="1")
        for _ in range(ROUNDS)
    ]
    rate = statistics.median(answer.rate for answer in answers)
    slowest = statistics.median(answer.p99_ms for answer in answers)
    table.add_row("dry runs of a spawn", f"{rate:,.0f}/s", f"p99 {slowest:.0f} ms")


async def main() -> None:
    find_or_install()
    table = Table("what", "figure", "", title="work, and decisions")
    async with running() as subject:
        await dry_runs(subject, table)
        await work(subject, TREES, table)
        await work(subject, 1, table)
    Console().print(table)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m load.bench_work", description=__doc__).parse_args()
    run_measurement(main())
