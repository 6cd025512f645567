"""A deployment on one machine: API processes, a reconciler and an OPA, each a process that can be killed alone."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
START_S = 120.0
POLL_S = 0.05


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Part:
    """One process: how it is started, and what it has said."""

    command: Sequence[str]
    environment: Mapping[str, str]
    output: Path
    url: str | None = None
    probe: str = ""
    probe_token: str = ""
    cwd: Path = ROOT
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.output.open("ab") as output:
            self._process = await asyncio.to_thread(
                subprocess.Popen,
                self.command,
                env=self.environment,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        await self.answers()

    async def answers(self) -> None:
        """Wait until its probe succeeds, if it has one."""
        if self.url is None:
            return
        headers = {"Authorization": f"Bearer {self.probe_token}"} if self.probe_token else {}
        async with asyncio.timeout(START_S), httpx2.AsyncClient(trust_env=False, timeout=5.0) as client:
            while True:
                assert self._process is not None
                assert self._process.poll() is None, self.output.read_text()
                with suppress(httpx2.TransportError):
                    if (await client.get(self.url + self.probe, headers=headers)).is_success:
                        return
                await asyncio.sleep(POLL_S)

    async def kill(self) -> None:
        """Kill it without a warning, and see it dead."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int:
        """Ask it to end; how it ended."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(number)
        process, self._process = self._process, None
        return await asyncio.to_thread(process.wait, 20)


@dataclass
class Fleet:
    """The parts, and the secrets that they share."""

    apis: list[Part]
    reconciler: Part
    opa: Part
    secrets: Path
    database_url: str
    parts: list[Part] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = [*self.apis, self.reconciler, self.opa]

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    async def stop(self) -> None:
        for part in self.parts:
            await part.kill()

    def logs(self) -> dict[str, str]:
        return {part.output.name: part.output.read_text() for part in self.parts}


def make_secrets(directory: Path) -> Path:
    """What an operator makes, by the script that operators run."""
    subprocess.run([DEPLOY / "make-secrets", directory], check=True, capture_output=True, text=True)
    return directory


def assemble(directory: Path, database_url: str, opa_binary: Path, *, apis: int = 2) -> Fleet:
    """A fleet that is not started yet."""
    secrets = make_secrets(directory / "secrets")
    given = dict(line.split("=", 1) for line in (secrets / "remit.env").read_text().splitlines())
    opa_url = f"http://127.0.0.1:{free_port()}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REMIT_")},
        **given,
        "REMIT_DATABASE_URL": database_url,
        "REMIT_OPA_URL": opa_url,
        "REMIT_OPA_BINARY": str(opa_binary),
        "REMIT_BUNDLE_KEY_FILE": str(secrets / "bundle-signing.pem"),
        "REMIT_TOKEN_KEY_FILE": str(secrets / "tokens"),
        "REMIT_LOG_FORMAT": "json",
        "REMIT_LOG_LEVEL": "debug",
    }
    remit = [sys.executable, "-m", "service.cli"]
    ports = [free_port() for _ in range(apis)]
    serving = [
        Part(
            [*remit, "serve", "--port", str(port)],
            {**environment, "REMIT_DATA_DIR": str(directory / f"api-{number}")},
            directory / f"api-{number}.log",
            url=f"http://127.0.0.1:{port}",
            probe="/livez",
        )
        for number, port in enumerate(ports)
    ]
    reconciler = Part(
        [*remit, "reconcile"],
        {**environment, "REMIT_DATA_DIR": str(directory / "reconciler")},
        directory / "reconciler.log",
    )
    opa = Part(
        [
            *(str(opa_binary), "run", "--server", "--addr", opa_url.removeprefix("http://")),
            *("--authentication", "token", "--authorization", "basic", "--skip-version-check"),
            *("--config-file", str(DEPLOY / "opa" / "config.yaml")),
            *("--set-file", f"keys.remit.key={secrets / 'bundle-public.pem'}"),
            *("--log-format", "json", "--log-level-request", "debug"),
            *(str(DEPLOY / "opa" / "authz.rego"), str(secrets / "opa-credentials.json")),
        ],
        {"REMIT_URL": f"http://127.0.0.1:{ports[0]}", "REMIT_SECRETS": str(secrets)},
        directory / "opa.log",
        url=opa_url,
        probe="/health",
        probe_token=(secrets / "opa-token").read_text(),
    )
    return Fleet(serving, reconciler, opa, secrets, database_url)


async def run(environment: Mapping[str, str], *arguments: str) -> str:
    """A command of `remit`, to its end."""
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "service.cli", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
