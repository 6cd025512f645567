"""The load generator `wrk`: much of it costs little, which matters where it shares the cores with what it loads."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from load.subject import REPOSITORY, Subject


def find_or_install() -> str:
    """Where it is; ends the program, and says what is missing, where it is not and cannot be had."""
    if shutil.which("wrk") is None and shutil.which("apt-get") is not None and os.geteuid() == 0:
        print("Installing wrk", flush=True)
        for command in (("update",), ("install", "-y", "--no-install-recommends", "wrk")):
            subprocess.run(["apt-get", "-qq", *command], check=False, stdout=subprocess.DEVNULL)
    program = shutil.which("wrk")
    if program is None:
        sys.exit("wrk, which loads the service, is neither here nor can it be installed: apt-get install wrk")
    return program


async def wrk(subject: Subject, callers: Sequence[str], *, connections: int, seconds: int) -> tuple[float, float]:
    """Spawn single children as fast as `wrk` can, over callers in turn.

    Returns:
        Spawns per second, and the 99th percentile of their latency in milliseconds.
    """
    answered = await wrk_answers(subject, callers, connections=connections, seconds=seconds)
    return answered.rate, answered.p99_ms


@dataclass(frozen=True)
class Answers:
    """What `wrk` reports: how many there were, how many a second, and how long they took."""

    count: int
    rate: float
    median_ms: float
    p99_ms: float


async def wrk_answers(
    subject: Subject,
    callers: Sequence[str],
    *,
    connections: int,
    seconds: int,
    script: str = "spawn.lua",
    **settings: str,
) -> Answers:
    """Load the service with a script, whose settings are named in it."""
    program = find_or_install()
    runs = subject.data_dir / f"callers-{uuid.uuid4().hex}.txt"
    runs.write_text("\n".join(callers))
    process = await asyncio.create_subprocess_exec(
        *(program, "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(REPOSITORY / "load" / script)),
        subject.url,
        env={
            **os.environ,
            "LOAD_CALLERS": str(runs),
            "LOAD_TOKEN": subject.token,
            "LOAD_SALT": uuid.uuid4().hex,
            **settings,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    out = (await process.communicate())[0].decode()
    if process.returncode:
        raise RuntimeError(out)
    return read(out)


def read(out: str) -> Answers:
    """What it says of the answers.

    Raises:
        RuntimeError: when one was refused, a connection failed, or nothing was answered. That an answer took longer
            than its patience is no failure: the percentiles tell of it.
    """
    count = re.search(r"(\d+) requests in", out)
    failed = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", out)
    if "Non-2xx" in out or count is None or (failed is not None and any(map(int, failed.groups()))):
        raise RuntimeError(out)
    fields = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.strip()}
    return Answers(
        int(count[1]), float(fields["Requests/sec:"]), _milliseconds(fields["50%"]), _milliseconds(fields["99%"])
    )


def _milliseconds(text: str) -> float:
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)
