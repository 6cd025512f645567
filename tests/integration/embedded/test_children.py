# ruff: noqa: ASYNC110 - other processes are waited for, and there is nothing else on this loop to block

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from service.embedded.children import Child
from service.embedded.errors import EmbeddedError
from service.embedded.postgres_settings import Machine, _cgroup_limits, settings_for


async def start(command: str, output: Path) -> Child:
    return await Child.start(
        ["/bin/sh", "-c", command],
        environment={"ONLY": "this"},
        death_signal=signal.SIGKILL,
        output=output,
    )


async def test_a_child_has_a_session_and_an_environment_of_its_own_and_default_signals(tmp_path: Path) -> None:
    output = tmp_path / "output"
    child = await start("exec sleep 600", output)
    process = Path(f"/proc/{child.pid}")
    # While a program is being replaced it has its new name already, and no environment yet.
    while (process / "comm").read_text() != "sleep\n" or not (process / "environ").read_bytes():
        await asyncio.sleep(0.005)
    assert os.getsid(child.pid) == child.pid
    assert b"ONLY=this" in (process / "environ").read_bytes()
    assert b"PATH=/root" not in (process / "environ").read_bytes()
    signals = dict(line.split(":\t") for line in (process / "status").read_text().splitlines() if line[:3] == "Sig")
    assert int(signals["SigIgn"], 16) == int(signals["SigBlk"], 16) == 0
    await child.stop((signal.SIGTERM, 5.0))
    assert child.returncode == -signal.SIGTERM


async def test_a_child_that_ignores_what_it_is_told_is_killed_in_the_end(tmp_path: Path) -> None:
    child = await start("trap '' TERM; echo ready; while :; do sleep 1; done", tmp_path / "output")
    while child.last_output() != "ready":
        await asyncio.sleep(0.005)
    await child.stop((signal.SIGTERM, 0.1))
    assert child.returncode == -signal.SIGKILL


async def test_what_cannot_be_executed_says_so(tmp_path: Path) -> None:
    child = await Child.start(
        ["/no/such/program"], environment={}, death_signal=signal.SIGKILL, output=tmp_path / "output"
    )
    assert await child.wait() != 0
    assert "No such file" in child.last_output()


def test_a_start_on_another_thread_is_refused_for_the_child_would_die_with_the_thread(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(start("true", tmp_path / "output"))
        except EmbeddedError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


@pytest.mark.parametrize(("memory_gib", "buffers_mib"), [(0.2, 32), (1, 128), (8, 1024), (512, 2048)])
def test_the_buffers_follow_the_memory_within_bounds(memory_gib: float, buffers_mib: int) -> None:
    machine = Machine(memory=int(memory_gib * 2**30), disk_free=2**40, shared_memory=2**30)
    settings = settings_for(machine, 100)
    assert settings["shared_buffers"] == f"{buffers_mib * 1024}kB"
    assert "dynamic_shared_memory_type" not in settings


def test_a_containers_small_shared_memory_and_small_disk_are_respected() -> None:
    settings = settings_for(Machine(memory=2**31, disk_free=2**32, shared_memory=2**26), 100)
    assert settings["dynamic_shared_memory_type"] == "mmap"
    assert settings["max_wal_size"] == f"{512 * 1024}kB"


def test_a_limit_of_a_control_group_above_ours_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/outer/inner\n")
    group = tmp_path / "fs" / "outer" / "inner"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000000\n")
    assert _cgroup_limits(membership, tmp_path / "fs") == [1_000_000]
