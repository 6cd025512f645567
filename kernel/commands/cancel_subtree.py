"""Cancel a run and what is below it: a fence at once, and then its drain."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic, perf_counter
from uuid import UUID

from kernel import metrics
from kernel.commands import asking
from kernel.commands.asking import Standing
from kernel.commands.draining import SMALL, Drain, Progress
from kernel.commands.fencing import set_fence
from kernel.commands.spawning.refusals import count_decisions
from kernel.domain.errors import NotFoundError
from kernel.domain.events import Surface
from kernel.domain.fences import Fence, FenceScope, covering
from kernel.domain.principal import Principal
from kernel.policy import records
from kernel.policy.contract import Action, RequestFacts
from kernel.policy.engine import PolicyEngine
from kernel.policy.records import DecisionRecord
from kernel.store import decisions, drains, fences, trees
from kernel.store.drains import Cancellation
from kernel.store.engine import Database, ReadSession
from kernel.wakeups import Wakeups

DEFAULT_REASON = "cancelled_by_orchestration"
OTHER_REASONS = "other"

# Up to so many active runs are drained before the call is answered, whatever the caller waits for.
DRAINED_AT_ONCE = 100
MAX_LISTED = 1_000
# How often a caller that waits for a drain elsewhere looks whether it is done.
LOOK_S = 0.05
# How long a drain of few runs is waited for when somebody else was quicker to take it up.
PATIENCE_S = 1.0
# How long a drain that a caller waits for is left to the reconcilers before this process takes it up itself.
HEAD_START_S = 0.5


@dataclass(frozen=True, slots=True)
class CancelSubtree:
    """What is asked for. `surface` is the one that the call came through."""

    caller_run_id: UUID
    run_id: UUID
    include_root: bool = True
    reason: str = DEFAULT_REASON
    grace_s: int = 0
    wait_s: int = 0
    surface: Surface = Surface.RUNTIME_PRIMITIVES


@dataclass(frozen=True, slots=True)
class SubtreeCancelled:
    """A fence and how far its drain has come; of the ids at most 1,000. A repeat has the fence that was there."""

    run_id: UUID
    cancelled_count: int
    cancelled_run_ids: Sequence[UUID]
    scanned_count: int
    include_root: bool
    reason: str
    cancellation_id: UUID
    state: str
    fence_seq: int
    decision_id: UUID
    repeated: bool


@dataclass(frozen=True, slots=True)
class _Fenced:
    """The fence that covers what was to be cancelled, and whether it was there before."""

    cancellation_id: UUID
    decision_id: UUID
    repeated: bool


class CancelSubtreeCommand:
    """Asks policy, sets a fence under the lock of the tree, and drains what is small."""

    def __init__(self, database: Database, engine: PolicyEngine, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._engine = engine
        self._wakeups = wakeups
        self._drain = Drain(database, wakeups)

    async def execute(self, principal: Principal, request: CancelSubtree) -> SubtreeCancelled:
        """Cancel. From the commit of the fence on, nothing that it covers starts, spawns, renews or completes.

        Raises:
            NotFoundError: when the tenant has no such run.
            RunCancelledError, CallerNotActiveError: when the caller has ended; what it did before it may repeat.
            ForbiddenError: when the run is not at or below the caller, or the caller is not the token's run.
            PolicyDeniedError: with every reason.
        """
        principal.check_acts_as(request.caller_run_id)
        async with self._database.read() as session:
            standing = await asking.subject_facts(
                session, principal, request.run_id, caller_run_id=request.caller_run_id
            )
            if not standing.caller_is_active and await _earlier(session, standing, request) is None:
                standing.check_caller_active(Action.CANCEL_SUBTREE)
        asked = asking.question(
            standing,
            principal,
            Action.CANCEL_SUBTREE,
            request.surface,
            request=RequestFacts(include_root=request.include_root, grace_s=request.grace_s),
        )
        evaluated = await asking.ask(self._database, self._engine, asked)
        if not evaluated.decision.allow:
            raise await asking.refuse(self._database, asked, evaluated)
        fenced = await self._fence(principal, request, standing, records.record(asked, evaluated))
        return await self._follow(principal.tenant, request, fenced)

    async def _fence(
        self, principal: Principal, request: CancelSubtree, standing: Standing, record: DecisionRecord
    ) -> _Fenced:
        """Set the fence, or find the one that does what is asked for."""
        started = perf_counter()
        async with self._database.write() as session:
            tree = await trees.lock_one(session, principal.tenant, standing.subject_root_run_id)
            # Statements of their own, after the lock: their snapshots are newer than the wait.
            now = await asking.subject_facts(session, principal, request.run_id, caller_run_id=request.caller_run_id)
            earlier = await _earlier(session, now, request)
            if earlier is None:
                now.check_caller_active(Action.CANCEL_SUBTREE)
                fence = await set_fence(
                    session,
                    tree,
                    run_id=request.run_id,
                    scope=_scope(request),
                    reason=request.reason,
                    surface=request.surface,
                    grace_s=request.grace_s,
                )
                await trees.advance(session, tree)
            else:
                fence = earlier
            await decisions.append(session, record)
        count_decisions([record])
        if earlier is None:
            metrics.CANCEL_FENCE_SECONDS.observe(perf_counter() - started)
            label = request.reason if request.reason == DEFAULT_REASON else OTHER_REASONS
            metrics.CANCELLATIONS.labels(metrics.tenant_label(standing.tenant.slug), label).inc()
        return _Fenced(fence.cancellation_id, record.decision_id, repeated=earlier is not None)

    async def _follow(self, tenant_id: UUID, request: CancelSubtree, fenced: _Fenced) -> SubtreeCancelled:
        """Drain what is small, wait for the rest as long as the caller does, and tell how far it is."""
        until = monotonic() + request.wait_s
        progress = Progress()
        if not fenced.repeated:
            progress = await self._drain_small(tenant_id, fenced.cancellation_id)
            if not progress.drained and self._wakeups is not None:
                self._wakeups.fence_set()
        cancellation = await self._wait(tenant_id, fenced.cancellation_id, until, progress)
        listed: Sequence[UUID] = ()
        if not fenced.repeated:
            listed = progress.first_ids
            if cancellation.cancelled_count != progress.cancelled:
                async with self._database.read() as session:
                    listed = await drains.cancelled_ids(session, tenant_id, cancellation, MAX_LISTED)
        return SubtreeCancelled(
            run_id=request.run_id,
            cancelled_count=0 if fenced.repeated else cancellation.cancelled_count,
            cancelled_run_ids=listed,
            scanned_count=0 if fenced.repeated else cancellation.scanned_count,
            include_root=request.include_root,
            reason=cancellation.reason,
            cancellation_id=cancellation.cancellation_id,
            state=cancellation.state,
            fence_seq=cancellation.fence_seq,
            decision_id=fenced.decision_id,
            repeated=fenced.repeated,
        )

    async def _drain_small(self, tenant_id: UUID, cancellation_id: UUID) -> Progress:
        async with self._database.read() as session:
            target = await drains.open_fence(session, tenant_id, cancellation_id)
        if target is None:
            return Progress(drained=True)
        progress = await self._drain.execute(target, at_most=DRAINED_AT_ONCE, keep_ids=MAX_LISTED)
        if progress.busy:
            # Somebody else was quicker to take it up; what is small will be done in a moment.
            async with self._database.read() as session:
                listed = await drains.look(session, target, limit=SMALL)
            if listed is not None and listed.active <= DRAINED_AT_ONCE and target.fence.grace_until is None:
                await self._wait(tenant_id, cancellation_id, monotonic() + PATIENCE_S, progress)
        return progress

    async def _wait(self, tenant_id: UUID, cancellation_id: UUID, until: float, progress: Progress) -> Cancellation:
        """The fence when it is drained, or at the end of the time."""
        own_turn = monotonic() + HEAD_START_S
        while True:
            async with self._database.read() as session:
                cancellation = await drains.read(session, tenant_id, cancellation_id)
                target = await drains.open_fence(session, tenant_id, cancellation_id)
            if cancellation is None:
                raise NotFoundError(f"cancellation_id: there is no cancellation {cancellation_id}")
            left = until - monotonic()
            if target is None or left <= 0:
                return cancellation
            if monotonic() >= own_turn and not progress.waiting:
                # No reconciler has taken it up. Where one has, this finds it busy.
                done = await self._drain.execute(target, timeout_s=left, keep_ids=MAX_LISTED - len(progress.first_ids))
                progress.cancelled += done.cancelled
                progress.first_ids.extend(done.first_ids)
                progress.waiting.extend(done.waiting)
                own_turn = monotonic() + HEAD_START_S
            else:
                await asyncio.sleep(min(LOOK_S, left))


class ReadCancellation:
    """Tells how far a cancellation is."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, cancellation_id: UUID) -> Cancellation:
        """A cancellation at or below the principal's reach.

        Raises:
            NotFoundError: when the tenant has no such cancellation.
            ForbiddenError: when it stands on a run outside the reach of the token.
        """
        async with self._database.read() as session:
            cancellation = await drains.read(session, principal.tenant, cancellation_id)
            if cancellation is None:
                raise NotFoundError(f"cancellation_id: there is no cancellation {cancellation_id}")
        await asking.check_may_read(self._database, self._engine, principal, cancellation.run_id)
        return cancellation


