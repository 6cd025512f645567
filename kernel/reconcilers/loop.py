"""A control loop: runs an idempotent pass over and over, and survives whatever a pass meets."""

import asyncio
import random
import time
from contextlib import suppress
from typing import Protocol

import structlog

from kernel import metrics
from kernel.domain.errors import DatabaseUnavailableError

MAX_BACKOFF_S = 30.0
# Processes that were started together do not stay in step.
JITTER = 0.2

log = structlog.get_logger()


class Counts(Protocol):
    """What a pass has done."""

    @property
    def total(self) -> int:
        """How much there was to do."""
        ...


class Pass(Protocol):
    """The body of a loop. It may be run at any time, by any number of processes at once."""

    async def run_once(self) -> Counts:
        """Do what there is to do now, and return."""
        ...


class Loop:
    """Runs a pass at intervals, at once again while there is more to do, and early when woken.

    Args:
        name: the label of its metric.
        body: the pass.
        interval_s: seconds between passes.
        wake: set by whoever knows that there is something to do; the loop clears it.
    """

    def __init__(self, name: str, body: Pass, *, interval_s: float, wake: asyncio.Event | None = None) -> None:
        self.name = name
        self._body = body
        self._interval_s = interval_s
        self._wake = wake or asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._stopping = False
        # A loop that never succeeds shows itself by a time in 1970, instead of by nothing.
        metrics.RECONCILER_LAST_RUN_SECONDS.labels(self.name)
        self._task = asyncio.create_task(self._run(), name=f"loop {self.name}")

    async def stop(self) -> None:
        """End, after the pass that is under way."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            # Cleared before the pass, so that what arrives during it is not missed.
            self._wake.clear()
            busy = False
            try:
                busy = (await self._body.run_once()).total > 0
            except DatabaseUnavailableError as error:
                failures += 1
                log.warning("the database does not answer a loop", loop=self.name, failures=failures, error=str(error))
            except Exception:
                # A loop that has ended reconciles nothing any more, whatever it was that it met.
                failures += 1
                log.exception("a pass of a loop failed", loop=self.name, failures=failures)
            else:
                failures = 0
                metrics.RECONCILER_LAST_RUN_SECONDS.labels(self.name).set(time.time())
            if not busy and not self._stopping:
                await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        pause = self._interval_s
        if failures:
            pause = max(min(pause * 2.0**failures, MAX_BACKOFF_S), pause)
        pause *= 1 + random.uniform(-JITTER, JITTER)  # noqa: S311 - spreads load, keeps no secret
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake.wait()
