"""What calling tools needs of a process, and what is called."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from kernel.commands import calls
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.domain.events import Surface
from kernel.identifiers import new_id
from kernel.policy.engine import PolicyEngine
from kernel.store.engine import Database
from kernel.tools.turns import Turns
from kernel.wakeups import Wakeups

T = TypeVar("T")


@dataclass(slots=True)
class ToolParts:
    """The parts of a process that calls tools; one a process, since it holds whose turn it is."""

    database: Database
    engine: PolicyEngine
    combiner: SpawnCombiner
    wakeups: Wakeups
    turns: Turns = field(default_factory=Turns)
    _ending: set[asyncio.Future[Any]] = field(default_factory=set)

    async def to_the_end(self, work: Awaitable[T]) -> T:
        """Await work that goes on whatever becomes of whoever awaits it."""
        task = asyncio.ensure_future(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return await asyncio.shield(task)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool on behalf of a run.

    Args:
        surface: the one that the call came through.
        parent_node_id: the graph's node that calls, if any.
        cancel_when_abandoned: whether a child is cancelled when nobody waits for it any more; a graph that will be
            resumed has it go on.
    """

    slug: str
    caller_run_id: UUID
    input: Mapping[str, object]
    idempotency_key: str | None = None
    surface: Surface = Surface.RUNTIME_PRIMITIVES
    parent_node_id: str | None = None
    trace_parent: str | None = None
    cancel_when_abandoned: bool = True
    once: UUID = field(default_factory=new_id)

    @property
    def spawn_key(self) -> str:
        """The key of the child that it makes; without a key of the caller's, one that is used once."""
        return calls.spawn_key(self.slug, self.idempotency_key if self.idempotency_key is not None else str(self.once))
