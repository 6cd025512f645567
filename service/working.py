"""`remit work`: a graph worker in a process of its own."""

import asyncio
import signal
from contextlib import AsyncExitStack

from service import runtime
from service.graph_worker import working
from service.metrics_port import metrics_of
from service.runtime import Progress
from service.settings import Settings


class NoPolicyError(Exception):
    """A worker was started without a policy engine to ask."""


async def work(settings: Settings, progress: Progress) -> None:
    """Execute graphs until SIGTERM or SIGINT.

    Raises:
        NoDatabaseError: when no database is set.
        NoPolicyError: when it is not said who decides.
        PortInUseError: when its metrics cannot be served where they should be.
    """
    if settings.opa_url is None and settings.bundle_url is None:
        raise NoPolicyError(
            "neither REMIT_OPA_URL nor REMIT_BUNDLE_URL is set: a worker asks an OPA of yours, or runs one that pulls"
            " its bundle from the service at REMIT_BUNDLE_URL (with its REMIT_BUNDLE_TOKEN and REMIT_BUNDLE_KEY_FILE)"
        )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(metrics_of(settings))
        instruments = await stack.enter_async_context(runtime.instruments_of(settings))
        database_url = await stack.enter_async_context(runtime.database_of(settings, progress, embedded=False))
        delivery = await stack.enter_async_context(runtime.policy_of(settings, progress))
        engine = await stack.enter_async_context(
            runtime.engine_of(settings, delivery, settings.bundle_url or "", progress, instruments)
        )
        services = await stack.enter_async_context(
            runtime.services_of(settings, database_url, engine, stopping, instruments)
        )
        await stack.enter_async_context(working(services, database_url))
        progress("executing graphs")
        await stopping.wait()
