"""Cancelling: the fence, beside trees of every size and beside spawns; the drain, beside a plain UPDATE of such rows.

Run `python -m load.bench_cancel` (needs `wrk`); it takes less than two minutes. `python -m load.bench_cancel 1000000`
drains subtrees of that size and does nothing else: some minutes, most of them to plant three of them. Everything runs
on this machine: the service, PostgreSQL, OPA and the load generator share its cores.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import psutil
from rich.console import Console
from rich.table import Table

from load.arguments import at_least_one
from load.generator import Answers, find_or_install, wrk_answers
from load.subject import UNLIMITED, Subject, run_measurement, running

SIZES = (10, 1_000, 100_000)
LARGEST = 100_000
GROUP = 10_000
# So many runs are planted for each size, if that makes enough trees, and so many trees at least.
PLANTED, FEWEST = 30_000, 5
MOST = 30
SMALL = 10
BESIDE_SPAWNS_S = 6
RATE = 500
CLIENTS = 32
# Connections on which spawns arrive: enough that none waits for one, fewer than the service takes in flight.
ARRIVING = 128
FENCES_PER_S = 20
ALONE = 100
MIB = 1 << 20

# As plain as it gets: no locks of trees, no events, no chunks; one statement, one commit.
FLAT_UPDATE = """
UPDATE agent_runs SET status = 'cancelled', finalized_seq = 1000000, finalized_at = clock_timestamp()
WHERE tenant_id = $1 AND root_run_id = $2 AND status = 'queued'
"""


@dataclass
class Memory:
    """The resident memory of the service's process, in MiB, seen every so often."""

    pid: int
    seen: list[float] = field(default_factory=list)

    def look(self) -> float:
        self.seen.append(psutil.Process(self.pid).memory_info().rss / MIB)
        return self.seen[-1]

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                self.look()
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()


@dataclass(frozen=True)
class Tree:
    """A root, a branch below it, and runs below that."""

    root: str
    branch: str


def p99(milliseconds: list[float]) -> float:
    """The 99th percentile; of fewer than a hundred, the longest."""
    return sorted(milliseconds)[int(len(milliseconds) * 0.99)]


def told(milliseconds: list[float]) -> str:
    """Median and 99th percentile, for a person."""
    return f"median {statistics.median(milliseconds):.1f} ms, p99 {p99(milliseconds):.1f} ms"


async def plant(subject: Subject, size: int) -> Tree:
    """Grow a tree, in groups of at most 10,000."""
    (root,) = await subject.roots(1)
    branch = await subject.spawn(root, "orchestrator")
    for left in range(size, 0, -GROUP):
        await subject.group(branch, min(left, GROUP))
    return Tree(root, branch)


async def cancel(subject: Subject, caller: str, run_id: str, **more: object) -> tuple[float, str]:
    """Milliseconds until the fence is answered, and its id."""
    started = time.perf_counter()
    answer = await subject.post(
        "/internal/orchestration/cancel-subtree", {"caller_run_id": caller, "run_id": run_id, **more}
    )
    return (time.perf_counter() - started) * 1000, answer["cancellation_id"]


async def drained(subject: Subject, cancellation_id: str) -> tuple[int, float]:
    """Wait for the end of a drain: the runs that it cancelled, and its seconds from the fence's commit."""
    while True:
        response = await subject.client.get(f"/internal/orchestration/cancellations/{cancellation_id}")
        shown = response.raise_for_status().json()
        if shown["state"] == "drained":
            seconds = datetime.fromisoformat(shown["drained_at"]) - datetime.fromisoformat(shown["fenced_at"])
            return shown["cancelled_count"], seconds.total_seconds()
        await asyncio.sleep(0.05)


