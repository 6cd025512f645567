"""One storm, from the start of a service to the verdict: `python -m load.storm NAME`, or `poe storm NAME`.

Without `--host` it starts a service of its own, with the settings of the profile, and stops it. The report (HTML, CSV,
the acknowledged calls, the verdict) goes into a directory; the exit code is the verdict's.
"""

import argparse
import asyncio
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from load.storms.profiles import PROFILES
from load.storms.verdict import NOT_JUDGED, VERDICT, Verdict
from load.subject import REPOSITORY, running

# By name, the class that locust knows it as.
STORMS = {
    "cancellation_storm": "CancellationStorm",
    "high_fanout": "HighFanout",
    "deep_trees": "DeepTrees",
    "denied_calls": "DeniedCalls",
    "mixed_tenants": "MixedTenants",
    "join_herd": "JoinHerd",
    "soak": "Soak",
}
SECONDS, SOAK_SECONDS = 60.0, 600.0
REPORT = "report.html"


async def storm(options: argparse.Namespace, more: Sequence[str], directory: Path) -> int:
    """Run locust without its web interface; its exit code, where it came to a verdict.

    SIGTERM ends it as an interrupt does: locust gives its verdict on what there was, and the service is stopped.
    """
    task = asyncio.current_task()
    assert task is not None
    # While there is no locust yet; later it is told instead.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if options.host:
        return await _locust(options, [*more, "--host", options.host], directory)
    settings = dict(PROFILES[options.profile].settings) | dict(each.split("=", 1) for each in options.setting)
    async with running(**settings) as subject:
        return await _locust(options, [*more, "--host", subject.url, "--data-dir", str(subject.data_dir)], directory)


async def _locust(options: argparse.Namespace, more: Sequence[str], directory: Path) -> int:
    seconds = options.seconds or (SOAK_SECONDS if options.name == "soak" else SECONDS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", str(REPOSITORY / "load/locustfile.py"), STORMS[options.name]),
        *("--headless", "--only-summary", "--html", str(directory / REPORT), "--csv", str(directory / "locust")),
        *("--csv-full-history", "--profile", options.profile, "--seconds", str(seconds)),
        *("--report-dir", str(directory), *more),
        cwd=REPOSITORY,
    )
    # Locust hears of an interrupt from the terminal itself, and still gives its verdict.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, process.terminate)
    code = await process.wait()
    return code if (directory / VERDICT).exists() else NOT_JUDGED


def crown(directory: Path) -> None:
    """Put the verdict on top of locust's report."""
    report, verdict = directory / REPORT, directory / VERDICT
    if report.exists() and verdict.exists():
        told = json.loads(verdict.read_text())
        report.write_text(Verdict.read(told).atop(report.read_text()))


def main() -> int:
    """Parse, run, and say where the report is."""
    parser = argparse.ArgumentParser(
        prog="poe storm",
        description="One storm upon a service, with an audit at the end.",
        epilog="What is not listed here is passed on: see `locust -f load/locustfile.py --help`.",
    )
    parser.add_argument("name", choices=STORMS)
    parser.add_argument("--profile", choices=PROFILES, default="default")
    parser.add_argument("--seconds", type=float, help=f"how long calls arrive ({SECONDS:.0f}; soak {SOAK_SECONDS:.0f})")
    parser.add_argument("--report-dir", type=Path, help="where the report goes (load/results/storms/…)")
    parser.add_argument("--setting", action="append", default=[], metavar="REMIT_X=Y", help="of the service it starts")
    parser.add_argument(
        "--host", help="a service that runs already; say --data-dir, or --admin-token-file and --database"
    )
    options, more = parser.parse_known_args()
    directory = (
        options.report_dir or REPOSITORY / f"load/results/storms/{options.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / VERDICT).unlink(missing_ok=True)
    try:
        code = asyncio.run(storm(options, more, directory))
    except (Exception, asyncio.CancelledError):  # noqa: BLE001 - a service that does not start, or a signal before it has
        traceback.print_exc()
        return NOT_JUDGED
    crown(directory)
    print(f"report: {directory / REPORT}")
    return code


if __name__ == "__main__":
    sys.exit(main())
