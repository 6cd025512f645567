"""Claim work: lease queued runs to a worker, fairly between agents and between trees."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from typing import Any
from uuid import UUID

import orjson
import structlog

from kernel.commands.aftermath import Aftermath
from kernel.commands.lanes import Lanes
from kernel.commands.lifecycle import Change, lifecycle_event
from kernel.commands.requeuing import give_back
from kernel.commands.run_tokens import RunTokens, token_of
from kernel.domain.errors import DatabaseUnavailableError, ForbiddenError, NotFoundError
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.identifiers import new_id
from kernel.store import fences, leases, trees
from kernel.store.engine import Database, WriteSession
from kernel.store.leases import Described, Granted, Queued
from kernel.store.trees import LockedTree, TreeHeldError, TreeKey
from kernel.wakeups import Wakeups

MAX_RUNS = 100
MAX_TREES = 8
# What a look finds may be gone, or under a fence, by the time its tree is locked; then it looks elsewhere.
MAX_LOOKS = 4
# Under the locks, so only a little: how far past runs that a fence covers a claim reads for one that is free.
MAX_PAGES = 4
PAGE = 100
# When others hold every tree that has work: how long a claim that does not wait for work looks again before it is told
# that there is none.
HELD_PATIENCE_S = 2.0
MAX_KNOWN_AGENTS = 10_000
FIRST = UUID(int=0)
START = (-1, -1)

Place = tuple[UUID, UUID]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ClaimWork:
    """What a worker asks for.

    Args:
        agent_slugs: for which agents it works.
        max_runs: at most so many runs at once.
        lease_s: for how long it holds them without a heartbeat, in seconds.
        wait_s: how long it waits for work to arrive when there is none, in seconds.
    """

    agent_slugs: tuple[str, ...]
    max_runs: int = 1
    lease_s: int = 30
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run with all that its worker needs."""

    run_id: UUID
    agent_slug: str
    input: dict[str, Any]
    context: dict[str, object]
    run_token: str
    token_expires_at: datetime
    lease: UUID
    attempt: int
    deadline: datetime
    run_deadline: datetime | None


@dataclass(frozen=True, slots=True)
class _Lane:
    """Claims that ask for the same work go together."""

    tenant_id: UUID
    agent_ids: tuple[UUID, ...]
    lease_s: int


@dataclass(slots=True, eq=False)
class _Hand:
    """A claimer's, held open: how many runs it takes, and those that were put into it.

    `awaited`: nobody has hung up. `held_up`: there is work, but others held the locks of its trees.
    """

    wanted: int
    dealt: list[ClaimedRun] = field(default_factory=list)
    awaited: bool = True
    held_up: bool = False


@dataclass(slots=True)
class _Table:
    """Claimers that are served together, and what was leased for them so far."""

    hands: Sequence[_Hand]
    granted: dict[UUID, Granted] = field(default_factory=dict)

    @property
    def awaited(self) -> list[_Hand]:
        return [hand for hand in self.hands if hand.awaited]

    @property
    def unserved(self) -> bool:
        """Whether somebody would go without."""
        return len(self.granted) < len(self.awaited)

    @property
    def room(self) -> int:
        """How many runs more may be leased, at once, to those who still wait for an answer."""
        return max(0, min(sum(hand.wanted for hand in self.awaited) - len(self.granted), MAX_RUNS))


