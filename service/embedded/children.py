"""Child processes that never outlive their parent."""

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from service.embedded import launch
from service.embedded.accounts import Account
from service.embedded.errors import EmbeddedError

_LAUNCHER = Path(launch.__file__)
_TAIL_BYTES = 4_000


class Child:
    """A process that the kernel signals when this one dies, however it dies."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path, output_begin: int) -> None:
        """Use `start` instead."""
        self._process = process
        self._output = output
        self._output_begin = output_begin

    @classmethod
    async def start(
        cls,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str],
        death_signal: signal.Signals,
        output: Path,
        append: bool = False,
        account: Account | None = None,
        directory: Path | None = None,
    ) -> Self:
        """Start `command` (its first word an absolute path) in a session of its own.

        Args:
            command: what to run; with `directory`, the word `{directory}` in it becomes a path to that directory.
            environment: all of the child's environment; nothing is inherited.
            death_signal: what the child is sent when this process ends.
            output: the file for standard output and standard error.
            append: keep what `output` holds already.
            account: the user to run as; only root can give one.
            directory: opened before privileges are dropped, so the account need not be able to reach its path.

        Raises:
            EmbeddedError: not on the main thread (the signal fires when the forking *thread* ends), or not on Linux.
        """
        if sys.platform != "linux":
            raise EmbeddedError(
                "The embedded servers need Linux. Elsewhere set REMIT_DATABASE_URL and REMIT_OPA_URL, "
                "or run Remit in a container."
            )
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedError("An embedded server must be started from an event loop on the main thread.")
        mode = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_APPEND if append else os.O_TRUNC)
        descriptor = os.open(output, mode, 0o600)
        output_begin = os.fstat(descriptor).st_size
        try:
            process = await asyncio.create_subprocess_exec(
                *_launcher(command, environment=environment, death_signal=death_signal, account=account, at=directory),
                env={},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
            )
        finally:
            os.close(descriptor)
        return cls(process, output, output_begin)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """Return the exit status once the process has ended."""
        return await self._process.wait()

    async def stop(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn, waiting so many seconds after it, and SIGKILL at last. Returns when it is gone."""
        for number, patience_s in steps:
            if self.returncode is not None:
                return
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.wait()
        if self.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self.wait()

    def last_output(self) -> str:
        """Return the end of what it has written."""
        return tail(self._output, self._output_begin)


async def first_inaccessible(paths: Sequence[tuple[Path, int]], account: Account) -> Path | None:
    """Return the first path to which the account lacks access of that mode (`os.R_OK`, `os.X_OK`), asking as it."""
    process = await asyncio.create_subprocess_exec(
        *_launcher([], environment={}, death_signal=signal.SIGKILL, account=account, must_access=paths),
        env={},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode == launch.NO_ACCESS:
        return Path(os.fsdecode(output).rstrip("\n"))
    if process.returncode != 0:
        raise EmbeddedError(
            f"Cannot become user {account.name} to run PostgreSQL: {errors.decode(errors='replace').strip()}. "
            "Run Remit as an ordinary user, or with the capabilities SETUID, SETGID and KILL."
        )
    return None


def tail(path: Path, begin: int = 0) -> str:
    """Return the end of a text file, of what follows `begin` bytes; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _launcher(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    death_signal: signal.Signals,
    account: Account | None,
    at: Path | None = None,
    must_access: Sequence[tuple[Path, int]] = (),
) -> list[str]:
    what = launch.Launch(
        parent=os.getpid(),
        death_signal=death_signal,
        account=None if account is None else (account.uid, account.gid),
        directory=None if at is None else str(at),
        command=[str(word) for word in command],
        environment=dict(environment),
        must_access=[(str(path), mode) for path, mode in must_access],
    )
    return [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(what)]
