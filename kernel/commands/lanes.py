"""Requests that need the same lock go together: one batch in flight per lane, and nothing waits for company.

A request that finds its lane free leaves at once, alone. Those that arrive while it is under way leave with the next
batch, so that a busy tree sees one transaction after the other and never a queue of connections at its lock.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")

MAX_BATCH = 64


@dataclass(slots=True)
class _Waiting(Generic[Q, A]):
    request: Q
    answer: asyncio.Future[A]
    context: Context


class Lanes(Generic[K, Q, A]):
    """One lane per key.

    Args:
        execute: answers a batch of one lane, each request on its own merits, in order.
    """

    def __init__(self, execute: Callable[[K, Sequence[Q]], Awaitable[Sequence[A | Exception]]]) -> None:
        self._execute = execute
        self._queues: dict[K, deque[_Waiting[Q, A]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    async def take(self, key: K, request: Q) -> A:
        """Have a request executed; whoever goes away while it waits is passed over.

        Raises:
            Exception: the one that stands for its answer, or that the whole batch met.
        """
        waiting: _Waiting[Q, A] = _Waiting(request, asyncio.get_running_loop().create_future(), copy_context())
        queue = self._queues.get(key)
        if queue is not None:
            queue.append(waiting)
        else:
            self._queues[key] = deque([waiting])
            task = asyncio.create_task(self._drive(key))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return await waiting.answer

    async def _drive(self, key: K) -> None:
        queue = self._queues[key]
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]
            batch = [waiting for waiting in batch if not waiting.answer.done()]
            if batch:
                # In the context of the first of its requests, so that logs and traces do not name an earlier one.
                await asyncio.create_task(self._answer(key, batch), context=batch[0].context)
        del self._queues[key]

    async def _answer(self, key: K, batch: Sequence[_Waiting[Q, A]]) -> None:
        answers: Sequence[A | Exception]
        try:
            answers = await self._execute(key, [waiting.request for waiting in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, each of the waiting requests is told
            answers = [error] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
