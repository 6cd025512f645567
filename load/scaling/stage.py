"""The processes that are measured, and how they are spoken to."""

import asyncio
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil

from load.scaling.history import TABLES
from load.subject import UNLIMITED, running
from service.embedded.opa import find_or_build_opa
from service.embedded.postgres import EmbeddedPostgres
from tests.operations.processes import fleet

MIB = 1 << 20
CALLS_AT_ONCE = 16
MAX_GROUP = 10_000
# Longer than any measurement: no join times out meanwhile, and no lease.
LONG_S = 7_200
AGENTS = ("orchestrator", "worker", "filler", "patient")
SCOPES = ["agents.execute", "catalog.write", "policy.read", "runs.read"]
# Nothing but what is measured bounds the figures; on a busy machine policy may be late.
SETTINGS = {"REMIT_TENANT_MAX_ACTIVE_RUNS": str(UNLIMITED), "REMIT_OPA_TIMEOUT_S": "10"}
READY_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Caller:
    """A run, and the token of its tenant."""

    run_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant whose agent `orchestrator` may spawn itself and the others without limit."""

    tenant_id: str
    token: str
    orchestrator: str


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of processor time of each part, of all its processes."""

    api: float
    postgres: float
    opa: float

    def since(self, before: "Cpu") -> "Cpu":
        """What was used between two looks."""
        return Cpu(self.api - before.api, self.postgres - before.postgres, self.opa - before.opa)


@dataclass(slots=True)
class Stage:
    """A running deployment: its API processes, all descendants of this process, and its database."""

    urls: Sequence[str]
    admin: str
    database: dict[str, str]
    http: aiohttp.ClientSession
    _turn: int = 0

    async def connect(self) -> asyncpg.Connection:
        """A connection to its PostgreSQL."""
        connection: asyncpg.Connection = await asyncpg.connect(**self.database)
        return connection

    async def call(self, method: str, path: str, body: object | None, token: str) -> Any:
        """The answer of a call that has to succeed; the API processes take turns."""
        self._turn += 1
        url = self.urls[self._turn % len(self.urls)] + path
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.request(method, url, json=body, headers=headers) as response:
            if response.status >= 400:
                raise RuntimeError(f"{path}: {response.status} {await response.text()}")
            return await response.json()

    async def primitive(self, name: str, token: str, **body: object) -> Any:
        """The answer of a primitive."""
        return await self.call("POST", f"/internal/orchestration/{name}", body, token)

    async def found(self, count: int) -> list[Tenant]:
        """Make tenants."""
        return await gather([self._found_one() for _ in range(count)])

    async def _found_one(self) -> Tenant:
        slug = f"t-{uuid.uuid4().hex[:12]}"
        tenant_id = (await self.call("POST", "/tenants", {"slug": slug, "name": slug}, self.admin))["tenant_id"]
        path = f"/tenants/{tenant_id}/tokens"
        token = (await self.call("POST", path, {"scopes": SCOPES, "expires_in_s": LONG_S}, self.admin))["token"]
        agents = {}
        for agent in AGENTS:
            body = {"slug": agent, "name": agent, "kind": "external"}
            agents[agent] = (await self.call("POST", "/agents", body, token))["agent_id"]
            await self.call("POST", f"/agents/{agents[agent]}/publish", None, token)
        limits = {"max_depth": 10_000, "max_fanout": UNLIMITED, "max_children_total": UNLIMITED}
        orchestrator = agents["orchestrator"]
        await self.call("PUT", f"/agents/{orchestrator}/orchestrator-policy", limits, token)
        entries = [{"target_agent_slug": agent} for agent in AGENTS]
        await self.call("PUT", f"/agents/{orchestrator}/allowlist", {"entries": entries}, token)
        return Tenant(tenant_id, token, orchestrator)

    async def roots(self, tenant: Tenant, count: int) -> list[Caller]:
        """Start root runs."""
        body = {"requested_scopes": ["agents.execute", "read"]}
        path = f"/agents/{tenant.orchestrator}/runs"

        async def one() -> Caller:
            return Caller((await self.call("POST", path, body, tenant.token))["run_id"], tenant.token)

        return await gather([one() for _ in range(count)])

    async def spawn(self, caller: Caller, agent: str) -> Caller:
        """One child."""
        answer = await self.primitive(
            "spawn-run",
            caller.token,
            caller_run_id=caller.run_id,
            target_agent_slug=agent,
            scope_subset=["agents.execute", "read"],
            idempotency_key=uuid.uuid4().hex,
        )
        return Caller(answer["spawned_run_ids"][0], caller.token)

    async def chain(self, top: Caller, length: int) -> list[Caller]:
        """Orchestrators below one another."""
        links: list[Caller] = []
        for _ in range(length):
            links.append(await self.spawn(links[-1] if links else top, "orchestrator"))
        return links

    async def group(self, caller: Caller, size: int, agent: str = "worker") -> list[str]:
        """Runs in a group; their ids."""
        answer = await self.primitive(
            "spawn-group",
            caller.token,
            caller_run_id=caller.run_id,
            targets=[{"target_agent_slug": agent, "mapped_input_payload": {"n": n}} for n in range(size)],
            scope_subset=["read"],
            idempotency_key_prefix=uuid.uuid4().hex,
            timeout_s=LONG_S,
        )
        run_ids: list[str] = answer["spawned_run_ids"]
        return run_ids

    async def plant(self, caller: Caller, size: int, agent: str) -> None:
        """Runs in as many groups as it takes."""
        for left in range(size, 0, -MAX_GROUP):
            await self.group(caller, min(left, MAX_GROUP), agent)

    async def settle(self) -> None:
        """Let the planner know the tables as they are, and have nothing left for vacuum to do meanwhile."""
        connection = await self.connect()
        try:
            for table in TABLES:
                await connection.execute(f"VACUUM (ANALYZE) {table}")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()


