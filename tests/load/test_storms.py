"""Each storm is run, small and short, on a real service, and fails for what is broken under it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from load.storm import STORMS
from tests.faults.remit import Remit

pytestmark = pytest.mark.xdist_group("storms")

ROOT = Path(__file__).parents[2]
# Small, short, and forgiving of a machine that runs the rest of the suite beside it.
LIGHT = (
    "--seconds",
    "3",
    "--pace",
    "0.8",
    "--scale",
    "0.03",
    "--tolerance",
    "1000",
    "--users",
    "2",
    "--workers",
    "2",
    "--in-flight",
    "256",
    "--may-miss",
    "1",
)

TOO_LITTLE = ("never happened", "arrivals was done", "wanted 30")


async def start(name: str, remit: Remit, directory: Path, *more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "load.storm", name, "--host", remit.url, "--data-dir", str(remit.data_dir)),
        *("--report-dir", str(directory), *LIGHT, *more),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def finish(process: asyncio.subprocess.Process, directory: Path) -> tuple[int, dict[str, Any], str]:
    """The exit code, the verdict and what was printed."""
    printed = (await process.communicate())[0].decode()
    assert process.returncode is not None
    verdict = directory / "verdict.json"
    assert verdict.exists(), printed
    return process.returncode, json.loads(verdict.read_text()), printed


@pytest.mark.parametrize("name", STORMS)
async def test_a_storm_passes_on_a_service_that_is_in_order(name: str, stormed: Remit, tmp_path: Path) -> None:
    code, verdict, printed = await finish(await start(name, stormed, tmp_path), tmp_path)
    assert code == 0, printed
    assert verdict["passed"], verdict["faults"]
    arrivals = verdict["scenarios"][name]["arrivals"]
    assert all(stream["done"] for stream in arrivals.values() if stream["intended"])
    for stream in arrivals.values():
        assert stream["done"] + stream["refused"] + stream["idle"] + stream["missed"] == stream["intended"], arrivals
    assert verdict["acknowledged_calls"]
    assert verdict["audited_runs"]
    report = (tmp_path / "report.html").read_text()
    assert f"{name}: passed" in report
    assert '<div id="root">' in report
    assert (tmp_path / "locust_stats.csv").read_text().count("\n") > 2
    assert (tmp_path / "service.csv").exists()


async def test_the_users_of_denied_calls_are_one_tenant_that_is_refused(stormed: Remit, tmp_path: Path) -> None:
    async with stormed.database() as connection:
        count = "SELECT count(*) FROM tenants WHERE slug LIKE 'loud-%'"
        before = await connection.fetchval(count)
        code, _, printed = await finish(await start("denied_calls", stormed, tmp_path, "--users", "3"), tmp_path)
        assert code == 0, printed
        assert await connection.fetchval(count) == before + 1


async def test_keys_leases_and_timeouts_are_tried_in_a_soak(stormed: Remit, tmp_path: Path) -> None:
    process = await start("soak", stormed, tmp_path, "--pace", "0.5", "--seconds", "7")
    code, verdict, printed = await finish(process, tmp_path)
    assert code == 0, printed
    notes = verdict["scenarios"]["soak"]["notes"]
    assert set(notes) >= {
        *("spawns sent again", "keys refused for another payload", "groups timed out", "heartbeats"),
        *("claims left to their leases", "runs claimed anew", "late completions refused"),
    }, printed


async def test_a_counter_that_differs_fails_the_storm(stormed: Remit, tmp_path: Path) -> None:
    async with stormed.database() as connection:
        before = await connection.fetchval("SELECT count(*) FROM run_trees")
        process = await start("soak", stormed, tmp_path)
        while await connection.fetchval("SELECT count(*) FROM run_trees") == before:  # noqa: ASYNC110 - locust tells nobody
            await asyncio.sleep(0.05)
        damaged = await connection.fetchval(
            "UPDATE run_trees SET children_total = children_total + 1"
            " WHERE root_run_id = (SELECT root_run_id FROM run_trees ORDER BY created_at DESC LIMIT 1)"
            " RETURNING root_run_id"
        )
        try:
            code, verdict, printed = await finish(process, tmp_path)
        finally:
            await connection.execute(
                "UPDATE run_trees SET children_total = children_total - 1 WHERE root_run_id = $1", damaged
            )
    assert code == 1, printed
    assert any(str(damaged) in fault for fault in verdict["faults"] if fault.startswith("audit: children_total: "))
    assert "soak: FAILED" in (tmp_path / "report.html").read_text()


async def test_an_answer_that_should_not_have_been_fails_the_storm(stormed: Remit, tmp_path: Path) -> None:
    # The largest group comes first, and is larger than the API takes: that refusal is none that a storm expects.
    process = await start("high_fanout", stormed, tmp_path, "--scale", "1.01", "--pace", "4", "--seconds", "1")
    code, verdict, printed = await finish(process, tmp_path)
    assert code == 1, printed
    assert any("high_fanout: unexpected: spawn-group: 4" in fault for fault in verdict["faults"]), verdict["faults"]


async def test_without_a_name_all_storms_rage_at_once_and_within_their_count(stormed: Remit, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--headless", "--only-summary"),
        *("--data-dir", str(stormed.data_dir), "--report-dir", str(tmp_path), *LIGHT, "--users", "7", "--most", "3"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    code, verdict, printed = await finish(process, tmp_path)
    # So few are not the storms that they claim to be; beside that, nothing is wrong.
    assert [fault for fault in verdict["faults"] if not fault.endswith(TOO_LITTLE)] == [], printed
    assert code == bool(verdict["faults"])
    assert set(verdict["scenarios"]) == set(STORMS)
    arrivals = [stream for each in verdict["scenarios"].values() for stream in each["arrivals"].values()]
    assert max(stream["intended"] for stream in arrivals) == 3


async def test_a_storm_that_cannot_begin_fails(stormed: Remit, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("wrong")
    process = await start("soak", stormed, tmp_path, "--admin-token-file", str(wrong))
    code, verdict, printed = await finish(process, tmp_path)
    assert code == 1, printed
    assert any("401" in fault for fault in verdict["faults"])
    process = await start("soak", stormed, tmp_path, "--admin-token-file", str(tmp_path / "nowhere"))
    assert await asyncio.wait_for(process.wait(), 60) == 2
    process = await start("soak", stormed, tmp_path, "--seconds", "0.5", "--database", "postgresql://localhost:9/none")
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 2, printed
    assert not (tmp_path / "verdict.json").exists()


# As a supervisor ends it, and as a terminal does, which interrupts all of its foreground.
@pytest.mark.parametrize("end", [lambda pid: os.kill(pid, signal.SIGTERM), lambda pid: os.killpg(pid, signal.SIGINT)])
async def test_a_storm_that_is_ended_is_judged_and_stops_all_that_it_started(
    end: Callable[[int], None], tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "load.storm", "soak", "--profile", "small", "--report-dir", str(tmp_path), *LIGHT),
        *("--seconds", "600"),
        cwd=ROOT,
        process_group=0,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    history = tmp_path / "locust_stats_history.csv"
    # A call that only arrivals make: the storm is under way then.
    while not (history.exists() and "query-tree" in history.read_text()):  # noqa: ASYNC110 - locust tells nobody
        await asyncio.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    service = next(each for each in below if "service.cli" in each.cmdline())
    assert service.environ()["REMIT_DATABASE_POOL_SIZE"] == "5"
    end(process.pid)
    _, verdict, printed = await finish(process, tmp_path)
    assert verdict["profile"] == "small", printed
    assert verdict["interrupted_after_s"] == verdict["ran_s"] < 60, printed
    assert verdict["acknowledged_calls"] == (tmp_path / "acknowledged.jsonl").read_bytes().count(b"\n")
    assert "interrupted after" in (tmp_path / "report.html").read_text()
    assert "Traceback" not in printed
    assert "KeyboardInterrupt" not in printed
    assert not [each for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE], printed


async def test_a_storm_starts_a_service_of_its_own_with_the_settings_of_its_profile(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "load.storm", "soak", "--profile", "small", "--seconds", "2"),
        *("--report-dir", str(tmp_path), "--pace", "0.5", "--may-miss", "1"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    code, verdict, printed = await finish(process, tmp_path)
    assert code == 0, printed
    assert (verdict["profile"], verdict["users"], verdict["workers"]) == ("small", 2, 2)
    assert "soak: passed" in (tmp_path / "report.html").read_text()
