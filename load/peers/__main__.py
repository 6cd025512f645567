"""Peers side by side: `uv run poe peers [--runs N] [--seconds S]`."""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from load import machine
from load.arguments import at_least_one
from load.bench_spawn import TREES
from load.generator import find_or_install
from load.peers import dbos_transact, limit, ours, temporal, temporal_server
from load.peers.comparison import Measurements, rows
from load.peers.decisions import Decisions, deciding
from load.peers.rendering import HEADINGS, cells, markdown, samples_csv, table_csv
from load.peers.verification import Verified
from load.subject import REPOSITORY, UNLIMITED, Subject, running
from service.embedded.opa import OPA_VERSION, find_or_build_opa

RESULTS = REPOSITORY / "load" / "results" / "peers"
RUNS = 3
SECONDS = 5
# Of the runs, in seconds: another is begun where it is likely to end within.
BUDGET_S = 540
WIDTH = 150


async def versions(subject: Subject, temporal_program: Path | None) -> dict[str, str]:
    """What is compared, and on what."""
    connection = await subject.database()
    try:
        server = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return {
        "Remit": version("remit"),
        "DBOS Transact": f"dbos {version('dbos')}",
        "Temporal": f"{_server_version(temporal_program)}, temporalio {version('temporalio')}",
        "Kite Logik": f"kitelogik {version('kitelogik')}",
        "PostgreSQL": server,
        "OPA": OPA_VERSION,
        "taken": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        **machine.described(),
    }


def _server_version(program: Path | None) -> str:
    return temporal_server.version_of(program) if program is not None else "no server"


@dataclass
class Peers:
    """What could be had of the others, and the failures of those that could not take part, or not to the end."""

    logs: Path
    tell: Callable[[str], None]
    decisions: Decisions | None = None
    database: str | None = None
    temporal: Path | None = None
    failures: list[str] = field(default_factory=list)

    def failed(self, name: str, error: Exception) -> None:
        """Take down that one of them failed; the others go on."""
        self.tell(f"{name} FAILED: {error!r}")
        self.failures.append(f"{name}: {error!r}")

    async def get_ready(self, stack: AsyncExitStack, subject: Subject, opa: Path) -> None:
        """Build and start what is needed."""
        try:
            self.temporal = await asyncio.to_thread(temporal_server.find_or_build)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said, and the others are measured
            self.failed("Temporal", error)
        try:
            self.decisions = await stack.enter_async_context(deciding(opa))
        except Exception as error:  # noqa: BLE001
            self.failed("decisions", error)
        try:
            self.database = await dbos_transact.prepare(subject)
        except Exception as error:  # noqa: BLE001
            self.failed("DBOS Transact", error)


async def run_once(
    subject: Subject,
    callers: list[str],
    peers: Peers,
    measurements: Measurements,
    verified: Verified,
    *,
    seconds: int,
    number: int,
) -> None:
    """Everybody in turn; whoever is not needed is not running, but for our idle service, which is PostgreSQL's host.

    Each run begins with another one, so that nobody always comes first.
    """
    decisions, database, program = peers.decisions, peers.database, peers.temporal
    with tempfile.TemporaryDirectory(prefix="remit-peers-") as directory:
        turns: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("Remit", lambda: ours.measure(subject, callers, measurements, verified, seconds)),
            ("plain SQL", lambda: limit.measure(subject, measurements, verified)),
        ]
        if decisions is not None:
            turns.append(("decisions", lambda: decisions.measure(measurements, verified)))
        if database is not None:
            log = peers.logs / "dbos.log"
            turns.append(
                (
                    "DBOS Transact",
                    lambda: dbos_transact.measure(subject, database, measurements, verified, seconds, log),
                )
            )
        if program is not None:
            # Once is enough to see what its other way of cancelling takes.
            cooperative = number == 1
            turns.append(
                (
                    "Temporal",
                    lambda: temporal.measure(
                        program, Path(directory), measurements, verified, seconds, cooperative=cooperative
                    ),
                )
            )
        first = (number - 1) % len(turns)
        for name, turn in turns[first:] + turns[:first]:
            peers.tell(name)
            try:
                await turn()
            except Exception as error:  # noqa: BLE001 - the others go on, and the end says who did not
                peers.failed(name, error)


async def compare(runs: int, seconds: int, budget_s: float, results: Path) -> bool:
    """Run everything, write down what came of it, and return whether everybody got through."""
    task = asyncio.current_task()
    assert task is not None
    # As after an interrupt from the keyboard: whatever has been started is stopped.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # Where nobody looks, it is as wide as the table.
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    opa = await find_or_build_opa(progress=console.print)
    measurements, verified = Measurements(), Verified()
    began = time.monotonic()
    done, longest = 0, 0.0

    def tell(what: str) -> None:
        console.print(f"{time.monotonic() - began:4.0f} s  run {done + 1} of {runs}: {what}")

    peers = Peers(results, tell)
    async with AsyncExitStack() as stack:
        subject = await stack.enter_async_context(running(REMIT_TENANT_MAX_ACTIVE_RUNS=str(UNLIMITED)))
        await peers.get_ready(stack, subject, opa)
        callers = await subject.roots(TREES)
        found = await versions(subject, peers.temporal)
        # What was built is no part of the runs' time.
        began = time.monotonic()
        while done < runs and time.monotonic() - began + longest <= budget_s:
            started = time.monotonic()
            await run_once(subject, callers, peers, measurements, verified, seconds=seconds, number=done + 1)
            longest = max(longest, time.monotonic() - started)
            done += 1
    made = rows(measurements.samples)
    (results / "peers.md").write_text(markdown(made, found, verified.notes()))
    (results / "peers.csv").write_text(table_csv(made))
    (results / "samples.csv").write_text(samples_csv(measurements.samples))
    table = Table(*HEADINGS, title=f"peers side by side, medians of {done} interleaved runs")
    for row in made:
        table.add_row(*cells(row))
    if done < runs:
        console.print(f"{runs - done} of {runs} runs were left out: they would have taken longer than {budget_s:.0f} s")
    for failure in peers.failures:
        console.print(f"FAILED {failure}")
    console.print(table)
    console.print(", ".join(f"{name} {what}" for name, what in found.items()))
    console.print(f"{time.monotonic() - began:.0f} s; also in {results}: peers.md, *.csv")
    return not peers.failures


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="poe peers", description="the service beside its peers, on this machine")
    parser.add_argument("--runs", type=at_least_one, default=RUNS, help=f"interleaved runs (default {RUNS})")
    parser.add_argument(
        "--seconds", type=at_least_one, default=SECONDS, help=f"of single spawns each (default {SECONDS})"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        help=f"no run is begun that would end after so many seconds (default {BUDGET_S})",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the reports go")
    arguments = parser.parse_args()
    find_or_install()
    arguments.results.mkdir(parents=True, exist_ok=True)
    comparing = compare(arguments.runs, arguments.seconds, arguments.budget, arguments.results.absolute())
    sys.exit(0 if uvloop.run(comparing) else 1)


if __name__ == "__main__":
    main()
