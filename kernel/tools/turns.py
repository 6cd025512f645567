"""Turns: so many of one tenant's calls are on their way to being spawned at once; the others wait in line."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

# A process that answers calls and executes graphs has two of these: together they leave room for a tenant's spawns in
# what the combiner takes of it, and each still fills its batches.
AT_ONCE = 96


@dataclass(slots=True)
class _Line:
    turns: asyncio.Semaphore
    waiting: int = 0


@dataclass(slots=True)
class Turns:
    """The lines of all tenants that have one."""

    at_once: int = AT_ONCE
    _lines: dict[UUID, _Line] = field(default_factory=dict)

    @asynccontextmanager
    async def taken(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Wait for a turn, and hold it for the block."""
        line = self._lines.setdefault(tenant_id, _Line(asyncio.Semaphore(self.at_once)))
        line.waiting += 1
        try:
            async with line.turns:
                yield
        finally:
            line.waiting -= 1
            if not line.waiting:
                self._lines.pop(tenant_id, None)
