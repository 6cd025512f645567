"""The processes of the demo: a service of its own in a temporary directory, and its workers. All end with it."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from service.demo.cast import Role

# Building OPA, where none is found, takes a minute; a slow machine more.
_START_S = 600.0
_POLL_S = 0.1
_END_S = 15.0
_TAIL_LINES = 25
# The demo's service is its own: another installation's settings must not lead it to that one's database. Where opa is
# to be found is a fact of the machine.
_SETTINGS_KEPT = frozenset({"REMIT_OPA_BINARY"})
# Safe-path mode: the current directory may be the one that is surveyed, and nothing of it is to be imported.
_PYTHON = (sys.executable, "-P", "-m")


class ProcessError(Exception):
    """A process of the demo ended, or did not start; the message has the end of its log."""


class _Address(BaseModel):
    url: str


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    admin_token: str


@dataclass(frozen=True)
class Staff:
    """One worker process: the agents it is, and how it holds its runs."""

    name: str
    roles: tuple[Role, ...]
    slots: int
    heartbeat_s: float = 5.0


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory that is gone afterwards, hidden, so that a survey of what lies around it does not see it."""
    with tempfile.TemporaryDirectory(prefix=".remit-demo-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@asynccontextmanager
async def running_service(directory: Path) -> AsyncIterator[Service]:
    """Start `remit up` on a free loopback port, and stop it afterwards.

    Raises:
        ProcessError: when it ends instead of starting.
    """
    data, log = directory / "data", directory / "service.log"
    command = [*_PYTHON, "service.cli", "up", "--host", "127.0.0.1", "--port", "0", "--data-dir", str(data)]
    async with _running(command, _environment(), log) as process:
        deadline = asyncio.get_running_loop().time() + _START_S
        while (address := _read_address(data)) is None:
            if process.returncode is not None:
                raise ProcessError(f"the service ended with status {process.returncode}:\n{log_tail(log)}")
            if asyncio.get_running_loop().time() > deadline:
                raise ProcessError(f"the service was not ready within {_START_S:.0f} s:\n{log_tail(log)}")
            await asyncio.sleep(_POLL_S)
        yield Service(address.url, (data / "admin-token").read_text(encoding="utf-8").strip())


@asynccontextmanager
async def running_workers(
    staff: Sequence[Staff], *, root: Path, directory: Path, url: str, token: str
) -> AsyncIterator[None]:
    """Start worker processes, and stop them afterwards. One that ends early ends the block.

    Raises:
        ProcessError: when a worker has ended before its time.
    """
    environment = {**_environment(), "REMIT_DEMO_URL": url, "REMIT_DEMO_WORKER_TOKEN": token}
    async with AsyncExitStack() as stack:
        started = []
        for member in staff:
            command = [*_PYTHON, "service.demo.worker", "--root", str(root)]
            command += ["--journals", str(journals_in(directory)), "--slots", str(member.slots)]
            command += ["--heartbeat-s", str(member.heartbeat_s)]
            command += [word for role in member.roles for word in ("--role", role)]
            log = directory / f"{member.name}.log"
            process = await stack.enter_async_context(_running(command, environment, log))
            started.append((member.name, process, log))
        watched = asyncio.current_task()
        assert watched is not None
        ended: list[str] = []

        async def watch(name: str, process: asyncio.subprocess.Process, log: Path) -> None:
            status = await process.wait()
            ended.append(f"{name} ended with status {status}:\n{log_tail(log)}")
            watched.cancel()

        watching = [asyncio.create_task(watch(*one)) for one in started]
        try:
            yield
        except asyncio.CancelledError:
            if not ended:
                raise
            watched.uncancel()
            raise ProcessError("\n".join(ended)) from None
        finally:
            for task in watching:
                task.cancel()


def journals_in(directory: Path) -> Path:
    """Where slow runs write what they do."""
    journals = directory / "journals"
    journals.mkdir(exist_ok=True)
    return journals


def log_tail(log: Path) -> str:
    """The last lines of a log."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:])


def _environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("REMIT_") or name in _SETTINGS_KEPT
    }
    # Whatever a process of the demo writes last can then be read in its log.
    return {**kept, "PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def _running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    leash = [*_PYTHON, "service.demo.leash", str(os.getpid())]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # A session of its own: Ctrl-C at a terminal reaches the demo only, which stops its processes in its own order.
        process = await asyncio.create_subprocess_exec(
            *leash,
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await process.wait()


def _read_address(data: Path) -> _Address | None:
    """Where the service listens, once it has said so: a file that is not there, or half-written, says nothing yet."""
    try:
        return _Address.model_validate_json((data / "service.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
