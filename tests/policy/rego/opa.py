"""The `opa` command, and a server of it."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2


@dataclass(frozen=True)
class Opa:
    """Runs commands in a directory of policies, in an empty environment."""

    binary: Path
    directory: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.binary), *arguments],
            cwd=self.directory,
            env={},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def succeed(self, *arguments: str, stdin: str | None = None) -> str:
        finished = self(*arguments, stdin=stdin)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def check(self) -> subprocess.CompletedProcess[str]:
        return self("check", "--strict", "--bundle", "--schema", "schemas", ".")

    def write(self, path: str, text: str) -> None:
        (self.directory / path).write_text(text)


@contextmanager
def serving(binary: Path, directory: Path, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (
        (log / "opa.log").open("wb") as output,
        subprocess.Popen(
            [str(binary), "run", "--server", "--bundle", str(directory), "--addr", address, "--log-level", "error"],
            env={},
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            url = f"http://{address}"
            _await_health(process, url)
            yield url
        finally:
            process.terminate()


def _await_health(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(f"{url}/health?bundles").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")
