"""An API that is traced, on the session's servers, with its spans kept in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import policies
from kernel.policy.bundle import SigningKey
from kernel.policy.opa import from_url
from service import tracing
from service.app import make_app
from service.dependencies import Services
from service.graph_worker import working
from service.loops import loops_of
from service.policy_delivery import BundlePublisher, OpaStatuses
from service.runtime import Instruments, PolicyDelivery, services_of
from service.serving import Server, listen, url_of
from service.settings import Settings
from tests.conftest import Servers
from tests.kit import ADMIN_TOKEN, Api, Kit

INSTRUMENTS = Instruments(
    database=tracing.TracedDatabase,
    engine=tracing.TracedEngine,
    pipeline=tracing.TracedPipeline,
    request_span=tracing.request_span,
    run_graph=tracing.TracedRunGraph,
    loop_body=tracing.TracedPass,
)


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    # OpenTelemetry takes one provider a process; what is not traced has no use for it.
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


@dataclass(frozen=True)
class TracedService:
    """An API that is traced, and the parts that it is made of."""

    url: str
    services: Services


@pytest.fixture(scope="session")
async def traced_service(
    servers: Servers, database_url: str, exporter: InMemorySpanExporter, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TracedService]:
    directory = tmp_path_factory.mktemp("traced")
    settings = Settings(data_dir=directory, admin_token=ADMIN_TOKEN, spawn_lanes=1)
    stopping = asyncio.Event()
    key = SigningKey.load_or_create(directory / "key.pem")
    publisher = BundlePublisher(servers.opa_binary, Path(policies.__file__).parent, key)
    async with AsyncExitStack() as stack:
        engine = INSTRUMENTS.engine(from_url(servers.opa_url), token=servers.opa_token, timeout_s=10.0)
        await stack.enter_async_context(engine)
        services = await stack.enter_async_context(services_of(settings, database_url, engine, stopping, INSTRUMENTS))
        await publisher.start()
        stack.push_async_callback(publisher.stop)
        listener = listen("127.0.0.1", 0)
        server = Server(make_app(services, PolicyDelivery(publisher, OpaStatuses(), "bundle-token")), services)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield TracedService(url_of(listener), services)
        stopping.set()
        server.should_exit = True
        await serving


@pytest.fixture(scope="session")
async def traced_api(traced_service: TracedService) -> AsyncIterator[Api]:
    async with httpx2.AsyncClient(base_url=traced_service.url, timeout=30.0) as client:
        yield Api(client, ADMIN_TOKEN)


@pytest.fixture
async def traced_worker(traced_service: TracedService, database_url: str) -> AsyncIterator[None]:
    """Graphs are executed for as long as the test lasts."""
    async with working(traced_service.services, database_url):
        yield


@pytest.fixture
async def traced_loops(traced_service: TracedService) -> AsyncIterator[None]:
    """The loops go round for as long as the test lasts."""
    services = traced_service.services
    loops = loops_of(services.settings, services.database, services.wakeups, INSTRUMENTS.loop_body)
    for loop in loops:
        await loop.start()
    yield
    for loop in loops:
        await loop.stop()


@pytest.fixture
async def traced(traced_api: Api) -> Kit:
    """A tenant whose calls are traced."""
    return await Kit.make(traced_api)