class ClaimWorkCommand:
    """Hands out work. One per process: it remembers whose turn is next.

    Args:
        token_s: for how long a run's token is good, in seconds.
    """

    def __init__(self, database: Database, tokens: RunTokens, wakeups: Wakeups, *, token_s: int) -> None:
        self._database = database
        self._tokens = tokens
        self._wakeups = wakeups
        self._token_s = token_s
        self._turns = _Turns()
        self._lanes: Lanes[_Lane, _Hand, list[ClaimedRun]] = Lanes(self._share)
        self._returns: set[asyncio.Task[None]] = set()

    async def execute(self, principal: Principal, request: ClaimWork) -> list[ClaimedRun]:
        """Lease up to `max_runs` runs of the tenant; none when nothing comes in time.

        Raises:
            ForbiddenError: for a run's token, which acts as its run only.
            NotFoundError: when the tenant has no such agent.
        """
        if principal.kind == "run":
            raise ForbiddenError("a run's token acts as its run; work is claimed with a tenant's token")
        tenant_id = principal.tenant
        async with self._database.read() as session:
            known = await leases.agents_by_slug(session, tenant_id, request.agent_slugs)
        for slug in request.agent_slugs:
            if slug not in known:
                raise NotFoundError(f"agent_slugs: there is no agent {slug}")
        lane = _Lane(tenant_id, tuple(dict.fromkeys(known[slug] for slug in request.agent_slugs)), request.lease_s)
        now = asyncio.get_running_loop().time
        patience, held_patience = now() + request.wait_s, now() + max(request.wait_s, HELD_PATIENCE_S)
        with self._wakeups.awaiting_work(tenant_id, lane.agent_ids) as waiter:
            while not waiter.ended:
                hand = _Hand(request.max_runs)
                claimed = await self._take(lane, hand)
                if not claimed and hand.held_up and now() < held_patience:
                    # With the next batch, which sees what was queued meanwhile in trees that nobody holds.
                    continue
                left = patience - now()
                if claimed or left <= 0:
                    return claimed
                # Woken or not, it looks again: nobody may yet have noticed what another process queued at the last.
                await waiter.wait(left)
        return []

    async def _take(self, lane: _Lane, hand: _Hand) -> list[ClaimedRun]:
        try:
            return await self._lanes.take(lane, hand)
        except asyncio.CancelledError:
            # Its worker has hung up. The batch goes on for the others, so it is told; what it has dealt comes back.
            hand.awaited = False
            self._give_back(lane.tenant_id, hand.dealt)
            raise

    async def _share(self, lane: _Lane, hands: Sequence[_Hand]) -> list[list[ClaimedRun]]:
        """Lease for several claimers at once, and deal the runs out to them in turn.

        One look serves a few trees only, so there is another for as long as somebody has nothing and there is more.
        """
        table = _Table(hands)
        while table.unserved:
            try:
                more = await self._look(lane, table)
            except TreeHeldError:
                for hand in hands:
                    hand.held_up = True
                break
            except DatabaseUnavailableError:
                if not table.granted:
                    raise
                # What was leased before is not kept from its workers.
                break
            if not more:
                break
            table.granted |= more
        if table.granted:
            claimed = await self._hand_over(lane.tenant_id, table.granted)
            # Who has hung up until now gets nothing; what is left then goes back.
            self._give_back(lane.tenant_id, _deal(table.awaited, claimed))
        return [hand.dealt for hand in hands]

    def _give_back(self, tenant_id: UUID, claimed: Sequence[ClaimedRun]) -> None:
        """Have runs queued again that nobody is there to take; nobody waits for it."""
        if claimed:
            task = asyncio.create_task(self._queue_again(tenant_id, {run.run_id: run.lease for run in claimed}))
            self._returns.add(task)
            task.add_done_callback(self._returns.discard)

    async def _queue_again(self, tenant_id: UUID, granted: dict[UUID, UUID]) -> None:
        try:
            await give_back(self._database, self._wakeups, tenant_id, granted)
        except Exception:
            # They come back when their leases run out.
            log.exception("work that nobody took was not given back", runs=len(granted))

    async def _look(self, lane: _Lane, table: _Table) -> dict[UUID, Granted]:
        tenant_id = lane.tenant_id
        for _ in range(MAX_LOOKS):
            if not table.unserved:
                break
            # Read without a lock, so only a hint: it says where to look, not what to take.
            async with self._database.read() as session:
                places = await leases.trees_with_work(
                    session, tenant_id, self._turns.next(tenant_id, lane.agent_ids), per_agent=MAX_TREES
                )
            if not places:
                break
            self._turns.served(tenant_id, places[: min(table.room, MAX_TREES)])
            try:
                granted = await self._lease(lane, places, table)
            except TreeHeldError:
                # All that was found is held, so the next look begins beyond it.
                self._turns.served(tenant_id, places[: MAX_TREES * len(lane.agent_ids)])
                raise
            if granted:
                return granted
        return {}

    async def _lease(self, lane: _Lane, places: Sequence[Place], table: _Table) -> dict[UUID, Granted]:
        tenant_id, room = lane.tenant_id, max(table.room, 1)
        # Whoever has something does not wait for what others hold.
        patience_ms = 0 if table.granted else trees.PATIENCE_MS
        async with self._database.write() as session:
            locked = await _lock(session, tenant_id, places, at_most=min(room, MAX_TREES), patience_ms=patience_ms)
            here = [place for place in places if (tenant_id, place[1]) in locked]
            free = await _free(session, tenant_id, locked, here, per_place=room)
            # Counted anew: who has hung up while others held the lock is leased nothing.
            taken = _in_turn(here, free)[: table.room]
            if not taken:
                return {}
            granted = await self._start(session, locked, lane, taken)
        aftermath = Aftermath()
        aftermath.transitions[taken[0].tenant_slug, RunStatus.RUNNING.value] = len(taken)
        aftermath.tell()
        return granted

    async def _start(
        self,
        session: WriteSession,
        locked: dict[TreeKey, LockedTree],
        lane: _Lane,
        taken: Sequence[Queued],
    ) -> dict[UUID, Granted]:
        tenant_id = lane.tenant_id
        # An event has one surface; a tree may have runs of both.
        told_together: dict[tuple[UUID, str], list[Queued]] = {}
        for run in taken:
            told_together.setdefault((run.root_run_id, run.surface), []).append(run)
        rows: list[tuple[UUID, UUID, int, UUID]] = []
        for (root_run_id, surface), started in told_together.items():
            tree = locked[tenant_id, root_run_id]
            seq = tree.next_seq()
            tree.moved("queued", "running", len(started))
            rows.extend((run.run_id, root_run_id, seq, new_id()) for run in started)
            changes = [Change(run.run_id, RunStatus.RUNNING, run.group_id) for run in started]
            tree.tell(lifecycle_event(tree, seq, changes, Surface(surface)))
        granted = await leases.grant(session, tenant_id, rows, lease_s=lane.lease_s, token_s=self._token_s)
        roots = dict.fromkeys(run.root_run_id for run in taken)
        await trees.advance(session, *(locked[tenant_id, root_run_id] for root_run_id in roots))
        return granted

    async def _hand_over(self, tenant_id: UUID, granted: dict[UUID, Granted]) -> list[ClaimedRun]:
        async with self._database.read() as session:
            described = await leases.describe(session, tenant_id, granted)
        return [self._claimed(tenant_id, described[run_id], lease) for run_id, lease in granted.items()]

    def _claimed(self, tenant_id: UUID, run: Described, lease: Granted) -> ClaimedRun:
        issued = token_of(self._tokens, tenant_id, run)
        context = context_of(tenant_id, run, issued.token)
        return ClaimedRun(
            run_id=run.run_id,
            agent_slug=run.agent_slug,
            input={**orjson.loads(run.input), "context": context},
            context=context,
            run_token=issued.token,
            token_expires_at=issued.expires_at,
            lease=lease.lease,
            attempt=lease.attempt,
            deadline=lease.expires_at,
            run_deadline=run.run_deadline,
        )


