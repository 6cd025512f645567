"""Programs that check what deploys Remit, built from source once and kept in the user's cache, as OPA is."""

import asyncio
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from service.embedded.errors import EmbeddedError
from service.embedded.opa_binary import _find_go

BUILD_S = 840.0


@dataclass(frozen=True)
class GoProgram:
    """A program of a Go module, at a version; `built` is what Go calls it.

    A module that replaces others is not installed by itself: Go builds it as a dependency of an empty one (`below`),
    where its replacements do not count.
    """

    name: str
    module: str
    version: str
    built: str
    below: bool = False


HELM = GoProgram("helm", "helm.sh/helm/v4/cmd/helm", "v4.3.1", "helm")
COMPOSE = GoProgram("compose-go", "github.com/compose-spec/compose-go/v2/cmd", "v2.16.2", "cmd")
# Prometheus 3.5.0, by the number of its module.
PROMTOOL = GoProgram("promtool", "github.com/prometheus/prometheus/cmd/promtool", "v0.305.0", "promtool", below=True)


def path_of(program: GoProgram) -> Path:
    """Where it is, once it has been built."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"
    return cache / "remit" / f"{program.name}-{program.version}" / program.name


async def find_or_build(program: GoProgram) -> Path:
    """The program's path; the test is skipped, with the reason, where it cannot be had."""
    path = path_of(program)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        await asyncio.to_thread(lock.acquire, BUILD_S)
    except filelock.Timeout:
        pytest.skip(f"{program.name} {program.version} is being built elsewhere, for more than {BUILD_S:.0f} s")
    try:
        if not path.exists():
            await _build(program, path)
    finally:
        lock.release()
    return path


async def _build(program: GoProgram, path: Path) -> None:
    try:
        go = await _find_go(os.environ, lambda _line: None)
    except EmbeddedError as error:
        pytest.skip(f"{program.name} {program.version} is not there, and cannot be built: {error}")
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        for step in _steps(program):
            await _run(program, [*go.command, *step], directory)
        shutil.move(Path(directory) / program.built, path)


def _steps(program: GoProgram) -> list[list[str]]:
    at = f"{program.module}@{program.version}"
    lean = ["-trimpath", "-ldflags=-s -w"]
    if not program.below:
        return [["install", *lean, at]]
    return [["mod", "init", "built"], ["get", at], ["build", *lean, "-o", program.built, program.module]]


async def _run(program: GoProgram, command: list[str], directory: str) -> None:
    building = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env={**os.environ, "GOBIN": directory, "CGO_ENABLED": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(BUILD_S):
            output, _ = await building.communicate()
    except TimeoutError:
        pytest.skip(f"{program.name} {program.version} could not be built within {BUILD_S:.0f} s")
    finally:
        if building.returncode is None:
            building.kill()
            await building.wait()
    if building.returncode != 0:
        said = re.sub(r"^go: (downloading|added) .*\n", "", output.decode(errors="replace"), flags=re.MULTILINE)
        pytest.skip(f"{program.name} {program.version} could not be built: {said.strip()[-500:]}")
