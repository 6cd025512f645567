"""One PostgreSQL and one OPA a session; a database per worker; a tenant of its own per test."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx2
import pytest
from _pytest.nodeid import coerce_node_id
from sqlalchemy import make_url

import policies
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.graph.checkpoints import make_checkpoint_tables
from kernel.policy.bundle import SigningKey
from kernel.policy.opa import OpaEngine, from_url
from kernel.store import migrate
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.app import make_app
from service.dependencies import Services
from service.policy_delivery import BundlePublisher, OpaStatuses
from service.runtime import PolicyDelivery
from service.serving import Server, listen, url_of
from service.settings import Settings
from service.tokens import KeyRing, Tokens
from tests.faults.scale import TORTURE
from tests.kit import ADMIN_TOKEN, Api, Kit

SERVERS = "REMIT_TEST_SERVERS"
POOL_SIZE = 24


@dataclass(frozen=True)
class Servers:
    """Where the session's servers are."""

    postgres: str
    opa_url: str
    opa_token: str
    opa_binary: Path
    revision: str


class _Session:
    """The process that runs the servers, started by whichever pytest process needs them first."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self) -> None:
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-tests-"))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.stdin.close)
        line = process.stdout.readline()
        if not line:
            self.stop()
            raise pytest.UsageError("the test servers did not start; their output is above")
        os.environ[SERVERS] = line

    def deadlocks(self) -> list[str]:
        """What PostgreSQL's log holds of deadlocks since it was started."""
        if SERVERS not in os.environ:
            return []
        logs = Path(json.loads(os.environ[SERVERS])["postgres_log"]).rglob("*.log")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return [line for line in lines if "deadlock detected" in line]

    def stop(self) -> None:
        os.environ.pop(SERVERS, None)
        self._stack.close()


_session = _Session()


def pytest_configure(config: pytest.Config) -> None:
    # The controller starts them for all its workers, which inherit the environment.
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        _session.start()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What pytest-xdist 3.8 does for `--dist loadgroup`, by the name that pytest 9.2 knows the attribute by; without it
    # every worker starts the fixtures of every group.
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        groups = sorted({str(mark.args[0]) for mark in item.iter_markers("xdist_group")})
        if groups and "@" not in item.nodeid:
            item._id = coerce_node_id(f"{item.nodeid}@{'_'.join(groups)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    # A transaction that was given up for another's sake is tried again and passes unnoticed; its cause does not.
    if not hasattr(session.config, "workerinput") and _session.deadlocks():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _session.deadlocks():
        terminalreporter.write_line(f"PostgreSQL: {line}", red=True)
    if TORTURE:
        for report in terminalreporter.getreports("passed"):
            if report.when == "call":
                figures = [f"{value:,} {name}" for name, value in report.user_properties]
                told = ", ".join([f"{report.duration:,.0f} s", *figures])
                terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {told}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _session.stop()


@pytest.fixture(scope="session")
def servers() -> Servers:
    if SERVERS not in os.environ:
        _session.start()
    found = json.loads(os.environ[SERVERS])
    return Servers(
        postgres=found["postgres"],
        opa_url=found["opa_url"],
        opa_token=found["opa_token"],
        opa_binary=Path(found["opa_binary"]),
        revision=found["revision"],
    )


@pytest.fixture(scope="session")
def opa_binary(servers: Servers) -> Path:
    return servers.opa_binary


@pytest.fixture(scope="session")
async def database_url(servers: Servers, worker_id: str) -> str:
    """A migrated database of this worker's own."""
    url = make_url(servers.postgres)
    name = f"test_{worker_id}"
    connection = await asyncpg.connect(
        host=str(url.query["host"]), port=int(str(url.query["port"])), user=url.username, database=url.database
    )
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    mine = url.set(database=name).render_as_string(hide_password=False)
    await migrate.upgrade(mine)
    await make_checkpoint_tables(mine)
    return mine


@pytest.fixture(scope="session")
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=POOL_SIZE)
    yield database
    await database.close()


@pytest.fixture(scope="session")
async def opa_engine(servers: Servers) -> AsyncIterator[OpaEngine]:
    async with OpaEngine(from_url(servers.opa_url), token=servers.opa_token, timeout_s=10.0) as engine:
        yield engine


@pytest.fixture(scope="session")
async def services(
    database: Database, opa_engine: OpaEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Services]:
    """The parts of an API process, as `remit serve` puts them together, on the session's servers."""
    stopping = asyncio.Event()
    pipeline = SpawnPipeline(database, opa_engine)
    services = Services(
        settings=Settings(data_dir=tmp_path_factory.mktemp("data")),
        database=database,
        engine=opa_engine,
        tokens=Tokens(KeyRing(tmp_path_factory.mktemp("keys")), admin_token=ADMIN_TOKEN, run_token_ttl_s=3600),
        pipeline=pipeline,
        combiner=SpawnCombiner(pipeline),
        wakeups=Wakeups(database, stopping),
        active_runs=ActiveRuns(database, default_bound=1_000_000),
        stopping=stopping,
    )
    yield services
    await services.wakeups.stop()
    await services.combiner.drain()


@pytest.fixture(scope="session")
async def api_url(services: Services, opa_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of the application on a socket of loopback."""
    key = SigningKey.load_or_create(tmp_path_factory.mktemp("bundle") / "key.pem")
    publisher = BundlePublisher(opa_binary, Path(policies.__file__).parent, key)
    await publisher.start()
    delivery = PolicyDelivery(publisher, OpaStatuses(), "bundle-token")
    listener = listen("127.0.0.1", 0)
    server = Server(make_app(services, delivery), services)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield url_of(listener)
    services.stopping.set()
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
    await publisher.stop()


@pytest.fixture(scope="session")
async def api(api_url: str) -> AsyncIterator[Api]:
    """The API as the admin sees it."""
    async with httpx2.AsyncClient(base_url=api_url, timeout=30.0) as client:
        yield Api(client, ADMIN_TOKEN)


@pytest.fixture
async def kit(api: Api) -> Kit:
    """A tenant of this test's own, with the means to fill it."""
    return await Kit.make(api)
