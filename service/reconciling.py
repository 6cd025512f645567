"""`remit reconcile`: the loops in a process of their own."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, start_http_server

from kernel import metrics
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.loops import loops_of
from service.runtime import NoDatabaseError, Progress
from service.serving import PortInUseError
from service.settings import Settings


async def reconcile(settings: Settings, progress: Progress) -> None:
    """Run the loops until SIGTERM or SIGINT.

    Raises:
        NoDatabaseError: when no database is set.
        PortInUseError: when its metrics cannot be served where they should be.
    """
    if settings.database_url is None:
        raise NoDatabaseError("REMIT_DATABASE_URL is not set: which database is to be reconciled?")
    # No policy is asked here: a gauge that says 0 would read as an engine that is down.
    REGISTRY.unregister(metrics.POLICY_ENGINE_UP)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    with _metrics_of(settings):
        await _run(settings, settings.database_url, stopping, progress)


@contextmanager
def _metrics_of(settings: Settings) -> Iterator[None]:
    """Serve the metrics of this process, where it is told a port.

    Raises:
        PortInUseError: when another process listens there.
    """
    if settings.metrics_port is None:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host)
    except OSError as error:
        raise PortInUseError(
            f"{settings.metrics_host}:{settings.metrics_port} cannot be listened on ({error.strerror});"
            " choose another with REMIT_METRICS_HOST and REMIT_METRICS_PORT"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _run(settings: Settings, database_url: str, stopping: asyncio.Event, progress: Progress) -> None:
    database = Database(database_url, pool_size=settings.database_pool_size)
    metrics.DB_POOL_IN_USE.set_function(database.in_use)
    wakeups = Wakeups(database, stopping)
    loops = loops_of(settings, database, wakeups)
    for loop in loops:
        await loop.start()
    progress(f"reconciling with {len(loops)} loops")
    try:
        await stopping.wait()
    finally:
        for loop in loops:
            await loop.stop()
        await wakeups.stop()
        await database.close()
