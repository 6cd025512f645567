"""Cancel a run and what is below it: a fence at once, and then its drain."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic, perf_counter
from uuid import UUID

from asyncpg import exceptions as pg

from kernel import metrics
from kernel.commands import asking
from kernel.commands.asking import Standing
from kernel.commands.draining import SMALL, Drain, Drained, DrainSize, Progress, drain_at_once
from kernel.commands.fencing import set_fence
from kernel.commands.lanes import Lanes
from kernel.commands.root_lookups import RootLookups
from kernel.commands.spawning.refusals import count_decisions
from kernel.domain.errors import LockTimeoutError, NotFoundError, RemitError
from kernel.domain.events import Surface
from kernel.domain.fences import Fence, FenceScope, StandingFences, Step
from kernel.domain.principal import Principal
from kernel.policy import records
from kernel.policy.contract import Action, DecisionInput, RequestFacts
from kernel.policy.engine import PolicyEngine
from kernel.policy.records import DecisionRecord
from kernel.store import decisions, drains, trees
from kernel.store.drains import Cancellation, FenceAbove, OpenFence
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.trees import TreeHeldError, TreeKey
from kernel.wakeups import Wakeups

DEFAULT_REASON = "cancelled_by_orchestration"
OTHER_REASONS = "other"

# Up to so many active runs are drained before the call is answered, whatever the caller waits for.
DRAINED_AT_ONCE = 100
MAX_LISTED = 1_000
# How often a caller that waits for a drain elsewhere looks whether it is done: at first, and after a while.
LOOK_S = 0.05
LONGEST_LOOK_S = 1.0
# So many fences are set under one lock of their tree, which stays short by it.
MAX_PER_LOCK = 8
# How long a drain of few runs is waited for when somebody else was quicker to take it up.
PATIENCE_S = 1.0
# How long a drain that a caller waits for is left to the reconcilers before this process takes it up itself.
HEAD_START_S = 0.5


@dataclass(frozen=True, slots=True)
class CancelSubtree:
    """What is asked for.

    Args:
        surface: the one that the call came through.
        cancellation_id: the id that the fence is to have; whoever asks again with it hears of that fence once more.
    """

    caller_run_id: UUID
    run_id: UUID
    include_root: bool = True
    reason: str = DEFAULT_REASON
    grace_s: int = 0
    wait_s: float = 0.0
    surface: Surface = Surface.RUNTIME_PRIMITIVES
    cancellation_id: UUID | None = None


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
class _Call:
    """A request, and who makes it."""

    principal: Principal
    request: CancelSubtree


@dataclass(frozen=True, slots=True)
class _Allowed:
    """A call that policy allows; the record of that is written with its fence."""

    call: _Call
    slug: str
    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class _Fenced:
    """The fence that covers what was to be cancelled, and whether it was there before; its drain, where few are."""

    fence: Fence
    decision_id: UUID
    repeated: bool
    drained: Drained | DrainSize = DrainSize.UNKNOWN


class CancelSubtreeCommand:
    """Asks policy, sets a fence under the lock of the tree, and drains what is small.

    One per process, so that however many cancel in one tree at once, they take two connections and not one each: one
    for the fences, and one for the drains of what is small.
    """

    def __init__(self, database: Database, engine: PolicyEngine, wakeups: Wakeups | None = None) -> None:
        self._database = database
        self._engine = engine
        self._wakeups = wakeups
        self._drain = Drain(database, wakeups)
        self._lookups = RootLookups(database)
        self._fences: Lanes[TreeKey, _Call, _Fenced] = Lanes(self._fence_all)
        self._drains: Lanes[TreeKey, UUID, Progress] = Lanes(self._drain_all)

    async def execute(self, principal: Principal, request: CancelSubtree) -> SubtreeCancelled:
        """Cancel. From the commit of the fence on, nothing that it covers starts, spawns, renews or completes.

        Raises:
            NotFoundError: when the tenant has no such run.
            RunCancelledError, CallerNotActiveError: when the caller has ended; what it did before it may repeat.
            ForbiddenError: when the run is not at or below the caller, or the caller is not the token's run.
            PolicyDeniedError: with every reason.
        """
        principal.check_acts_as(request.caller_run_id)
        root_run_id = await self._lookups.root_of(principal.tenant, request.run_id)
        tree = (principal.tenant, root_run_id)
        fenced = await self._fences.take(tree, _Call(principal, request))
        return await self._follow(tree, request, fenced)

    async def _fence_all(self, key: TreeKey, calls: Sequence[_Call]) -> list[_Fenced | Exception]:
        """Answer calls in one tree, each on its own merits."""
        judged = await asyncio.gather(*(self._ask(question) for question in await self._questions(calls)))
        allowed = [call for call in judged if isinstance(call, _Allowed)]
        fenced: list[_Fenced | Exception] = []
        for start in range(0, len(allowed), MAX_PER_LOCK):
            fenced.extend(await self._fence_each(key, allowed[start : start + MAX_PER_LOCK]))
        answers = iter(fenced)
        return [next(answers) if isinstance(call, _Allowed) else call for call in judged]

    async def _questions(self, calls: Sequence[_Call]) -> list[tuple[_Call, str, DecisionInput] | RemitError]:
        """What policy is asked about each call, with the tenant's slug; or why it is not asked."""
        found: list[tuple[_Call, str, DecisionInput] | RemitError] = []
        async with self._database.read() as session:
            for call in calls:
                principal, request = call.principal, call.request
                try:
                    standing = await asking.subject_facts(
                        session, principal, request.run_id, caller_run_id=request.caller_run_id
                    )
                    if not standing.caller_is_active and (await _find(session, standing, request))[0] is None:
                        await asking.check_caller_active(session, standing, Action.CANCEL_SUBTREE)
                except RemitError as error:
                    found.append(error)
                    continue
                asked = asking.question(
                    standing,
                    principal,
                    Action.CANCEL_SUBTREE,
                    request.surface,
                    request=RequestFacts(include_root=request.include_root, grace_s=request.grace_s),
                )
                found.append((call, standing.tenant.slug, asked))
        return found

    async def _ask(self, question: tuple[_Call, str, DecisionInput] | RemitError) -> _Allowed | RemitError:
        if isinstance(question, RemitError):
            return question
        call, slug, asked = question
        try:
            evaluated = await asking.ask(self._database, self._engine, asked)
            if not evaluated.decision.allow:
                return await asking.refuse(self._database, asked, evaluated)
        except RemitError as error:
            return error
        return _Allowed(call, slug, records.record(asked, evaluated))

    async def _fence_each(self, key: TreeKey, calls: Sequence[_Allowed]) -> list[_Fenced | Exception]:
        try:
            return await self._fence(key, calls)
        except pg.PostgresError as error:
            if len(calls) == 1:
                return [error]
        # What the database does not take of one must not fail its neighbours: nothing was committed; each goes alone.
        return [answer for call in calls for answer in await self._fence_each(key, [call])]

    async def _fence(self, key: TreeKey, calls: Sequence[_Allowed]) -> list[_Fenced | Exception]:
        """Set fences under one lock, or find those that do what is asked for."""
        started = perf_counter()
        answers: list[_Fenced | Exception] = []
        async with self._database.write() as session:
            for allowed in calls:
                try:
                    answers.append(await _set_or_find(session, key, allowed))
                except RemitError as error:
                    answers.append(error)
        seconds = perf_counter() - started
        for allowed, answer in zip(calls, answers, strict=True):
            if isinstance(answer, _Fenced):
                count_decisions([allowed.record])
                if not answer.repeated:
                    _count_fence(allowed, seconds)
                if isinstance(answer.drained, Drained):
                    answer.drained.tell(self._wakeups)
        return answers

    async def _follow(self, tree: TreeKey, request: CancelSubtree, fenced: _Fenced) -> SubtreeCancelled:
        """Drain what is small, wait for the rest as long as the caller does, and tell how far it is."""
        if isinstance(fenced.drained, Drained):
            return _told_at_once(request, fenced, fenced.drained)
        if fenced.drained is DrainSize.LARGE and not request.wait_s:
            if self._wakeups is not None:
                self._wakeups.fence_set()
            return _told_at_once(request, fenced, None)
        tenant_id, _ = tree
        until = monotonic() + request.wait_s
        progress = Progress()
        if not fenced.repeated:
            if fenced.drained is DrainSize.UNKNOWN:
                progress = await self._drain_small(tree, fenced.fence.cancellation_id)
            if not progress.drained and self._wakeups is not None:
                self._wakeups.fence_set()
        cancellation = await self._wait(tenant_id, fenced.fence.cancellation_id, until, progress)
        listed: Sequence[UUID] = ()
        # What another fence had cancelled before is not this call's doing.
        is_own = not fenced.repeated or fenced.fence.cancellation_id == request.cancellation_id
        if is_own:
            listed = progress.first_ids
            if cancellation.cancelled_count != progress.cancelled:
                async with self._database.read() as session:
                    listed = await drains.cancelled_ids(
                        session,
                        tenant_id,
                        cancellation.root_run_id,
                        cancellation.cancellation_id,
                        cancellation.fence_seq,
                        min(cancellation.cancelled_count, MAX_LISTED),
                    )
        return SubtreeCancelled(
            run_id=request.run_id,
            cancelled_count=cancellation.cancelled_count if is_own else 0,
            cancelled_run_ids=listed,
            scanned_count=cancellation.scanned_count if is_own else 0,
            include_root=request.include_root,
            reason=cancellation.reason,
            cancellation_id=cancellation.cancellation_id,
            state=cancellation.state,
            fence_seq=cancellation.fence_seq,
            decision_id=fenced.decision_id,
            repeated=fenced.repeated,
        )

    async def _drain_small(self, tree: TreeKey, cancellation_id: UUID) -> Progress:
        progress = await self._drains.take(tree, cancellation_id)
        if progress.busy:
            # Somebody else was quicker to take it up; what is small will be done in a moment.
            tenant_id, _ = tree
            async with self._database.read() as session:
                target = await drains.open_fence(session, tenant_id, cancellation_id)
                listed = await drains.look(session, target, limit=SMALL) if target is not None else None
            if target is None:
                progress.drained = True
            elif (
                listed is not None
                and listed.is_whole
                and listed.active <= DRAINED_AT_ONCE
                and target.fence.grace_until is None
            ):
                await self._wait(tenant_id, cancellation_id, monotonic() + PATIENCE_S, progress)
        return progress

    async def _drain_all(self, key: TreeKey, cancellation_ids: Sequence[UUID]) -> list[Progress]:
        """Drain what is small of a tree, one fence after the other."""
        done: list[Progress] = []
        for cancellation_id in cancellation_ids:
            async with self._database.read() as session:
                target = await drains.open_fence(session, key[0], cancellation_id)
            if target is None:
                done.append(Progress(drained=True))
            else:
                done.append(await self._drain.execute(target, at_most=DRAINED_AT_ONCE, keep_ids=MAX_LISTED))
        return done

    @property
    def _stopping(self) -> bool:
        return self._wakeups is not None and self._wakeups.stopping

    async def _wait(self, tenant_id: UUID, cancellation_id: UUID, until: float, progress: Progress) -> Cancellation:
        """The fence when it is drained, at the end of the time, or as it stands when the service stops."""
        own_turn = monotonic() + HEAD_START_S
        pause = LOOK_S
        while True:
            async with self._database.read() as session:
                target = await drains.open_fence(session, tenant_id, cancellation_id)
                # Read later: where nothing is left to drain, this says so too.
                cancellation = await drains.read(session, tenant_id, cancellation_id)
            if cancellation is None:
                raise NotFoundError(f"cancellation_id: there is no cancellation {cancellation_id}")
            left = until - monotonic()
            if cancellation.drained_at is not None or left <= 0 or self._stopping:
                return cancellation
            if target is not None and monotonic() >= own_turn and not progress.waiting:
                # No reconciler has taken it up. Where one has, this finds it busy.
                # Where somebody holds the tree, the fence stands all the same; how far its drain has come is told.
                with suppress(TreeHeldError, LockTimeoutError):
                    done = await self._drain.execute(
                        target,
                        timeout_s=left,
                        keep_ids=MAX_LISTED - len(progress.first_ids),
                        patience_ms=trees.PATIENCE_MS,
                    )
                    progress.cancelled += done.cancelled
                    progress.first_ids.extend(done.first_ids)
                    progress.waiting.extend(done.waiting)
                own_turn = monotonic() + HEAD_START_S
            else:
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 1.5, LONGEST_LOOK_S)


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
        surface = Surface.RUNTIME_PRIMITIVES
        await asking.check_may_read(self._database, self._engine, principal, cancellation.run_id, surface)
        return cancellation


