"""A whole service as a process that can be killed."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.kit import ADMIN_TOKEN, Api

READY_S = 60.0
LOOK_S = 0.05


@dataclass
class ServiceProcess:
    """`remit up` on the session's PostgreSQL and OPA, always at the same address."""

    environment: dict[str, str]
    directory: Path
    port: int = 0
    _process: asyncio.subprocess.Process | None = None

    def __post_init__(self) -> None:
        self.port = self.port or _free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        with (self.directory / "service.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service.cli",
                "up",
                "--port",
                str(self.port),
                "--data-dir",
                str(self.directory / "data"),
                env={**os.environ, **self.environment, "REMIT_ADMIN_TOKEN": ADMIN_TOKEN},
                stdout=log,
                stderr=log,
            )
        async with httpx2.AsyncClient(base_url=self.url) as client, asyncio.timeout(READY_S):
            while not await _is_ready(client):
                assert self._process.returncode is None, (self.directory / "service.log").read_text()
                await asyncio.sleep(LOOK_S)

    async def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        """End it in order."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx2.TransportError:
        return False


class Stubborn(Api):
    """Calls that are made again until the service answers; whatever they did is done once only, or harmless."""

    def acting_with(self, token: str) -> "Stubborn":
        return Stubborn(self.client, token)

    async def call(
        self, method: str, path: str, body: object = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    response = await super().call(method, path, body, headers=headers)
                except httpx2.TransportError:
                    await asyncio.sleep(LOOK_S)
                    continue
                if response.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
                    return response
                await asyncio.sleep(LOOK_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