async def gather(calls: Sequence[Any]) -> list[Any]:
    """The answers of calls, not too many at once."""
    turns = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(call: Any) -> Any:
        async with turns:
            return await call

    return await asyncio.gather(*(one(call) for call in calls))


def used() -> Cpu:
    """The processor time of what this process has started, as yet."""
    seconds = {"api": 0.0, "postgres": 0.0, "opa": 0.0}
    for process in psutil.Process().children(recursive=True):
        try:
            part = _part(process)
            times = process.cpu_times()
        except psutil.Error:
            continue
        if part is not None:
            # What has ended, such as a vacuum, is in the account of whoever started it.
            ended = times.children_user + times.children_system if part == "postgres" else 0.0
            seconds[part] += times.user + times.system + ended
    return Cpu(**seconds)


def memory() -> float:
    """The resident memory of the largest API process, in MiB."""
    sizes = [0]
    for process in psutil.Process().children(recursive=True):
        try:
            if _part(process) == "api":
                sizes.append(process.memory_info().rss)
        except psutil.Error:
            continue
    return max(sizes) / MIB


def _part(process: psutil.Process) -> str | None:
    name = process.name()
    if name.startswith("postgres"):
        return "postgres"
    if name == "opa":
        return "opa"
    return "api" if "service.cli" in process.cmdline() else None


@asynccontextmanager
async def all_in_one() -> AsyncIterator[Stage]:
    """`remit up`."""
    async with running(**SETTINGS) as subject, _http() as http:
        yield Stage(
            [subject.url],
            (subject.data_dir / "admin-token").read_text().strip(),
            {"host": str(subject.data_dir / "postgres"), "user": "remit", "database": "remit"},
            http,
        )


@asynccontextmanager
async def several(apis: int) -> AsyncIterator[Stage]:
    """`remit serve` so many times, `remit reconcile`, and one PostgreSQL and OPA for all."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-scaling-")))
        postgres = EmbeddedPostgres(directory / "pg", progress=print, max_connections=100)
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        processes = fleet.assemble(directory, postgres.dsn, await find_or_build_opa(), apis=apis)
        for part in processes.parts:
            # As in production: what is read through for every request is not written down.
            part.environment = {**part.environment, **SETTINGS, "REMIT_LOG_LEVEL": "warning"}
        await fleet.run(processes.reconciler.environment, "migrate")
        stack.push_async_callback(processes.stop)
        for part in (*processes.apis[:1], processes.opa, *processes.apis[1:], processes.reconciler):
            await part.start()
        http = await stack.enter_async_context(_http())
        stage = Stage(
            [str(part.url) for part in processes.apis],
            processes.secret("admin-token"),
            {"dsn": postgres.dsn.replace("+asyncpg", "", 1)},
            http,
        )
        await _ready(stage)
        yield stage


async def _ready(stage: Stage) -> None:
    deadline = time.monotonic() + fleet.START_S
    for url in stage.urls:
        while True:
            async with stage.http.get(f"{url}/readyz") as response:
                if response.status == 200:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not become ready")
            await asyncio.sleep(READY_POLL_S)


@asynccontextmanager
async def _http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=64)) as session:
        yield session
