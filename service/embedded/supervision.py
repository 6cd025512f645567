"""Keeps one child running: started again when it dies, ever more slowly while it keeps dying."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from service.embedded.children import Child

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_HEALTHY_AFTER_S = 30.0


class Supervision:
    """Watches a child and brings it back."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Child]],
        *,
        first_delay_s: float = 0.1,
        longest_delay_s: float = 10.0,
    ) -> None:
        """`start` returns a child that works, or raises with nothing left running."""
        self._name = name
        self._start = start
        self._first_delay_s = first_delay_s
        self._longest_delay_s = longest_delay_s
        self._task: asyncio.Task[None] | None = None
        self._restarted = asyncio.Event()
        self.child: Child | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Start the child; what the start raises is raised. From then on watch it."""
        self.child = await self._start()
        self._task = asyncio.create_task(self._watch(self.child), name=f"supervise-{self._name}")

    async def stop(self) -> Child | None:
        """Stop watching, and return the child, which may have ended, for the caller to stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        return self.child

    async def restarted(self, times: int) -> None:
        """Wait until the child has been brought back this many times in all."""
        while self.restarts < times:
            self._restarted.clear()
            await self._restarted.wait()

    async def _watch(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        delay_s = self._first_delay_s
        while True:
            began = loop.time()
            status = await child.wait()
            if loop.time() - began >= _HEALTHY_AFTER_S:
                delay_s = self._first_delay_s
            log.error("embedded_server_died", server=self._name, exit_status=status, restart_in_s=delay_s)
            while True:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, self._longest_delay_s)
                try:
                    child = await self._start()
                except Exception:  # whatever it is, the next try may go well: a disk may have room again
                    log.exception("embedded_server_restart_failed", server=self._name, again_in_s=delay_s)
                else:
                    break
            self.child = child
            self.restarts += 1
            self._restarted.set()
            log.warning("embedded_server_restarted", server=self._name, pid=child.pid, restarts=self.restarts)
