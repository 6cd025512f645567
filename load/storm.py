"""One storm, from the start of a service to the verdict: `python -m load.storm NAME`, or `poe storm NAME`.

Without `--host` it starts a service of its own, with the settings of the profile, and stops it. The report (HTML, CSV,
the acknowledged calls, the verdict) goes into a directory; the exit code is the verdict's.
"""

import argparse
import asyncio
import difflib
import json
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from load.arguments import at_least_one
from load.storms.options import SECONDS, SOAK_SECONDS, add_options, token_file
from load.storms.profiles import PROFILES
from load.storms.verdict import NOT_JUDGED, VERDICT, Verdict
from load.subject import REPOSITORY, running
from service.settings import Settings

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
REPORT = "report.html"
LOCUST = (sys.executable, "-m", "locust", "-f", str(REPOSITORY / "load/locustfile.py"))
# By its name in the environment, what the service's settings call each.
SETTINGS = {
    str(field.validation_alias or f"REMIT_{name}").upper(): str(field.validation_alias or name)
    for name, field in Settings.model_fields.items()
}


async def storm(options: argparse.Namespace, more: Sequence[str], directory: Path) -> int:
    """Run locust without its web interface; its exit code, where it came to a verdict.

    SIGTERM ends it as an interrupt does: locust gives its verdict on what there was, and the service is stopped.

    Args:
        more: what locust is told beside the name of the storm, its time and where its report goes.
    """
    task = asyncio.current_task()
    assert task is not None
    # While there is no locust yet; later it is told instead.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if options.host:
        return await _locust(options, [*more, "--host", options.host], directory)
    async with running(**dict(PROFILES[options.profile].settings) | dict(options.setting)) as subject:
        return await _locust(options, [*more, "--host", subject.url, "--data-dir", str(subject.data_dir)], directory)


async def _locust(options: argparse.Namespace, more: Sequence[str], directory: Path) -> int:
    seconds = options.seconds or (SOAK_SECONDS if options.name == "soak" else SECONDS)
    process = await asyncio.create_subprocess_exec(
        *(*LOCUST, STORMS[options.name]),
        *("--headless", "--only-summary", "--html", str(directory / REPORT), "--csv", str(directory / "locust")),
        *("--csv-full-history", "--profile", options.profile, *more),
        *("--seconds", str(seconds), "--report-dir", str(directory)),
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


def a_setting(text: str) -> tuple[str, str]:
    """A setting of the service by its name in the environment, with its value, which the service would take."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form REMIT_X=Y")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS)
        raise argparse.ArgumentTypeError(
            f"the service has no setting {name}" + (f"; near it: {', '.join(near)}" if near else "")
        )
    try:
        Settings.model_validate({SETTINGS[name]: value})
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error.errors()[0]['msg']}") from None
    return name, value


def _parser() -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    parser = argparse.ArgumentParser(
        prog="poe storm",
        description="One storm upon a service, with an audit at the end.",
        epilog="What is not listed here is passed on to locust: see `locust --help`.",
    )
    parser.add_argument("name", choices=STORMS)
    parser.add_argument("--profile", choices=PROFILES, default="default")
    parser.add_argument(
        "--setting", action="append", type=a_setting, default=[], metavar="REMIT_X=Y", help="of the service it starts"
    )
    parser.add_argument(
        "--host", help="a service that runs already; say --data-dir, or --admin-token-file and --database"
    )
    users = parser.add_argument("--users", type=at_least_one, help="clients at once, instead of the profile's")
    return parser, [users, *add_options(parser)]


def _make(directory: Path) -> None:
    """Have a directory that can be written to, with no verdict of an earlier storm in it.

    Raises:
        OSError: it cannot be.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        (directory / VERDICT).unlink(missing_ok=True)


def _what_locust_refuses(more: Sequence[str]) -> str | None:
    """Why locust would not take arguments: it reads them as it will, and only lists the storms that there are."""
    listing = subprocess.run([*LOCUST, *more, "--list"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if not listing.returncode:
        return None
    # "locust: error: …", under its usage, and above what it guesses was meant.
    told = listing.stderr.strip() or f"locust ended with {listing.returncode}"
    _, found, why = told.partition("error: ")
    return why.splitlines()[0] if found else told.splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and say where the report is. Errors of use end it before anything is made or started."""
    parser, shared = _parser()
    options, more = parser.parse_known_args(arguments)
    # Locust runs elsewhere.
    for place in ("data_dir", "admin_token_file"):
        if value := getattr(options, place):
            setattr(options, place, Path(value).absolute())
    if options.host and not token_file(options).exists():
        parser.error(f"{token_file(options)}: the admin's token is not there")
    if more and (why := _what_locust_refuses(more)):
        parser.error(why)
    for action in shared:
        if (value := getattr(options, action.dest)) is not None:
            more += [action.option_strings[0], str(value)]
    directory = Path(
        options.report_dir or REPOSITORY / f"load/results/storms/{options.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    ).absolute()
    there = directory.exists()
    try:
        _make(directory)
    except OSError as error:
        parser.error(f"--report-dir {directory}: {error.strerror}")
    try:
        code = _run(options, more, directory)
    finally:
        if not there:
            # Of a storm that has not begun nothing is left; what has something in it stays.
            with suppress(OSError):
                directory.rmdir()
    crown(directory)
    if (directory / REPORT).exists():
        print(f"report: {directory / REPORT}")
    return code


def _run(options: argparse.Namespace, more: Sequence[str], directory: Path) -> int:
    try:
        return asyncio.run(storm(options, more, directory))
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        print("poe storm: interrupted before the storm began", file=sys.stderr)
        return 128 + (signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
    except Exception:  # noqa: BLE001 - a service that does not start
        traceback.print_exc()
        return NOT_JUDGED


if __name__ == "__main__":
    sys.exit(main())
