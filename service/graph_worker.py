"""Graph workers: claim the runs of graph agents, keep their leases, and execute them.

Each run is a task. Whatever waits in a join holds neither a thread nor a connection, so one process keeps thousands of
graphs; only nodes at work are bounded.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

import structlog
from psycopg import Error as CheckpointError
from psycopg_pool import PoolTimeout

from kernel.commands.cancel_subtree import CancelSubtreeCommand
from kernel.commands.claim_work import ClaimedRun, ClaimWork, ClaimWorkCommand
from kernel.commands.complete_work import CompleteWorkCommand
from kernel.commands.evaluate_and_replan import EvaluateAndReplanCommand
from kernel.commands.heartbeat import Heartbeat, HeartbeatCommand, LeaseRef, LeaseStatus
from kernel.commands.join import JoinCommand
from kernel.commands.run_graph import RunGraphCommand
from kernel.domain.errors import DatabaseUnavailableError, RemitError
from kernel.domain.principal import Principal
from kernel.graph.checkpoints import Checkpoints
from kernel.graph.executors.visit import Commands
from kernel.graph.langgraph_runtime import LangGraphRuntime
from kernel.store import graph_runs
from kernel.store.graph_runs import HeldGraph
from service.dependencies import Services
from service.graph_tools import tools_of

# How soon a fence, a lost lease, or work that another process queued is noticed.
LOOK_S = 0.5
# However much work is told of, looking for it is no busy loop.
MIN_PAUSE_S = 0.02
LEASE_S = 15
# A process that holds so many claims no more.
MAX_HELD = 5_000
MAX_CLAIMED = 100
# How often a run may be claimed: it goes on from its checkpoint, so being cut off is no failure of its own.
MAX_ATTEMPTS = 1_000
MAX_PAUSE_S = 5.0
# How often a graph is tried that fails by what nobody has foreseen.
MAX_FAILURES = 4
# How long the checkpoints of a run that has ended may stay: longer than its worker takes to clear up behind it.
KEPT_S, CLEAR_S, MAX_CLEARED = 60.0, 30.0, 200
# What ends by itself: the database or the pool of checkpoints does not answer for now.
PASSING = (DatabaseUnavailableError, CheckpointError, PoolTimeout)

log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    """A claimed run and the task that executes it."""

    tenant_id: UUID
    claimed: ClaimedRun
    good_until: float
    task: asyncio.Task[None] = field(init=False)

    @property
    def ref(self) -> HeldGraph:
        return HeldGraph(self.tenant_id, self.claimed.run_id, self.claimed.lease)


class GraphWorker:
    """Executes the runs of every tenant's graph agents until it is stopped.

    Args:
        lease_s: for how long a run is held without a heartbeat, in seconds: after a crash it goes on that much later.
        max_held: how many runs are held at once.
    """

    def __init__(
        self, services: Services, run_graph: RunGraphCommand, *, lease_s: int = LEASE_S, max_held: int = MAX_HELD
    ) -> None:
        self._database = services.database
        self._wakeups = services.wakeups
        token_s = services.settings.run_token_ttl_s
        self._claims = ClaimWorkCommand(services.database, services.tokens, services.wakeups, token_s=token_s)
        self._heartbeats = HeartbeatCommand(services.database, services.tokens, token_s=token_s)
        self._run_graph = run_graph
        self._lease_s = lease_s
        self._max_held = max_held
        self._held: dict[UUID, _Held] = {}
        self._left: list[HeldGraph] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        """Begin to claim."""
        self._stopping, self._left = False, []
        self._tasks = [
            asyncio.create_task(self._keep_on(self._claim), name="graphs: claim"),
            asyncio.create_task(self._keep_on(self._watch), name="graphs: watch"),
            asyncio.create_task(self._keep_on(self._renew), name="graphs: renew"),
            asyncio.create_task(self._keep_on(self._clear), name="graphs: clear"),
        ]

    async def stop(self) -> None:
        """Stop, and leave what is under way to others at once."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await _ended(self._tasks)
        left = [*self._left, *(held.ref for held in self._held.values())]
        await self._drop(self._held.values())
        if left:
            with suppress(DatabaseUnavailableError):
                async with self._database.write() as session:
                    await graph_runs.let_go(session, left)

    def holds(self, run_id: UUID) -> bool:
        """Whether a run is executed here."""
        return run_id in self._held

    async def _keep_on(self, look: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while not self._stopping:
            try:
                await look()
                failures = 0
            except PASSING as error:
                failures += 1
                log.warning("the database does not answer the graph worker", error=str(error), failures=failures)
            except Exception:
                failures += 1
                log.exception("a pass of the graph worker failed", failures=failures)
            if failures:
                await asyncio.sleep(min(LOOK_S * 2**failures, MAX_PAUSE_S))

    async def _claim(self) -> None:
        """Take what is queued, as much as there is room for; then wait for more."""
        self._wakeups.work.clear()
        room = self._max_held - len(self._held)
        found = 0
        if room > 0:
            async with self._database.read() as session:
                queued = await graph_runs.queued(session)
            for tenant_id, slugs in queued.items():
                found += await self._claim_of(tenant_id, slugs, min(room - found, MAX_CLAIMED))
        if found:
            await asyncio.sleep(MIN_PAUSE_S)
            return
        await asyncio.sleep(MIN_PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._wakeups.work.wait()

    async def _claim_of(self, tenant_id: UUID, slugs: list[str], at_most: int) -> int:
        if at_most <= 0:
            return 0
        now = asyncio.get_running_loop().time()
        wanted = ClaimWork(agent_slugs=tuple(slugs), max_runs=at_most, lease_s=self._lease_s)
        claimed = await self._claims.execute(_tenant(tenant_id), wanted)
        first = [run.run_id for run in claimed if run.attempt == 1]
        if first:
            async with self._database.write() as session:
                await graph_runs.allow_attempts(session, tenant_id, first, MAX_ATTEMPTS)
        for run in claimed:
            earlier = self._held.pop(run.run_id, None)
            if earlier is not None:
                earlier.task.cancel()
            held = _Held(tenant_id, run, now + self._lease_s)
            held.task = asyncio.create_task(self._execute(held), name=f"graph {run.run_id}")
            self._held[run.run_id] = held
        return len(claimed)

    async def _execute(self, held: _Held) -> None:
        principal, claimed, pause = _tenant(held.tenant_id), held.claimed, LOOK_S
        again, failures = False, 0
        structlog.contextvars.bind_contextvars(tenant_id=str(held.tenant_id), run_id=str(claimed.run_id))
        try:
            while True:
                try:
                    reported = await self._run_graph.execute(principal, claimed, again=again)
                    if reported is None and self._wakeups.stopping:
                        self._left.append(held.ref)
                except PASSING as error:
                    log.warning("a graph is taken up again", run_id=str(claimed.run_id), error=str(error))
                except Exception:
                    failures += 1
                    log.exception("a graph could not be executed", run_id=str(claimed.run_id), failures=failures)
                    if failures == MAX_FAILURES:
                        await self._run_graph.give_up(principal, claimed)
                        return
                else:
                    return
                again = True
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_S)
        except Exception:
            # Its lease runs out, and it is taken up again; what fails each time ends by the number of attempts.
            log.exception("a graph could not be given up", run_id=str(claimed.run_id))
        finally:
            if self._held.get(claimed.run_id) is held:
                del self._held[claimed.run_id]

    async def _watch(self) -> None:
        """Stop what is cancelled, lost, or held beyond its lease."""
        await asyncio.sleep(LOOK_S)
        now = asyncio.get_running_loop().time()
        await self._drop([held for held in self._held.values() if held.good_until < now])
        if not self._held:
            return
        async with self._database.read() as session:
            doubts = await graph_runs.doubts(session, [held.ref for held in self._held.values()])
        lost = [self._held[doubt.run_id] for doubt in doubts if not doubt.held and doubt.run_id in self._held]
        await self._drop(lost)
        await self._beat([self._held[doubt.run_id] for doubt in doubts if doubt.held and doubt.run_id in self._held])

    async def _renew(self) -> None:
        await asyncio.sleep(self._lease_s / 4)
        await self._beat(list(self._held.values()))

    async def _clear(self) -> None:
        """Delete the checkpoints of runs that have ended without a worker."""
        async with self._database.read() as session:
            ended = await graph_runs.left_behind(session, ended_s=KEPT_S, limit=MAX_CLEARED)
        for tenant_id, run_id in ended:
            await self._run_graph.forget(tenant_id, run_id)
        if len(ended) < MAX_CLEARED:
            await asyncio.sleep(CLEAR_S)

    async def _beat(self, held: list[_Held]) -> None:
        by_tenant: dict[UUID, list[_Held]] = {}
        for one in held:
            by_tenant.setdefault(one.tenant_id, []).append(one)
        # Side by side: a tree of one tenant that somebody holds is waited for until the leases of all have run out.
        beats = (self._beat_for(tenant_id, ours) for tenant_id, ours in by_tenant.items())
        failures = [end for end in await asyncio.gather(*beats, return_exceptions=True) if end is not None]
        if failures:
            raise failures[0]

    async def _beat_for(self, tenant_id: UUID, ours: Sequence[_Held]) -> None:
        now = asyncio.get_running_loop().time()
        refs = tuple(LeaseRef(one.claimed.run_id, one.claimed.lease) for one in ours)
        answers = await self._heartbeats.execute(_tenant(tenant_id), Heartbeat(refs, extend_s=self._lease_s))
        stopped = []
        for one, answer in zip(ours, answers, strict=True):
            if answer.status is LeaseStatus.CONTINUE:
                one.good_until = now + self._lease_s
            elif not one.task.done():
                stopped.append(one)
                log.info("a graph is stopped", run_id=str(one.claimed.run_id), why=answer.status, said=answer.reason)
        cancelled = {answer.run_id for answer in answers if answer.status is LeaseStatus.CANCEL}
        await self._drop(stopped)
        for one in stopped:
            if one.claimed.run_id in cancelled:
                with suppress(RemitError):
                    await self._run_graph.acknowledge(_tenant(tenant_id), one.claimed)

    async def _drop(self, held: Iterable[_Held]) -> None:
        """Stop tasks, and see them stopped."""
        dropped = list(held)
        for one in dropped:
            one.task.cancel()
        await _ended(one.task for one in dropped)


@asynccontextmanager
async def working(services: Services, database_url: str) -> AsyncIterator[GraphWorker]:
    """A worker that executes graphs for as long as the block lasts."""
    settings = services.settings
    async with Checkpoints.open(database_url, pool_size=settings.checkpoint_pool_size) as checkpoints:
        commands = Commands(
            combiner=services.combiner,
            join=JoinCommand(services.database, services.engine, services.wakeups),
            cancel=CancelSubtreeCommand(services.database, services.engine, services.wakeups),
            replan=EvaluateAndReplanCommand(services.database, services.engine),
            wakeups=services.wakeups,
            invoke_tool=tools_of(services),
        )
        graphs = LangGraphRuntime(commands, checkpoints, active_nodes=settings.graph_active_nodes)
        completions = CompleteWorkCommand(services.database, services.wakeups)
        worker = GraphWorker(
            services,
            services.run_graph(services.database, graphs, checkpoints, completions),
            lease_s=settings.graph_lease_s,
        )
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop()


def _tenant(tenant_id: UUID) -> Principal:
    """The worker is a part of the kernel: it acts for each tenant as that tenant's own worker would."""
    return Principal(kind="tenant", tenant_id=tenant_id, scopes=frozenset({"agents.execute"}))


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
