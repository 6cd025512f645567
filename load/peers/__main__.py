"""Peers side by side: `uv run poe peers [--runs N] [--seconds S]`."""

import argparse
import asyncio
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from load.bench_spawn import TREES
from load.peers import dbos_transact, limit, ours, temporal, temporal_server
from load.peers.comparison import Measurements, rows
from load.peers.decisions import Decisions, deciding
from load.peers.rendering import HEADINGS, cells, markdown, samples_csv, table_csv
from load.peers.verification import Verified
from load.subject import REPOSITORY, Subject, running
from service.embedded.opa import OPA_VERSION, find_or_build_opa

RESULTS = REPOSITORY / "load" / "results" / "peers"
RUNS = 3
SECONDS = 5
# Of the runs, in seconds: another is begun where it is likely to end within.
BUDGET_S = 540
WIDTH = 150
ADDITIONS = "x = 0\nfor i in range(10_000_000): x += i"


def install_wrk() -> None:
    """Get the load generator, where that is in our power; say what is missing where it is not."""
    if shutil.which("wrk") is None and shutil.which("apt-get") is not None:
        print("Installing wrk", flush=True)
        for command in (("update",), ("install", "-y", "--no-install-recommends", "wrk")):
            subprocess.run(["apt-get", "-qq", *command], check=False, stdout=subprocess.DEVNULL)
    if shutil.which("wrk") is None:
        sys.exit("wrk, which loads the service, is neither here nor can it be installed: apt-get install wrk")


async def versions(subject: Subject, temporal_program: Path) -> dict[str, str]:
    """What is compared."""
    connection = await subject.database()
    try:
        server = await connection.fetchval("SHOW server_version")
    finally:
        await connection.close()
    return {
        "Remit": version("remit"),
        "DBOS Transact": f"dbos {version('dbos')}",
        "Temporal": f"{temporal_server.version_of(temporal_program)}, temporalio {version('temporalio')}",
        "Kite Logik": f"kitelogik {version('kitelogik')}",
        "PostgreSQL": server,
        "OPA": OPA_VERSION,
        "Python": platform.python_version(),
        "taken": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def pace() -> str:
    """How fast this machine is just now, for whoever holds one day's figures against another's."""
    started = time.perf_counter()
    # In a module's names, as load/README.md's figures of other days were taken.
    exec(ADDITIONS, {})
    return f"{time.perf_counter() - started:.2f} s for ten million additions in Python"


async def run_once(
    subject: Subject,
    callers: list[str],
    decisions: Decisions,
    measurements: Measurements,
    verified: Verified,
    *,
    seconds: int,
    first: bool,
    peers: tuple[str, Path],
    logs: Path,
    tell: Callable[[str], None],
    failures: list[str],
) -> None:
    """Everybody in turn; whoever is not needed is not running, but for our idle service, which is PostgreSQL's host."""
    database, temporal_program = peers
    with tempfile.TemporaryDirectory(prefix="remit-peers-") as directory:
        turns: dict[str, Callable[[], Awaitable[None]]] = {
            "Remit": lambda: ours.measure(subject, callers, measurements, verified, seconds),
            "plain SQL": lambda: limit.measure(subject, callers[0], measurements, verified),
            "decisions": lambda: decisions.measure(measurements, verified),
            "DBOS Transact": lambda: dbos_transact.measure(
                subject, database, measurements, verified, seconds, logs / "dbos.log"
            ),
            # Once is enough to see what its other way of cancelling takes.
            "Temporal": lambda: temporal.measure(
                temporal_program, Path(directory), measurements, verified, seconds, cooperative=first
            ),
        }
        for name, turn in turns.items():
            tell(name)
            try:
                await turn()
            except Exception as error:  # noqa: BLE001 - the others go on, and the end says who did not
                tell(f"{name} FAILED: {error!r}")
                failures.append(f"{name}: {error!r}")


async def compare(runs: int, seconds: int, budget_s: float, results: Path) -> bool:
    """Run everything, write down what came of it, and return whether everybody got through."""
    task = asyncio.current_task()
    assert task is not None
    # As after an interrupt from the keyboard: whatever has been started is stopped.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # Where nobody looks, it is as wide as the table.
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    opa = await find_or_build_opa(progress=console.print)
    temporal_program = await asyncio.to_thread(temporal_server.find_or_build)
    measurements, verified = Measurements(), Verified()
    began = time.monotonic()
    done, longest = 0, 0.0
    failures: list[str] = []
    async with running() as subject, deciding(opa) as decisions:
        database = await dbos_transact.prepare(subject)
        callers = await subject.roots(TREES)
        found = await versions(subject, temporal_program)
        found["this machine today"] = pace()
        found["load average at the start"] = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        while done < runs and time.monotonic() - began + longest <= budget_s:

            def tell(what: str, run: int = done + 1) -> None:
                console.print(f"{time.monotonic() - began:4.0f} s  run {run} of {runs}: {what}")

            started = time.monotonic()
            await run_once(
                subject,
                callers,
                decisions,
                measurements,
                verified,
                seconds=seconds,
                first=done == 0,
                peers=(database, temporal_program),
                logs=results,
                tell=tell,
                failures=failures,
            )
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
    for failure in failures:
        console.print(f"FAILED {failure}")
    console.print(table)
    console.print(", ".join(f"{name} {what}" for name, what in found.items()))
    console.print(f"{time.monotonic() - began:.0f} s; also in {results}: peers.md, *.csv")
    return not failures


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="poe peers", description="the service beside its peers, on this machine")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"interleaved runs (default {RUNS})")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"of single spawns each (default {SECONDS})")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        help=f"no run is begun that would end after so many seconds (default {BUDGET_S})",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the reports go")
    arguments = parser.parse_args()
    install_wrk()
    arguments.results.mkdir(parents=True, exist_ok=True)
    comparing = compare(arguments.runs, arguments.seconds, arguments.budget, arguments.results.absolute())
    sys.exit(0 if uvloop.run(comparing) else 1)


if __name__ == "__main__":
    main()
