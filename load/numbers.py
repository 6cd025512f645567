"""The numbers that are aimed at: each the median of interleaved rounds, beside its aim and its limit, in one table.

A rate or a time is of a machine. What a bare FastAPI makes of this one, beside what it made where the aims were set, is
this one's pace; each such aim is said as it stands and at this pace. Ratios and memory are aimed at on any machine.

Run `poe numbers`, or `python -m load.numbers [ROUNDS]` (needs `wrk`); a round takes one or two minutes. Everything runs
on this machine: the service, PostgreSQL, OPA and the load generator share its cores.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from rich.console import Console
from rich.table import Table

from load import bare, bench_cancel, bench_spawn, bench_work, machine
from load.arguments import at_least_one
from load.bench_cancel import FLAT_UPDATE, RATE, SMALL, Memory, cancel, drained, fences_beside, p99, plant
from load.generator import find_or_install, wrk, wrk_answers
from load.subject import UNLIMITED, Subject, run_measurement, running

ROUNDS = 5
SECONDS = 5
CONNECTIONS = 32
TREES = 1_000
LARGE = 100_000
# Per round: so many fences over so many runs, beside the one over the large subtree.
FEW = {SMALL: 10, 1_000: 3}
GROUPS = 5
# More than are completed in the time.
WORK_RUNS, WORK_TREES, WORK_S = 12_000, 200, 3
WIDTH = 120


class Figure(Enum):
    """A figure: in words, in which unit, and what is aimed at, at least or (where less is better) at most."""

    BARE = (f"a bare FastAPI that takes the request of a spawn, {CONNECTIONS} connections", "/s", None)
    SINGLES = (f"single spawns, {TREES:,} trees, {CONNECTIONS} connections", "/s", 1_500)
    ONE_TREE = (f"single spawns, one tree, {CONNECTIONS} connections", "/s", 1_200)
    ALONE = ("single spawns, one client alone, median", "ms", 6, True)
    GROUPS = ("groups of 1,000", "children/s", 20_000)
    GROUPS_OF_INSERT = ("groups of 1,000, of a plain INSERT of the same rows", "", 0.5)
    ARRIVED = (f"spawns that arrive in one tree at {RATE}/s", "/s", RATE * 0.98)
    FENCE_BESIDE = ("fences beside them, p99", "ms", 20, True)
    FENCE_PACED = (f"fences beside spawns that arrive at {RATE}/s times this pace, p99", "ms", 20, True)
    FENCE_FLAT_OUT = (f"fences beside {CONNECTIONS} clients flat out in the tree, p99", "ms", 100, True)
    FENCE_GROWTH = (f"fence over {LARGE:,} runs, of one over {SMALL}", "", 1.5, True)
    DRAIN = (f"drain of {LARGE:,} runs", "runs/s", 60_000)
    DRAIN_OF_UPDATE = (f"drain of {LARGE:,} runs, of a plain UPDATE of such rows", "", None)
    DRY_RUNS = (f"dry runs of a spawn, {CONNECTIONS} connections", "/s", 2_500)
    WORK = (f"claimed by 100 and completed one by one, {WORK_TREES} trees", "runs/s", 2_000)
    MEMORY = ("memory of the API's process, at most", "MiB", 300, True)

    def __init__(self, words: str, unit: str, aim: float | None, less_is_better: bool = False) -> None:
        self.words, self.unit, self.aim, self.less_is_better = words, unit, aim, less_is_better

    def is_reached(self, value: float, pace: float = 1.0) -> bool | None:
        """Whether the aim is, at a pace; None where there is none."""
        wanted = self.aim_at(pace)
        if wanted is None:
            return None
        return value <= wanted if self.less_is_better else value >= wanted

    def aim_at(self, pace: float) -> float | None:
        """The aim on a machine with this pace, 1 being that of the machine on which it was set; None without one."""
        if self.aim is None or not self.is_of_the_machine:
            return self.aim
        return self.aim / pace if self.less_is_better else self.aim * pace

    @property
    def is_of_the_machine(self) -> bool:
        """Whether it depends on how fast the machine is; what arrives at a rate is given."""
        return self.unit not in {"", "MiB"} and self is not Figure.ARRIVED


@dataclass
class Rounds:
    """What the rounds have given; of fences each one, because their percentiles are of all rounds together."""

    samples: dict[Figure, list[float]] = field(default_factory=lambda: defaultdict(list))
    fences: dict[Figure, list[float]] = field(default_factory=lambda: defaultdict(list))
    over: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    beside: dict[Figure, str] = field(default_factory=dict)

    def add(self, figure: Figure, value: float) -> None:
        """Take down what one round gave."""
        self.samples[figure].append(value)

    @property
    def pace(self) -> float:
        """How fast this machine is, in the eyes of a bare FastAPI; 1 is that of the machine of the aims."""
        return statistics.median(self.samples[Figure.BARE]) / bare.WHERE_AIMED

    def finish(self, peak_mib: float) -> None:
        """Add what only all rounds together tell."""
        for figure, milliseconds in self.fences.items():
            self.add(figure, p99(milliseconds))
            told = f"median {statistics.median(milliseconds):.0f} ms of {len(milliseconds)} fences"
            self.beside[figure] = ", ".join(filter(None, (told, self.beside.get(figure))))
        first, last = (statistics.median(self.over[size]) for size in (SMALL, LARGE))
        self.add(Figure.FENCE_GROWTH, last / first)
        self.beside[Figure.FENCE_GROWTH] = ", ".join(
            f"{size:,}: {statistics.median(milliseconds):.1f} ms" for size, milliseconds in sorted(self.over.items())
        )
        self.add(Figure.MEMORY, peak_mib)
        self.beside[Figure.BARE] = f"{self.pace:.2f} of {bare.WHERE_AIMED:,}/s where the aims were set"


async def spawning(subject: Subject, bare_url: str, callers: Sequence[str], rounds: Rounds) -> None:
    """The machine's pace; singles over many trees and in one, one client alone, and groups beside their limit."""
    idle = dataclasses.replace(subject, url=bare_url)
    rounds.add(Figure.BARE, (await wrk(idle, callers, connections=CONNECTIONS, seconds=SECONDS))[0])
    many, _ = await wrk(subject, callers, connections=CONNECTIONS, seconds=SECONDS)
    rounds.add(Figure.SINGLES, many)
    one, _ = await wrk(subject, callers[:1], connections=CONNECTIONS, seconds=SECONDS)
    rounds.add(Figure.ONE_TREE, one)
    alone = await bench_spawn.alone(subject, list(callers))
    rounds.add(Figure.ALONE, statistics.median(alone))
    ours, limit = await bench_spawn.groups_and_inserts(subject, list(callers), GROUPS)
    rounds.add(Figure.GROUPS, ours)
    rounds.add(Figure.GROUPS_OF_INSERT, ours / limit)
    rounds.beside[Figure.GROUPS_OF_INSERT] = f"{limit:,.0f} children/s in the last round"
    dry = await wrk_answers(subject, callers, connections=CONNECTIONS, seconds=SECONDS, LOAD_DRY_RUN="1")
    rounds.add(Figure.DRY_RUNS, dry.rate)