async def _set_or_find(session: WriteSession, key: TreeKey, allowed: _Allowed) -> _Fenced:
    """Set a fence under the lock of its tree, which is counted at once: the next call under the same lock heeds it.

    Raises:
        RunCancelledError, CallerNotActiveError: when the caller has ended since policy was asked.
    """
    principal, request = allowed.call.principal, allowed.call.request
    tree = await trees.lock_one(session, *key)
    # Statements of their own, after the lock: their snapshots are newer than the wait.
    now = await asking.subject_facts(session, principal, request.run_id, caller_run_id=request.caller_run_id)
    fence, path = await _find(session, now, request)
    repeated = fence is not None
    drained: Drained | DrainSize = DrainSize.UNKNOWN
    if fence is None:
        await asking.check_caller_active(session, now, Action.CANCEL_SUBTREE)
        fence = await set_fence(
            session,
            tree,
            run_id=request.run_id,
            scope=_scope(request),
            reason=request.reason,
            surface=request.surface,
            grace_s=request.grace_s,
            cancellation_id=request.cancellation_id,
        )
        target = OpenFence(
            tenant_id=tree.tenant_id,
            tenant_slug=allowed.slug,
            root_run_id=tree.root_run_id,
            fence=fence,
            surface=now.subject_surface,
            own_group_id=path[0].group_id,
            active_runs=now.tree_size,
        )
        drained = await drain_at_once(session, tree, target, at_most=DRAINED_AT_ONCE)
        await trees.advance(session, tree, decided=[allowed.record])
    else:
        await decisions.append(session, allowed.record)
    return _Fenced(fence, allowed.record.decision_id, repeated=repeated, drained=drained)