async def fences_over(subject: Subject, size: int) -> list[float]:
    """Milliseconds per fence over so many active descendants, each drained before the next is set."""
    milliseconds = []
    for _ in range(min(MOST, max(FEWEST, PLANTED // size))):
        tree = await plant(subject, size)
        took, cancellation_id = await cancel(subject, tree.root, tree.branch)
        milliseconds.append(took)
        await drained(subject, cancellation_id)
    return milliseconds


async def fences_beside(
    subject: Subject,
    spawning: Coroutine[object, object, Answers],
    root: str,
    *,
    rate: float = FENCES_PER_S,
    count: int = BESIDE_SPAWNS_S * FENCES_PER_S,
) -> tuple[list[float], Answers]:
    """Milliseconds per fence in a tree while others spawn in it, and what the others achieved.

    Args:
        rate: how many fences a second.
        count: how many, while the others are at it.
    """
    branches = [await subject.spawn(root, "orchestrator") for _ in range(count)]
    busy = asyncio.create_task(spawning)
    begin = time.perf_counter()

    async def fence(branch: str, due: float) -> float | None:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if busy.done():
            return None
        # From the moment at which it was due: whoever is slow keeps the next waiting, and that counts.
        await cancel(subject, root, branch)
        return (time.perf_counter() - due) * 1000

    fences = await asyncio.gather(*(fence(branch, begin + n / rate) for n, branch in enumerate(branches)))
    return [took for took in fences if took is not None], await busy


async def spawn_at(subject: Subject, caller: str, rate: int, seconds: int) -> Answers:
    """Spawn at a rate, however long each takes: whoever is late does not slow down the next."""
    return await wrk_answers(subject, [caller], connections=ARRIVING, seconds=seconds, LOAD_RATE=str(rate))


async def spawn_flat_out(subject: Subject, caller: str, seconds: int) -> Answers:
    """Spawn with many clients, each as fast as it is answered."""
    return await wrk_answers(subject, [caller], connections=CLIENTS, seconds=seconds)


async def spawns_until(subject: Subject, caller: str, end: asyncio.Future[tuple[int, float]] | None) -> list[float]:
    """Milliseconds per spawn of one client, until something has ended; without it, of some."""
    milliseconds: list[float] = []
    while not end.done() if end is not None else len(milliseconds) < ALONE:
        started = time.perf_counter()
        await subject.spawn(caller)
        milliseconds.append((time.perf_counter() - started) * 1000)
    return milliseconds


async def compare_sizes(subject: Subject, table: Table) -> None:
    """How a fence's time depends on what it covers."""
    first = None
    for size in SIZES:
        milliseconds = await fences_over(subject, size)
        median = statistics.median(milliseconds)
        first = first or median
        table.add_row(f"fence over {size:,} runs", told(milliseconds), f"{median / first:.2f} of {SIZES[0]} runs")


async def beside_spawns(subject: Subject, table: Table) -> None:
    """How a fence's time depends on what others do in its tree."""
    paced, flat_out = await subject.roots(2)
    for what, spawning, root in (
        (f"spawns arriving at {RATE}/s", spawn_at(subject, paced, RATE, BESIDE_SPAWNS_S), paced),
        (f"{CLIENTS} clients flat out", spawn_flat_out(subject, flat_out, BESIDE_SPAWNS_S), flat_out),
    ):
        milliseconds, achieved = await fences_beside(subject, spawning, root)
        spawned = f"{achieved.rate:,.0f} spawns/s, p99 {achieved.p99_ms:.0f} ms"
        table.add_row(f"fences beside {what} in the tree", told(milliseconds), spawned)


async def drain(subject: Subject, table: Table, size: int) -> None:
    """How fast a large subtree is drained, alone, and what is felt of it elsewhere in its tree."""
    memory = Memory(subject.pid)
    alone, twin, tree = [await plant(subject, size) for _ in range(3)]
    connection = await subject.database()
    await connection.execute("VACUUM ANALYZE agent_runs, run_trees, orchestration_groups")
    before = memory.look()
    async with memory.watched():
        took, cancellation_id = await cancel(subject, alone.root, alone.branch)
        runs, seconds = await drained(subject, cancellation_id)
    started = time.perf_counter()
    await connection.execute(FLAT_UPDATE, subject.tenant_id, twin.root)
    flat = size / (time.perf_counter() - started)
    table.add_row(f"fence over {runs:,} runs that are active", f"{took:.1f} ms", "")
    rate = runs / seconds
    beside = f"{rate / flat:.2f} of {flat:,.0f}/s by plain UPDATE"
    table.add_row("its drain", f"{rate:,.0f} runs/s, {seconds:.1f} s", beside)
    grown = max(memory.seen) - before
    table.add_row("memory of the service meanwhile", f"{grown:+.0f} MiB at most", f"of {before:.0f} MiB before")
    quiet = await spawns_until(subject, tree.root, None)
    _, cancellation_id = await cancel(subject, tree.root, tree.branch)
    ending = asyncio.ensure_future(drained(subject, cancellation_id))
    during = await spawns_until(subject, tree.root, ending)
    runs, seconds = await ending
    table.add_row(
        "spawns elsewhere in a tree that is drained",
        f"{told(during)}, {len(during)} of them",
        f"{statistics.median(during) / statistics.median(quiet):.1f} of {statistics.median(quiet):.1f} ms before",
    )
    table.add_row("its drain beside them", f"{runs / seconds:,.0f} runs/s", f"{runs / seconds / rate:.2f} of alone")
    await connection.close()


async def main(only_drain: int | None) -> None:
    find_or_install()
    table = Table("what", "figure", "beside", title="cancelling")
    async with running(REMIT_TENANT_MAX_ACTIVE_RUNS=str(UNLIMITED)) as subject:
        warm = await plant(subject, GROUP)
        await drained(subject, (await cancel(subject, warm.root, warm.branch))[1])
        await drain(subject, table, only_drain or LARGEST)
        if only_drain is None:
            await compare_sizes(subject, table)
            await beside_spawns(subject, table)
    Console().print(table)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="python -m load.bench_cancel", description=__doc__)
    arguments.add_argument("runs", type=at_least_one, nargs="?", help="drain subtrees of that size, and nothing else")
    run_measurement(main(arguments.parse_args().runs))