async def working(subject: Subject, rounds: Rounds) -> None:
    """Claims, and completions."""
    await bench_work.plant(subject, WORK_TREES, WORK_RUNS)
    leases, claimed = await bench_work.claim(subject, WORK_RUNS)
    completed = await bench_work.complete(subject, leases, WORK_S)
    rounds.add(Figure.WORK, 1 / (1 / claimed + 1 / completed))
    rounds.beside[Figure.WORK] = f"{claimed:,.0f} and {completed:,.0f} in the last round"


async def cancelling(subject: Subject, rounds: Rounds) -> None:
    """Fences by size and beside spawns, and a large drain beside a flat UPDATE."""
    for size, count in FEW.items():
        for _ in range(count):
            tree = await plant(subject, size)
            milliseconds, cancellation_id = await cancel(subject, tree.root, tree.branch)
            rounds.over[size].append(milliseconds)
            await drained(subject, cancellation_id)
    tree, twin = [await plant(subject, LARGE) for _ in range(2)]
    connection = await subject.database()
    try:
        await connection.execute("VACUUM ANALYZE agent_runs, run_trees, orchestration_groups")
        milliseconds, cancellation_id = await cancel(subject, tree.root, tree.branch)
        rounds.over[LARGE].append(milliseconds)
        runs, seconds = await drained(subject, cancellation_id)
        started = time.perf_counter()
        await connection.execute(FLAT_UPDATE, subject.tenant_id, twin.root)
        flat = LARGE / (time.perf_counter() - started)
    finally:
        await connection.close()
    rounds.add(Figure.DRAIN, runs / seconds)
    rounds.add(Figure.DRAIN_OF_UPDATE, runs / seconds / flat)
    rounds.beside[Figure.DRAIN_OF_UPDATE] = f"{flat:,.0f} rows/s in the last round"
    fast, paced, flat_out = await subject.roots(3)
    fences, achieved = await fences_beside(
        subject, bench_cancel.spawn_at(subject, fast, RATE, bench_cancel.BESIDE_SPAWNS_S), fast
    )
    rounds.fences[Figure.FENCE_BESIDE].extend(fences)
    rounds.add(Figure.ARRIVED, achieved.rate)
    # As many fences as before, and both at the pace of the machine.
    pace = rounds.pace
    seconds = max(1, round(bench_cancel.BESIDE_SPAWNS_S / pace))
    fences, achieved = await fences_beside(
        subject,
        bench_cancel.spawn_at(subject, paced, max(1, round(RATE * pace)), seconds),
        paced,
        rate=bench_cancel.FENCES_PER_S * pace,
    )
    rounds.fences[Figure.FENCE_PACED].extend(fences)
    rounds.beside[Figure.FENCE_PACED] = f"beside {achieved.rate:,.0f} spawns/s in the last round"
    fences, achieved = await fences_beside(
        subject, bench_cancel.spawn_flat_out(subject, flat_out, bench_cancel.BESIDE_SPAWNS_S), flat_out
    )
    rounds.fences[Figure.FENCE_FLAT_OUT].extend(fences)