def _told_at_once(request: CancelSubtree, fenced: _Fenced, drained: Drained | None) -> SubtreeCancelled:
    """The answer to a call whose drain was done with its fence, or is left to the reconcilers."""
    return SubtreeCancelled(
        run_id=request.run_id,
        cancelled_count=len(drained.run_ids) if drained is not None else 0,
        cancelled_run_ids=drained.run_ids if drained is not None else (),
        scanned_count=drained.scanned if drained is not None else 0,
        include_root=request.include_root,
        reason=fenced.fence.reason,
        cancellation_id=fenced.fence.cancellation_id,
        state="drained" if drained is not None else "draining",
        fence_seq=fenced.fence.fence_seq,
        decision_id=fenced.decision_id,
        repeated=False,
    )


def _count_fence(allowed: _Allowed, seconds: float) -> None:
    reason = allowed.call.request.reason
    metrics.CANCEL_FENCE_SECONDS.observe(seconds, metrics.exemplar())
    label = reason if reason == DEFAULT_REASON else OTHER_REASONS
    metrics.CANCELLATIONS.labels(metrics.tenant_label(allowed.slug), label).inc()


def _scope(request: CancelSubtree) -> FenceScope:
    return FenceScope.RUN if request.include_root else FenceScope.CHILDREN


