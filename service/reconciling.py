"""`remit reconcile`: the loops in a process of their own."""

import asyncio
import signal

from prometheus_client import REGISTRY

from kernel import metrics
from kernel.wakeups import Wakeups
from service.loops import loops_of
from service.metrics_port import metrics_of
from service.runtime import Instruments, NoDatabaseError, Progress, instruments_of
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
    with metrics_of(settings):
        async with instruments_of(settings) as instruments:
            await _run(settings, settings.database_url, instruments, stopping, progress)


async def _run(
    settings: Settings, database_url: str, instruments: Instruments, stopping: asyncio.Event, progress: Progress
) -> None:
    database = instruments.database(database_url, pool_size=settings.database_pool_size)
    metrics.DB_POOL_IN_USE.set_function(database.in_use)
    wakeups = Wakeups(database, stopping)
    loops = loops_of(settings, database, wakeups, instruments.loop_body)
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
