"""The service that is measured: `remit up` in a process of its own, on a fresh data directory, and a tenant in it."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx2

from service.embedded.opa import find_or_build_opa

REPOSITORY = Path(__file__).parent.parent
START_TIMEOUT_S = 180
# No limit stands in the way of a measurement.
UNLIMITED = 1_000_000_000
ROOTS_AT_ONCE = 16
# Longer than it takes to plant millions of runs, so that no join cancels its group before it is measured.
GROUP_TIMEOUT_S = 86_400

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A running service and a tenant of it, whose agent `orchestrator` may spawn itself and `worker` without limit."""

    url: str
    pid: int
    data_dir: Path
    tenant_id: str
    token: str
    orchestrator: str
    client: httpx2.AsyncClient

    async def post(self, path: str, body: object) -> dict[str, Any]:
        """The answer of a call that has to succeed."""
        response = await self.client.post(path, json=body)
        if not response.is_success:
            raise RuntimeError(f"{path}: {response.status_code} {response.text}")
        answer: dict[str, Any] = response.json()
        return answer

    async def roots(self, count: int) -> list[str]:
        """Root runs of the orchestrator."""
        turns = asyncio.Semaphore(ROOTS_AT_ONCE)

        async def start() -> str:
            async with turns:
                body = {"requested_scopes": ["agents.execute", "read"]}
                run_id: str = (await self.post(f"/agents/{self.orchestrator}/runs", body))["run_id"]
                return run_id

        return await asyncio.gather(*(start() for _ in range(count)))

    async def group(self, caller: str, size: int) -> dict[str, Any]:
        """A group of workers, spawned in one call."""
        body = {
            "caller_run_id": caller,
            "targets": [{"target_agent_slug": "worker", "mapped_input_payload": {"n": n}} for n in range(size)],
            "scope_subset": ["read"],
            "idempotency_key_prefix": uuid.uuid4().hex,
            "timeout_s": GROUP_TIMEOUT_S,
        }
        return await self.post("/internal/orchestration/spawn-group", body)

    async def spawn(self, caller: str, target: str = "worker") -> str:
        """One child."""
        body = {
            "caller_run_id": caller,
            "target_agent_slug": target,
            "scope_subset": ["agents.execute", "read"],
            "idempotency_key": uuid.uuid4().hex,
        }
        run_id: str = (await self.post("/internal/orchestration/spawn-run", body))["spawned_run_ids"][0]
        return run_id

    async def database(self) -> asyncpg.Connection:
        """A connection to the service's own PostgreSQL."""
        connection: asyncpg.Connection = await asyncpg.connect(
            host=str(self.data_dir / "postgres"), user="remit", database="remit"
        )
        return connection


@asynccontextmanager
async def running(**settings: str) -> AsyncIterator[Subject]:
    """Start the service, with `REMIT_…` settings, and stop it.

    Raises:
        RuntimeError: it ended, or was not ready in time; what it said stands above.
    """
    # Building it takes minutes, which are no part of the start.
    await find_or_build_opa(progress=print)
    _stop_when_told()
    with tempfile.TemporaryDirectory(prefix="remit-load-") as directory:
        data_dir = Path(directory) / "data"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", str(data_dir)),
            cwd=REPOSITORY,
            env={**os.environ, "REMIT_LOG_LEVEL": "warning", **settings},
            stdout=asyncio.subprocess.PIPE,
            # An interrupt from the terminal is for who measures: what it still asks, the service has to answer.
            start_new_session=True,
        )
        try:
            await _ready(process)
            service = json.loads((data_dir / "service.json").read_text())
            admin = (data_dir / "admin-token").read_text().strip()
            async with httpx2.AsyncClient(base_url=service["url"], timeout=120) as client:
                yield await _furnish(client, service, admin, data_dir)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


def _stop_when_told() -> None:
    """Take SIGTERM as an interrupt, so that the service, which is in a session of its own, is stopped with us."""
    task = asyncio.current_task()
    # Unless whoever measures has made arrangements of his own.
    if task is not None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def run_measurement(
    measuring: Coroutine[Any, Any, T], *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> T:
    """Run what measures; where it is interrupted or told to stop, end in a line once the service has been stopped."""
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(measuring)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except asyncio.CancelledError:
        print("told to stop", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in process.stdout:
                if b"ready at" in line:
                    return
            raise RuntimeError(f"remit up ended with {await process.wait()}; why, it has said above")
    except TimeoutError:
        raise RuntimeError(f"remit up was not ready within {START_TIMEOUT_S} s") from None


async def _furnish(client: httpx2.AsyncClient, service: dict[str, Any], admin: str, data_dir: Path) -> Subject:
    async def call(method: str, path: str, body: object, token: str) -> dict[str, Any]:
        response = await client.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    tenant_id = (await call("POST", "/tenants", {"slug": "load", "name": "Load"}, admin))["tenant_id"]
    scopes = ["agents.execute", "catalog.write", "policy.read", "runs.read"]
    token = (await call("POST", f"/tenants/{tenant_id}/tokens", {"scopes": scopes}, admin))["token"]
    agents = {}
    for slug in ("orchestrator", "worker"):
        body = {"slug": slug, "name": slug, "kind": "external"}
        agents[slug] = (await call("POST", "/agents", body, token))["agent_id"]
        await call("POST", f"/agents/{agents[slug]}/publish", None, token)
    orchestrator = agents["orchestrator"]
    limits = {"max_depth": 10_000, "max_fanout": UNLIMITED, "max_children_total": UNLIMITED}
    await call("PUT", f"/agents/{orchestrator}/orchestrator-policy", limits, token)
    entries = [{"target_agent_slug": slug} for slug in agents]
    await call("PUT", f"/agents/{orchestrator}/allowlist", {"entries": entries}, token)
    client.headers["Authorization"] = f"Bearer {token}"
    return Subject(service["url"], service["pid"], data_dir, tenant_id, token, orchestrator, client)