async def _find(
    session: ReadSession, standing: Standing, request: CancelSubtree
) -> tuple[Fence | None, Sequence[Step]]:
    """The fence that leaves nothing to do, if there is one; and the way from the run up to its root."""
    path, standing_on = await drains.fences_above(session, standing.tenant.tenant_id, request.run_id)
    fence = _earlier(standing, request, path, standing_on)
    if fence is None and not request.include_root:
        fence = await _on_the_same_children(session, standing, request, standing_on)
    return fence, path


def _earlier(
    standing: Standing, request: CancelSubtree, path: Sequence[Step], standing_on: Mapping[UUID, FenceAbove]
) -> Fence | None:
    """The fence, open or drained, that leaves nothing to do; None where a new one is to be set.

    A caller that has ended may only repeat what it did: there, only a fence of the same kind on the same run counts.
    """
    run_id = request.run_id
    if not standing_on:
        return None
    if request.cancellation_id is not None and request.cancellation_id in standing_on:
        return standing_on[request.cancellation_id].fence
    if not standing.caller_is_active:
        fences = [found.fence for found in standing_on.values()]
        same = [fence for fence in fences if fence.run_id == run_id and fence.scope is _scope(request)]
        return max(same, key=lambda fence: fence.fence_seq, default=None)
    hits = StandingFences(found.fence for found in standing_on.values()).over(path)
    # Of overlapping graces the earliest end wins: where each of those that are there lasts longer, a new fence ends it.
    if all(_lasts_longer(request, standing_on[fence.cancellation_id]) for fence in hits):
        return None
    return min(hits, key=lambda fence: fence.fence_seq)


async def _on_the_same_children(
    session: ReadSession, standing: Standing, request: CancelSubtree, standing_on: Mapping[UUID, FenceAbove]
) -> Fence | None:
    """The last fence on the children of the run itself, which is not covered, where it covers all that there are."""
    on_children = [
        found
        for found in standing_on.values()
        if found.fence.run_id == request.run_id and found.fence.scope is FenceScope.CHILDREN
    ]
    if not on_children:
        return None
    last = max(on_children, key=lambda found: found.fence.fence_seq)
    if _lasts_longer(request, last):
        return None
    covers_all = await drains.spawned_nothing_since(
        session, standing.tenant.tenant_id, standing.subject_root_run_id, request.run_id, last.fence.fence_seq
    )
    return last.fence if covers_all else None


def _lasts_longer(request: CancelSubtree, standing: FenceAbove) -> bool:
    """Whether a fence leaves more grace than is asked for now."""
    left = standing.grace_left
    return not standing.drained and left is not None and left > timedelta(seconds=request.grace_s)
