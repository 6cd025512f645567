"""A running service of these tests' own, as an operator starts it, and a Prometheus that scrapes it."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml

from tests.kit import ADMIN_TOKEN, Api
from tests.operations.expressions import RULES
from tests.operations.programs import find

ROOT = Path(__file__).parents[2]
START_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True)
class Service:
    """A process of `remit up`."""

    process: Process
    url: str
    api: Api
    opa: psutil.Process

    async def metrics(self) -> str:
        return (await self.api.client.get("/metrics")).text


@asynccontextmanager
async def running(data_dir: Path, opa_binary: Path) -> AsyncIterator[Service]:
    """`remit up` on a free port, until the block ends."""
    environment = {
        **os.environ,
        "REMIT_ADMIN_TOKEN": ADMIN_TOKEN,
        "REMIT_OPA_BINARY": str(opa_binary),
        # A busy machine is not what is tested here.
        "REMIT_OPA_TIMEOUT_S": "2",
        "REMIT_LOG_LEVEL": "error",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", str(data_dir)),
        cwd=ROOT,
        env=environment,
        stdout=DEVNULL,
    )
    try:
        async with asyncio.timeout(START_S):
            while not (data_dir / "service.json").exists():
                assert process.returncode is None, "the service has ended; its output is above"
                await asyncio.sleep(POLL_S)
        url = json.loads((data_dir / "service.json").read_text())["url"]
        (opa,) = [child for child in psutil.Process(process.pid).children() if child.name() == opa_binary.name]
        async with httpx2.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
            yield Service(process, url, Api(client, ADMIN_TOKEN), opa)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        (data_dir / "service.json").unlink(missing_ok=True)


@pytest.fixture(scope="session")
async def service(opa_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with running(tmp_path_factory.mktemp("remit"), opa_binary) as service:
        yield service


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus, asked over its API."""

    client: httpx2.AsyncClient

    async def ask(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression, now."""
        answer = await self.client.get("/api/v1/query", params={"query": expr})
        assert answer.is_success, f"{expr}: {answer.text}"
        result: list[dict[str, Any]] = answer.json()["data"]["result"]
        return result

    async def rules(self) -> list[dict[str, Any]]:
        """All rules, with how they are."""
        groups = (await self.client.get("/api/v1/rules")).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


def _as_they_are(rules: dict[str, Any]) -> dict[str, Any]:
    for group in rules["groups"]:
        group["interval"] = "2s"
    return rules


@asynccontextmanager
async def scraping(
    directory: Path, *targets: str, rules: Callable[[dict[str, Any]], dict[str, Any]] = _as_they_are
) -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes some targets each second, and evaluates the alerts; `rules` may change them before."""
    changed = rules(yaml.safe_load(RULES.read_text()))
    (directory / "rules.yaml").write_text(yaml.safe_dump(changed))
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "rules.yaml")],
        "scrape_configs": [{"job_name": "remit", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        find("prometheus"),
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=10.0, trust_env=False) as client:
            async with asyncio.timeout(START_S):
                while not await _is_ready(client):
                    assert process.returncode is None, "Prometheus has ended; its output is above"
                    await asyncio.sleep(POLL_S)
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0


def free_port() -> int:
    """A port that nobody listens on, for programs that cannot take one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).is_success
    except httpx2.TransportError:
        return False
