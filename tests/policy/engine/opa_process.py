"""A real `opa run --server` that a test can freeze, kill and bring back on the same port."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from kernel.policy.opa import OpaAddress


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class OpaProcess:
    def __init__(self, binary: Path, config: Mapping[str, object], directory: Path) -> None:
        self._binary = binary
        self._config = directory / "opa.json"
        self._config.write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None
        self.address = OpaAddress("127.0.0.1", free_port(), tls=False)

    async def start(self) -> None:
        self._process = await asyncio.to_thread(self._launch)

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                str(self._binary), "run", "--server", "--addr", f"127.0.0.1:{self.address.port}",
                "--config-file", str(self._config), "--log-level", "error", "--skip-version-check",
            ],
            env={},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def until_ready(self) -> None:
        """Wait until the bundle is active."""
        async with asyncio.timeout(20), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{self.address}/health?bundles") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None


@asynccontextmanager
async def running_opa(binary: Path, config: Mapping[str, object], directory: Path) -> AsyncIterator[OpaProcess]:
    opa = OpaProcess(binary, config, directory)
    await opa.start()
    try:
        await opa.until_ready()
        yield opa
    finally:
        await opa.kill()