def context_of(tenant_id: UUID, run: Described, token: str) -> dict[str, object]:
    """What a run is told of where it stands."""
    context: dict[str, object] = {
        "tenant_id": tenant_id,
        "run_id": run.run_id,
        "root_run_id": run.root_run_id,
        "parent_run_id": run.parent_run_id,
        "parent_node_id": run.parent_node_id,
        "depth": run.depth,
        "spawn_key": run.spawn_key,
        "orchestration_group_id": run.group_id,
        "requested_scopes": run.effective_scopes,
        "surface": run.surface,
        "token": token,
    }
    if run.trace_parent is not None:
        # W3C's header for the calls that the run makes: they continue the trace of the call that made it.
        context["traceparent"] = run.trace_parent
    return context


class _Turns:
    """Whose turn it is: the agents of a tenant in rotation, and of each agent the tree after the last one served.

    It need not be right, only to move on: what each process remembers differs, and so their claimers spread.
    """

    def __init__(self) -> None:
        self._after: OrderedDict[Place, UUID] = OrderedDict()
        # Of each set of agents by itself: workers that ask in step for different ones must not turn each other's wheel.
        self._looks: OrderedDict[tuple[UUID, tuple[UUID, ...]], int] = OrderedDict()

    def next(self, tenant_id: UUID, agent_ids: tuple[UUID, ...]) -> list[Place]:
        looks = self._looks.get((tenant_id, agent_ids), 0)
        self._looks[tenant_id, agent_ids] = looks + 1
        self._looks.move_to_end((tenant_id, agent_ids))
        if len(self._looks) > MAX_KNOWN_AGENTS:
            self._looks.popitem(last=False)
        first = looks % len(agent_ids)
        rotated = [*agent_ids[first:], *agent_ids[:first]]
        return [(agent_id, self._after.get((tenant_id, agent_id), FIRST)) for agent_id in rotated]

    def served(self, tenant_id: UUID, places: Sequence[Place]) -> None:
        for agent_id, root_run_id in places:
            self._after[tenant_id, agent_id] = root_run_id
            self._after.move_to_end((tenant_id, agent_id))
        while len(self._after) > MAX_KNOWN_AGENTS:
            self._after.popitem(last=False)


