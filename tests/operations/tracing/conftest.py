"""An API that is traced, on the session's servers, with its spans kept in memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
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
from service.policy_delivery import BundlePublisher, OpaStatuses
from service.runtime import Instruments, PolicyDelivery, services_of
from service.serving import Server, listen, url_of
from service.settings import Settings
from tests.conftest import Servers
from tests.kit import ADMIN_TOKEN, Api, Kit

INSTRUMENTS = Instruments(tracing.TracedDatabase, tracing.TracedEngine, tracing.TracedPipeline, tracing.request_span)


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


@pytest.fixture(scope="session")
async def traced_url(
    servers: Servers, database_url: str, exporter: InMemorySpanExporter, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
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
        yield url_of(listener)
        stopping.set()
        server.should_exit = True
        await serving


@pytest.fixture(scope="session")
async def traced_api(traced_url: str) -> AsyncIterator[Api]:
    async with httpx2.AsyncClient(base_url=traced_url, timeout=30.0) as client:
        yield Api(client, ADMIN_TOKEN)


@pytest.fixture
async def traced(traced_api: Api) -> Kit:
    """A tenant whose calls are traced."""
    return await Kit.make(traced_api)
