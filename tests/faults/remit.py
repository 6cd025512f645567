"""`remit up` as a process of its own, to be started, killed and started again, and what it leaves behind."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
import psutil

ROOT = Path(__file__).parents[2]
READY = "Remit is ready at "
START_TIMEOUT_S = 120.0
GONE_TIMEOUT_S = 60.0
POLL_S = 0.05


class Remit:
    """One `remit up` on a data directory of its own. Leaving the context kills whatever is left of it."""

    def __init__(
        self, data_dir: Path, *, port: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir
        self.port = free_port() if port is None else port
        self.lines: list[str] = []
        self._environment = environment or {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []
        self._told = asyncio.Condition()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        await self.ended()
        await gone(self.data_dir)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_token(self) -> str:
        return (self.data_dir / "admin-token").read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """All that it has said so far, on either stream."""
        return "\n".join(self.lines)

    async def launch(self, *arguments: str) -> None:
        """Start it, and do not wait."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REMIT_")}
        self.lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.cli", "up", "--port", str(self.port), "--data-dir", str(self.data_dir)),
            *arguments,
            cwd=ROOT,
            env=inherited | {"PYTHONUNBUFFERED": "1", **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._reading = [
            asyncio.create_task(self._read(stream)) for stream in (self._process.stdout, self._process.stderr)
        ]

    async def start(self) -> None:
        """Start it, and return when it is ready."""
        await self.launch()
        await self.says(READY)

    async def says(self, text: str) -> None:
        """Return when it has said something; fail when it ends without."""
        async with asyncio.timeout(START_TIMEOUT_S), self._told:
            while not any(text in line for line in self.lines):
                assert any(not task.done() for task in self._reading), f"it ended: {self.output}"
                await self._told.wait()

    async def ended(self) -> int:
        """The exit status, once it has ended and all that it said has been read."""
        if self._process is None:
            return 0
        status = await self._process.wait()
        # A child that outlived it would hold its streams open.
        await asyncio.wait(self._reading, timeout=GONE_TIMEOUT_S)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def child(self, name: str) -> psutil.Process:
        """Its child of that name: `postgres`, `opa`."""
        (found,) = [child for child in psutil.Process(self.pid).children() if child.name() == name]
        return found

    async def has_child(self, name: str) -> None:
        """Return when it has a child of that name."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while name not in _names_of_children(self.pid):  # noqa: ASYNC110 - a parent tells nobody of its children
                await asyncio.sleep(POLL_S / 5)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """Its database, as an auditor reaches it."""
        connection = await asyncpg.connect(
            host=str(self.data_dir / "postgres"), port=5432, user="remit", database="remit", ssl=False
        )
        try:
            yield connection
        finally:
            await connection.close()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            async with self._told:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self._told.notify_all()
        async with self._told:
            self._told.notify_all()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """The processes that work in a data directory, or were told of it; not those that look at it from here."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = any(str(data_dir) in word for word in process.cmdline())
            if process.pid != os.getpid() and (told or process.cwd().startswith(str(data_dir))):
                found.append(process)
    return [process for process in found if _lives(process)]


async def gone(data_dir: Path) -> None:
    """Return when no process works in a data directory; fail when one stays."""
    left = await asyncio.to_thread(processes_of, data_dir)
    try:
        async with asyncio.timeout(GONE_TIMEOUT_S):
            while left:
                await asyncio.to_thread(psutil.wait_procs, left, timeout=POLL_S * 10)
                left = await asyncio.to_thread(processes_of, data_dir)
    except TimeoutError:
        raise AssertionError(f"left over: {left}") from None


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _names_of_children(pid: int) -> set[str]:
    names: set[str] = set()
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):
                names.add(child.name())
    return names