async def _lock(
    session: WriteSession, tenant_id: UUID, places: Sequence[Place], *, at_most: int, patience_ms: int
) -> dict[TreeKey, LockedTree]:
    """Lock trees that nobody holds; when all are held, queue for the first, as everybody does who changes a tree.

    Raises:
        TreeHeldError: when it is not to be had in time.
    """
    wanted = list(dict.fromkeys((tenant_id, root_run_id) for _, root_run_id in places))
    locked = await trees.lock_available(session, wanted, at_most)
    if locked:
        return locked
    if not patience_ms:
        raise TreeHeldError
    return await trees.lock_briefly(session, wanted[0], patience_ms)


async def _free(
    session: WriteSession,
    tenant_id: UUID,
    locked: dict[TreeKey, LockedTree],
    places: Sequence[Place],
    *,
    per_place: int,
) -> list[Queued]:
    """The queued runs that no fence covers; a place whose first ones are all covered is read on for a while."""
    free: list[Queued] = []
    after = dict.fromkeys(places, START)
    for _ in range(MAX_PAGES):
        # A statement of its own: what it sees is newer than the locks.
        found = await leases.queued(session, tenant_id, after, per_place=per_place)
        doubtful = [
            (tenant_id, run.root_run_id, run.run_id) for run in found if locked[tenant_id, run.root_run_id].open_fences
        ]
        covered = await fences.covered(session, doubtful)
        free.extend(run for run in found if (tenant_id, run.run_id) not in covered)
        after = _hidden(found, per_place) if covered else {}
        for run in free:
            after.pop((run.agent_id, run.root_run_id), None)
        if not after:
            break
        per_place = max(per_place, PAGE)
    return free


def _hidden(found: Sequence[Queued], per_place: int) -> dict[Place, tuple[int, int]]:
    """The places that may hold more than was found, each with the position of the last run of it that was."""
    last: dict[Place, tuple[int, int]] = {}
    counts: Counter[Place] = Counter()
    for run in found:
        last[run.agent_id, run.root_run_id] = (run.spawned_seq, run.ordinal)
        counts[run.agent_id, run.root_run_id] += 1
    return {place: position for place, position in last.items() if counts[place] == per_place}


def _deal(hands: Sequence[_Hand], claimed: Sequence[ClaimedRun]) -> list[ClaimedRun]:
    """One run into each hand, then a second, and so on; what is left over."""
    left = deque(claimed)
    open_hands = list(hands)
    while left and open_hands:
        for hand in open_hands[: len(left)]:
            hand.dealt.append(left.popleft())
        open_hands = [hand for hand in open_hands if len(hand.dealt) < hand.wanted]
    return list(left)


def _in_turn(places: Sequence[Place], found: Sequence[Queued]) -> list[Queued]:
    """One run of each place, then a second of each, and so on."""
    by_place: dict[Place, list[Queued]] = {place: [] for place in places}
    for run in found:
        by_place[run.agent_id, run.root_run_id].append(run)
    return [run for rank in zip_longest(*by_place.values()) for run in rank if run is not None]
