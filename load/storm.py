"""One storm, from the start of a service to the verdict: `python -m load.storm NAME`, or `poe storm NAME`.

Without `--host` it starts a service of its own, with the settings of the profile, and stops it. The report (HTML, CSV,
the acknowledged calls, the verdict) goes into a directory; the exit code is the verdict's.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from load.storms.profiles import PROFILES
from load.storms.verdict import VERDICT, Verdict
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
    """Run locust without its web interface; its exit code."""
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
    return await process.wait()


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
    code = asyncio.run(storm(options, more, directory))
    crown(directory)
    print(f"report: {directory / REPORT}")
    return code


if __name__ == "__main__":
    sys.exit(main())
