"""Concurrent spawns of one process share questions and transactions.

An order that finds nothing under way leaves at once, alone, so one client pays nothing. While batches are under way,
the next one leaves when it is as large as they are together: what a batch costs beside its orders (two reads, a lock,
a question) is then shared by as many as come, and the lanes carry equal parts. None waits longer than `MAX_WAIT_S`.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from uuid import UUID

from kernel.commands.lanes import Lanes
from kernel.commands.spawning.order import Spawned, SpawnOrder
from kernel.commands.spawning.pipeline import Postponed, Preview, SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns, InFlight
from kernel.commands.spawning.verdicts import Outcome
from kernel.domain.errors import DatabaseUnavailableError, RemitError, TenantSaturatedError
from kernel.policy.engine import Evaluated
from kernel.store.trees import TreeKey

# What one batch may hold: as many orders as one question to policy, and so many children that its locks stay short.
MAX_ORDERS = 64
MAX_CHILDREN = 256
MAX_KNOWN_ROOTS = 100_000
# How long an order that could leave waits for company, where batches are under way.
MAX_WAIT_S = 0.01
# So many of the trees that somebody holds are waited for at a time, beside the lanes; each costs a connection.
MAX_WAITS = 2


@dataclass(slots=True)
class _Waiting:
    order: SpawnOrder
    answer: asyncio.Future[Outcome]
    # Of the request that ordered, not of whichever request's end lets the batch go: logs and traces name it.
    context: Context


class SpawnCombiner:
    """Takes orders from many requests and hands them to the pipeline in batches.

    Fair between tenants: a batch takes one order of each tenant in turn. Of one tree there is one batch in flight, so
    that batches do not queue up behind each other's locks.

    Args:
        lanes: how many batches may be in flight; each holds one database connection.
        max_waiting_per_tenant: how many orders of one tenant may wait or be under way; one more is refused at once.
        active_runs: the soft bound on what a tenant has active; without it there is none. What was spawned before is
            answered beyond it, too.
    """

    def __init__(
        self,
        pipeline: SpawnPipeline,
        *,
        lanes: int = 2,
        max_waiting_per_tenant: int = 256,
        active_runs: ActiveRuns | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._lanes = lanes
        self._active_runs = active_runs
        self.in_flight = InFlight(max_waiting_per_tenant)
        # Each tenant has lanes of its own: what one asks in passing keeps no other waiting.
        self._previews: Lanes[tuple[UUID, int], SpawnOrder, Preview] = Lanes(self._preview)
        self._repeats: Lanes[UUID, SpawnOrder, Spawned | None] = Lanes(self._find)
        self._queues: OrderedDict[UUID, deque[_Waiting]] = OrderedDict()
        self._queued = 0
        self._busy: set[TreeKey] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._held: set[asyncio.Task[None]] = set()
        self._waits = asyncio.Semaphore(MAX_WAITS)
        self._orders_under_way = 0
        self._patience: asyncio.TimerHandle | None = None
        # Which tree a caller is in is known once it has spawned; until then its own id stands for its tree, which is
        # only a guess about contention: the lock decides.
        self._roots: OrderedDict[UUID, UUID] = OrderedDict()

    async def spawn(self, order: SpawnOrder) -> Spawned:
        """Execute one order.

        A caller that goes away does not take its order with it: the batch runs to its end on its own.

        Raises:
            TenantSaturatedError: when the tenant has too much in flight, or active.
            RemitError: what the order was refused with.
        """
        if self._active_runs is not None:
            try:
                self._active_runs.check(order.tenant_id)
            except TenantSaturatedError as saturated:
                return await self._earlier(order, saturated)
        self.in_flight.enter(order.tenant_id)
        waiting = _Waiting(order, asyncio.get_running_loop().create_future(), copy_context())
        self._queues.setdefault(order.tenant_id, deque()).append(waiting)
        self._queued += 1
        self._dispatch()
        outcome = await waiting.answer
        if isinstance(outcome, RemitError):
            raise outcome
        return outcome

    async def preview(self, order: SpawnOrder) -> Spawned | Evaluated:
        """What would be decided about an order; nothing is written.

        Raises:
            TenantSaturatedError: when the tenant has too much in flight.
            PolicyUnavailableError: when policy gives no answer.
            RemitError: as the order itself would be refused, but for policy's denial, which is the answer.
        """
        with self.in_flight.one_of(order.tenant_id):
            preview = await self._previews.take((order.tenant_id, order.caller_run_id.int % self._lanes), order)
        if isinstance(preview, RemitError):
            raise preview
        return preview

    async def _preview(self, _lane: tuple[UUID, int], orders: Sequence[SpawnOrder]) -> list[Preview]:
        return await self._pipeline.preview(orders)

    async def _earlier(self, order: SpawnOrder, saturated: TenantSaturatedError) -> Spawned:
        """What an order came to that was granted before the tenant had as much active as it may."""
        with self.in_flight.one_of(order.tenant_id):
            earlier = await self._repeats.take(order.tenant_id, order)
        if earlier is None:
            raise saturated
        return earlier

    async def _find(self, _tenant_id: UUID, orders: Sequence[SpawnOrder]) -> list[Spawned | RemitError | None]:
        return await self._pipeline.find(orders)

    async def drain(self) -> None:
        """Wait until every order that was taken has been answered."""
        while self._under_way or self._held:
            await asyncio.wait(self._under_way | self._held)

    def _dispatch(self) -> None:
        while self._queued and len(self._under_way) < self._lanes:
            if self._queued < self._orders_under_way:
                # Without it one tenant's slow batch would keep the few orders of all others.
                if self._patience is None:
                    self._patience = asyncio.get_running_loop().call_later(MAX_WAIT_S, self._leave)
                return
            if not self._leave():
                return

    def _leave(self) -> bool:
        """Let a batch go, however small; whether there was one."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        batch = self._take()
        if batch:
            keys = {self._tree_of(waiting.order) for waiting in batch}
            self._busy |= keys
            self._queued -= len(batch)
            self._orders_under_way += len(batch)
            self._under_way.add(asyncio.create_task(self._execute(batch, keys), context=batch[0].context))
        return bool(batch)

    def _take(self) -> list[_Waiting]:
        """One order of each tenant in turn, passing over trees that are busy, until the batch is full."""
        batch: list[_Waiting] = []
        children = 0
        passed_over: dict[UUID, list[_Waiting]] = {}
        live = deque(self._queues)
        while live and len(batch) < MAX_ORDERS:
            tenant_id = live.popleft()
            queue = self._queues[tenant_id]
            while queue:
                waiting = queue.popleft()
                size = len(waiting.order.children)
                if self._tree_of(waiting.order) in self._busy or (batch and children + size > MAX_CHILDREN):
                    passed_over.setdefault(tenant_id, []).append(waiting)
                    continue
                batch.append(waiting)
                children += size
                live.append(tenant_id)
                break
        for tenant_id, skipped in passed_over.items():
            self._queues[tenant_id].extendleft(reversed(skipped))
        for tenant_id in [tenant_id for tenant_id, queue in self._queues.items() if not queue]:
            del self._queues[tenant_id]
        # The next batch begins with another tenant.
        if self._queues:
            self._queues.move_to_end(next(iter(self._queues)))
        return batch

    async def _execute(self, batch: list[_Waiting], keys: set[TreeKey]) -> None:
        held: dict[TreeKey, list[_Waiting]] = {}
        try:
            held = await self._answer_all(batch, again=False)
        finally:
            # Those trees stay busy: what comes for them meanwhile goes with the next batch.
            self._busy -= keys - held.keys()
            self._orders_under_way -= len(batch)
            _discard_current(self._under_way)
            for key, waiting in held.items():
                self._held.add(asyncio.create_task(self._wait_for(key, waiting), context=waiting[0].context))
            self._dispatch()

    async def _wait_for(self, key: TreeKey, batch: list[_Waiting]) -> None:
        """Execute the orders in a tree that somebody holds, in no lane: others could be served there."""
        try:
            async with self._waits:
                await self._answer_all(batch, again=True)
        finally:
            self._busy.discard(key)
            _discard_current(self._held)
            self._dispatch()

    async def _answer_all(self, batch: list[_Waiting], *, again: bool) -> dict[TreeKey, list[_Waiting]]:
        """Answer the orders of a batch; hands back those in trees that are held, by their tree."""
        outcomes: list[Outcome | Postponed | Exception]
        outcomes = [DatabaseUnavailableError("the service is shutting down")] * len(batch)
        held: dict[TreeKey, list[_Waiting]] = {}
        try:
            outcomes = [*await self._pipeline.execute([waiting.order for waiting in batch], again=again)]
        except Exception as error:  # noqa: BLE001 - whatever it is, each of the waiting requests is told
            outcomes = [error] * len(batch)
        finally:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Postponed):
                    held.setdefault(self._tree_of(waiting.order), []).append(waiting)
                    continue
                self.in_flight.leave(waiting.order.tenant_id)
                _answer(waiting.answer, outcome)
            # Not before: until then, an order's tree is the one that it was dispatched under.
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Spawned):
                    self._remember(waiting.order.caller_run_id, outcome.root_run_id)
        return held

    def _tree_of(self, order: SpawnOrder) -> TreeKey:
        return order.tenant_id, self._roots.get(order.caller_run_id, order.caller_run_id)

    def _remember(self, run_id: UUID, root_run_id: UUID) -> None:
        self._roots[run_id] = root_run_id
        self._roots.move_to_end(run_id)
        while len(self._roots) > MAX_KNOWN_ROOTS:
            self._roots.popitem(last=False)


def _discard_current(tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.current_task()
    if task is not None:
        tasks.discard(task)


def _answer(waiting: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if waiting.done():  # its request was cancelled
        return
    if isinstance(outcome, Spawned | RemitError):
        waiting.set_result(outcome)
    else:
        waiting.set_exception(outcome)