def render(rounds: Rounds, count: int) -> Table:
    """The table: what is aimed at says whether it was met, as it stands and at this machine's pace."""
    pace = rounds.pace
    table = Table(
        *("what", "median", "lowest to highest", "aim", f"at this pace ({pace:.2f})", "beside"),
        title=f"medians of {count} rounds",
    )
    for figure in Figure:
        values = rounds.samples[figure]
        value = statistics.median(values)
        table.add_row(
            figure.words,
            amount(value, figure.unit),
            f"{amount(min(values), '')} to {amount(max(values), '')}" if len(values) > 1 else "",
            # What arrives at this pace has no aim but that of this pace.
            "" if figure is Figure.FENCE_PACED else judged(figure, value),
            judged(figure, value, pace) if figure.is_of_the_machine else "",
            rounds.beside.get(figure, ""),
        )
    return table


def judged(figure: Figure, value: float, pace: float = 1.0) -> str:
    """What is aimed at, and whether it was met."""
    aim = figure.aim_at(pace)
    if aim is None:
        return ""
    sign = "<=" if figure.less_is_better else ">="
    return f"{sign} {amount(aim, figure.unit)}: {'met' if figure.is_reached(value, pace) else 'missed'}"


def amount(value: float, unit: str) -> str:
    """A figure for a person."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}".strip().replace(" /s", "/s")


async def main(count: int) -> None:
    find_or_install()
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    about = machine.described()
    rounds = Rounds()
    async with running(REMIT_TENANT_MAX_ACTIVE_RUNS=str(UNLIMITED)) as subject, bare.running() as bare_url:
        memory = Memory(subject.pid)
        async with memory.watched():
            callers = await subject.roots(TREES)
            await wrk(subject, callers, connections=CONNECTIONS, seconds=bench_spawn.WARM_UP_S)
            for number in range(1, count + 1):
                started = time.perf_counter()
                await spawning(subject, bare_url, callers, rounds)
                await working(subject, rounds)
                await cancelling(subject, rounds)
                console.print(f"round {number} of {count}: {time.perf_counter() - started:.0f} s")
        rounds.finish(max(memory.seen))
    console.print(render(rounds, count))
    console.print("\n".join(f"{name}: {what}" for name, what in about.items()))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="poe numbers", description=__doc__)
    arguments.add_argument("rounds", type=at_least_one, nargs="?", default=ROUNDS, help=f"default {ROUNDS}")
    run_measurement(main(arguments.parse_args().rounds))