def _scope(request: CancelSubtree) -> FenceScope:
    return FenceScope.RUN if request.include_root else FenceScope.CHILDREN


async def _earlier(session: ReadSession, standing: Standing, request: CancelSubtree) -> Fence | None:
    """The fence, open or drained, that leaves nothing to do; None where a new one is to be set.

    A caller that has ended may only repeat what it did: there, only a fence of the same kind on the same run counts.
    """
    tenant_id, run_id = standing.tenant.tenant_id, request.run_id
    path = (await fences.paths(session, [(tenant_id, run_id)]))[tenant_id, run_id]
    standing_on = await drains.fences_on(session, tenant_id, [step.run_id for step in path])
    if not standing_on:
        return None
    if not standing.caller_is_active:
        same = [fence for fence, _ in standing_on.values() if fence.run_id == run_id and fence.scope is _scope(request)]
        return max(same, key=lambda fence: fence.fence_seq, default=None)
    grace_end = datetime.now(UTC) + timedelta(seconds=request.grace_s)
    hits = [(fence, drained) for fence, drained in standing_on.values() if covering([fence], path) is not None]
    # Of overlapping graces the earliest end wins: where each of those that are there lasts longer, a new fence ends it.
    if all(not drained and fence.grace_until is not None and fence.grace_until > grace_end for fence, drained in hits):
        return None
    return min((fence for fence, _ in hits), key=lambda fence: fence.fence_seq)
