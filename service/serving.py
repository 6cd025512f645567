"""One API process, from the socket to the last answer."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import orjson
import structlog
import uvicorn
from fastapi import FastAPI

from kernel.graph.checkpoints import make_checkpoint_tables
from kernel.store import migrate, partitions
from service import graph_worker, runtime
from service.app import make_app, wrap
from service.dependencies import Services
from service.loops import loops_of
from service.one_piece import OnePieceProtocol
from service.runtime import Instruments, Progress
from service.settings import Settings
from service.tokens import write_private

GRACEFUL_SHUTDOWN_S = 5
READY_POLL_S = 0.05
BACKLOG = 2048
# A batch of spawns makes some thousands of objects, nearly all of which die with it.
GC_YOUNG_OBJECTS = 20_000
SAME_SIGNAL_S = 1.0
# Each connection is an open file; the usual soft limit of 1,024 is meant for programs that use `select`.
MAX_OPEN_FILES = 65_536

log = structlog.get_logger()


class PortInUseError(Exception):
    """Another process listens there."""


def listen(host: str, port: int) -> socket.socket:
    """The socket that will be served, before anything else is started, so that a port in use is told at once.

    Raises:
        PortInUseError: when it is.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY on such sockets only, and without it every answer on a kept
    # connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortInUseError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --host and --port"
        ) from error
    # From here on callers queue up; the first of them is the OPA that wants its bundle.
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL under which the socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - it is compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    embedded: bool,
    reconcile: bool,
    progress: Progress,
    on_ready: Callable[[str, Services], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then end streams, finish what was begun, and stop the children.

    Args:
        embedded: whether PostgreSQL may be one of our own; then the schema is brought up, too.
        reconcile: whether the loops and a graph worker run in this process.
        on_ready: called once, when the first request would be served.
    """
    allow_many_connections()
    stopping = asyncio.Event()
    url = settings.bundle_url or url_of(listener)
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        ending = _Ending(stopping)
        stack.enter_context(ending.handling_signals())
        instruments = await stack.enter_async_context(runtime.instruments_of(settings))
        database_url = await stack.enter_async_context(runtime.database_of(settings, progress, embedded=embedded))
        if embedded:
            await migrate.upgrade(database_url)
            await make_checkpoint_tables(database_url)
            await partitions.ensure_partitions(database_url)
        delivery = await stack.enter_async_context(runtime.policy_of(settings, progress))
        engine = await stack.enter_async_context(runtime.engine_of(settings, delivery, url, progress, instruments))
        services = await stack.enter_async_context(
            runtime.services_of(settings, database_url, engine, stopping, instruments)
        )
        if reconcile:
            await stack.enter_async_context(_running(services, instruments))
            await stack.enter_async_context(graph_worker.working(services, database_url))
        server = Server(make_app(services, delivery), services)
        ending.serving = True
        _settle_memory()
        async with asyncio.TaskGroup() as group:
            announcing = group.create_task(_announce(services, url_of(listener), on_ready))
            group.create_task(_end_server(server, stopping))
            await server.serve(sockets=[listener])
            stopping.set()
            announcing.cancel()


def allow_many_connections() -> None:
    """Raise the limit of open files as far as this process may, so that a thousand streams are no more than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft not in {resource.RLIM_INFINITY, wanted} and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _settle_memory() -> None:
    """Take what was made so far out of the garbage collector's rounds, and make the rounds rarer.

    Modules and caches live as long as the process; looking through them again and again stalls whoever waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS, 20, 50)


class Server(uvicorn.Server):
    """A server that leaves the signals to us: it would raise them again at its end, before the children are stopped."""

    def __init__(self, app: FastAPI, services: Services) -> None:
        super().__init__(
            uvicorn.Config(
                wrap(app, services),
                lifespan="off",
                log_config=None,
                access_log=False,
                loop="none",
                http=OnePieceProtocol,
                timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
                timeout_keep_alive=75,
                server_header=False,
                proxy_headers=False,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


@asynccontextmanager
async def _running(services: Services, instruments: Instruments) -> AsyncIterator[None]:
    loops = loops_of(services.settings, services.database, services.wakeups, instruments.loop_body)
    for loop in loops:
        await loop.start()
    try:
        yield
    finally:
        for loop in loops:
            await loop.stop()


class _Ending:
    """What SIGTERM and SIGINT mean: while the parts start, give up; while they serve, drain; the second time, hurry."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._main = asyncio.current_task()
        self._first: float | None = None
        self.serving = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._first is None:
            self._first = now
        elif now - self._first < SAME_SIGNAL_S:
            return  # a terminal signals the whole group, and `uv run` passes its own on: it is one wish
        if self._main is not None and (self._stopping.is_set() or not self.serving):
            self._main.cancel()
        self._stopping.set()


async def _end_server(server: uvicorn.Server, stopping: asyncio.Event) -> None:
    await stopping.wait()
    server.should_exit = True


async def _announce(services: Services, url: str, on_ready: Callable[[str, Services], None]) -> None:
    while await runtime.problems(services):  # noqa: ASYNC110 - other processes have no event to wait for
        await asyncio.sleep(READY_POLL_S)
    on_ready(url, services)


def write_service_file(data_dir: Path, url: str) -> Path:
    """Tell other local programs where the service is: `service.json` in the data directory."""
    path = data_dir / "service.json"
    write_private(path, orjson.dumps({"url": url, "pid": os.getpid()}))
    return path


def remove_service_file(data_dir: Path) -> None:
    """Take back what `write_service_file` told."""
    with contextlib.suppress(FileNotFoundError):
        (data_dir / "service.json").unlink()
