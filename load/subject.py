"""The service that is measured: `remit up` in a process of its own, on a fresh data directory, and a tenant in it."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

REPOSITORY = Path(__file__).parent.parent
START_TIMEOUT_S = 180
# No limit stands in the way of a measurement.
UNLIMITED = 1_000_000_000
ROOTS_AT_ONCE = 16
# Longer than it takes to plant millions of runs, so that no join cancels its group before it is measured.
GROUP_TIMEOUT_S = 86_400


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
    """Start the service, with `REMIT_…` settings, and stop it."""
    with tempfile.TemporaryDirectory(prefix="remit-load-") as directory:
        data_dir = Path(directory) / "data"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.cli", "up", "--port", "0", "--data-dir", str(data_dir)),
            cwd=REPOSITORY,
            env={**os.environ, "REMIT_LOG_LEVEL": "warning", **settings},
            stdout=asyncio.subprocess.PIPE,
            # An interrupt from the terminal is for who measures: what it still asks, the service has to answer.
            process_group=0,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(START_TIMEOUT_S):
                async for line in process.stdout:
                    if b"ready at" in line:
                        break
            service = json.loads((data_dir / "service.json").read_text())
            admin = (data_dir / "admin-token").read_text().strip()
            async with httpx2.AsyncClient(base_url=service["url"], timeout=120) as client:
                yield await _furnish(client, service, admin, data_dir)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


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


async def wrk(
    subject: Subject, callers: Sequence[str], *, connections: int, seconds: int, rate: int | None = None
) -> tuple[float, float]:
    """Spawn single children as fast as `wrk` can, over callers in turn.

    Args:
        rate: spawns per second that arrive, however long each takes, as long as there are connections for them.

    Returns:
        Spawns per second, and the 99th percentile of their latency in milliseconds.
    """
    paced = {"LOAD_RATE": str(rate)} if rate is not None else {}
    answered = await wrk_answers(subject, callers, connections=connections, seconds=seconds, **paced)
    return answered.rate, answered.p99_ms


@dataclass(frozen=True)
class Answers:
    """What `wrk` reports: how many there were, how many a second, and how long they took."""

    count: int
    rate: float
    median_ms: float
    p99_ms: float


async def wrk_answers(
    subject: Subject,
    callers: Sequence[str],
    *,
    connections: int,
    seconds: int,
    script: str = "spawn.lua",
    **settings: str,
) -> Answers:
    """Load the service with a script, whose settings are named in it."""
    program = shutil.which("wrk")
    if program is None:
        raise RuntimeError("wrk is not installed: apt-get install wrk")
    runs = subject.data_dir / f"callers-{uuid.uuid4().hex}.txt"
    runs.write_text("\n".join(callers))
    process = await asyncio.create_subprocess_exec(
        *(program, "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", str(REPOSITORY / "load" / script)),
        subject.url,
        env={
            **os.environ,
            "LOAD_CALLERS": str(runs),
            "LOAD_TOKEN": subject.token,
            "LOAD_SALT": uuid.uuid4().hex,
            **settings,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    out = (await process.communicate())[0].decode()
    count = re.search(r"(\d+) requests in", out)
    if "Non-2xx" in out or process.returncode or count is None:
        raise RuntimeError(out)
    fields = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.strip()}
    return Answers(
        int(count[1]), float(fields["Requests/sec:"]), _milliseconds(fields["50%"]), _milliseconds(fields["99%"])
    )


def _milliseconds(text: str) -> float:
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)
