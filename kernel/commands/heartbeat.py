"""Heartbeat: a worker keeps the leases that it holds, and hears which of its runs to stop."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from itertools import islice
from time import monotonic
from uuid import UUID

from kernel import metrics
from kernel.commands.run_tokens import RunTokens, token_of
from kernel.domain.errors import ForbiddenError
from kernel.domain.fences import Fence
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.store import catalog, drains, fences, leases, runs, trees
from kernel.store.engine import Database, ReadSession
from kernel.store.leases import Held
from kernel.store.trees import TreeHeldError

# Trees locked at once: few, so that a worker with many runs holds nobody up for long.
MAX_TREES = 32
# So long a heartbeat waits for trees that somebody holds, all of them together. Leases elsewhere are renewed by then.
PATIENCE_S = 2.0
# A fresh token when a tenth of its life is left.
TOKEN_MARGIN = 0.1
# The name under which refusals are counted.
ACTION = "heartbeat"


class LeaseStatus(StrEnum):
    """What a worker is told of a lease."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LeaseRef:
    """A lease that a worker says to hold."""

    run_id: UUID
    lease: UUID


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The leases to keep, each for `extend_s` seconds from now on at least."""

    leases: tuple[LeaseRef, ...]
    extend_s: int = 30


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """How a lease stands.

    `grace_s` is how long the worker may still take to stop, `reason` why; a new token comes when the old one ends soon.
    """

    run_id: UUID
    status: LeaseStatus
    reason: str | None = None
    grace_s: float | None = None
    cancellation_id: UUID | None = None
    expires_at: datetime | None = None
    run_token: str | None = None
    token_expires_at: datetime | None = None


@dataclass(slots=True)
class _Gathered:
    """The answers so far on the leases that were granted last, and the runs that get a new token."""

    leases: dict[UUID, UUID] = field(default_factory=dict)
    answers: dict[UUID, LeaseAnswer] = field(default_factory=dict)
    renewed: dict[UUID, datetime] = field(default_factory=dict)
    fresh: set[UUID] = field(default_factory=set)


class HeartbeatCommand:
    """Renews leases.

    Args:
        token_s: for how long a run's token is good, in seconds.
    """

    def __init__(self, database: Database, tokens: RunTokens, *, token_s: int) -> None:
        self._database = database
        self._tokens = tokens
        self._token_s = token_s

    async def execute(self, principal: Principal, request: Heartbeat) -> list[LeaseAnswer]:
        """Renew what is held, and tell of the rest; in the order of the request.

        What is in a tree that somebody else keeps locked is not renewed: `expires_at` is when it ends as it stands.

        Raises:
            ForbiddenError: when a run's token names another run.
        """
        tenant_id = principal.tenant
        if principal.kind == "run" and any(ref.run_id != principal.run_id for ref in request.leases):
            raise ForbiddenError(f"leases: this token acts as run {principal.run_id} only")
        wanted: dict[UUID, set[UUID]] = {}
        for ref in request.leases:
            wanted.setdefault(ref.run_id, set()).add(ref.lease)
        async with self._database.read() as session:
            roots = await runs.roots(session, tenant_id, wanted)
        by_tree: dict[UUID, list[UUID]] = {}
        for run_id, root_run_id in roots.items():
            by_tree.setdefault(root_run_id, []).append(run_id)
        held_in = {
            root_run_id: [(run_id, lease) for run_id in run_ids for lease in wanted[run_id]]
            for root_run_id, run_ids in by_tree.items()
        }
        gathered = _Gathered()
        pending = iter(sorted(held_in))
        busy: list[UUID] = []
        while part := list(islice(pending, MAX_TREES)):
            busy.extend(await self._renew(tenant_id, part, held_in, request.extend_s, gathered))
        # One by one, for whoever waits for a lock keeps none that another tree waits for.
        until = monotonic() + PATIENCE_S
        for root_run_id in busy:
            patience_ms = trees.patience_until(until)
            try:
                await self._renew(tenant_id, [root_run_id], held_in, request.extend_s, gathered, patience_ms)
            except TreeHeldError:
                await self._look(tenant_id, held_in[root_run_id], gathered)
        await self._sign(tenant_id, gathered)
        for run_id, expires_at in gathered.renewed.items():
            gathered.answers.setdefault(run_id, LeaseAnswer(run_id, LeaseStatus.CONTINUE, expires_at=expires_at))
        answers = [
            gathered.answers[ref.run_id]
            if ref.run_id in gathered.answers and gathered.leases[ref.run_id] == ref.lease
            else LeaseAnswer(ref.run_id, LeaseStatus.LOST)
            for ref in request.leases
        ]
        await self._count(tenant_id, answers)
        return answers

    async def _count(self, tenant_id: UUID, answers: Sequence[LeaseAnswer]) -> None:
        """Count the leases that are not renewed."""
        refused = Counter(answer.status for answer in answers if answer.status is not LeaseStatus.CONTINUE)
        if not refused:
            return
        async with self._database.read() as session:
            tenant = await catalog.find_tenant(session, tenant_id)
        if tenant is not None:
            label = metrics.tenant_label(str(tenant["slug"]))
            metrics.FENCED_CALLS.labels(label, ACTION).inc(refused[LeaseStatus.CANCEL])
            metrics.LEASES_LOST.labels(label, ACTION).inc(refused[LeaseStatus.LOST])

    async def _renew(
        self,
        tenant_id: UUID,
        part: Sequence[UUID],
        held_in: Mapping[UUID, Sequence[tuple[UUID, UUID]]],
        extend_s: int,
        gathered: _Gathered,
        patience_ms: int | None = None,
    ) -> list[UUID]:
        """Settle the leases in some trees; the trees that somebody else holds are handed back.

        With patience, a single tree is waited for.

        Raises:
            TreeHeldError: when that was in vain.
        """
        keys = [(tenant_id, root_run_id) for root_run_id in part]
        async with self._database.write() as session:
            # Under the locks of the trees, so that no renewal commits above a fence.
            if patience_ms is not None:
                locked = await trees.lock_briefly(session, keys[0], patience_ms)
            else:
                locked = await trees.lock_available(session, keys, len(keys))
            busy = [root_run_id for root_run_id in part if (tenant_id, root_run_id) not in locked]
            if len(busy) == len(part):
                return busy
            wanted = [lease for _, root_run_id in locked for lease in held_in[root_run_id]]
            held = await self._held(session, tenant_id, wanted, gathered)
            fenced = {root_run_id for (_, root_run_id), tree in locked.items() if tree.open_fences}
            told = await _cancelled(session, tenant_id, held, fenced)
            gathered.answers.update(told)
            keep = {
                lease.run_id: lease.token_ends for lease in held.values() if lease.held and lease.run_id not in told
            }
            if keep:
                gathered.renewed |= await leases.renew(
                    session, tenant_id, keep, extend_s=extend_s, token_s=self._token_s
                )
                gathered.fresh |= {run_id for run_id, ends in keep.items() if ends}
        return busy

    async def _look(self, tenant_id: UUID, wanted: Sequence[tuple[UUID, UUID]], gathered: _Gathered) -> None:
        """Tell how leases stand in a tree that somebody else keeps locked, and change nothing."""
        async with self._database.read() as session:
            held = await self._held(session, tenant_id, wanted, gathered)
            gathered.answers |= {
                lease.run_id: LeaseAnswer(lease.run_id, LeaseStatus.CONTINUE, expires_at=lease.expires_at)
                for lease in held.values()
                if lease.held
            }
            told = await _cancelled(session, tenant_id, held, {lease.root_run_id for lease in held.values()})
            gathered.answers.update(told)

    async def _held(
        self, session: ReadSession, tenant_id: UUID, wanted: Sequence[tuple[UUID, UUID]], gathered: _Gathered
    ) -> dict[UUID, Held]:
        held = await leases.held(session, tenant_id, wanted, token_margin_s=self._token_s * TOKEN_MARGIN)
        gathered.leases |= {run_id: lease.lease for run_id, lease in held.items()}
        return held

    async def _sign(self, tenant_id: UUID, gathered: _Gathered) -> None:
        if not gathered.fresh:
            return
        async with self._database.read() as session:
            described = await leases.describe(session, tenant_id, gathered.fresh)
        for run_id, run in described.items():
            issued = token_of(self._tokens, tenant_id, run)
            gathered.answers[run_id] = LeaseAnswer(
                run_id,
                LeaseStatus.CONTINUE,
                expires_at=gathered.renewed[run_id],
                run_token=issued.token,
                token_expires_at=issued.expires_at,
            )


async def _cancelled(
    session: ReadSession, tenant_id: UUID, held: dict[UUID, Held], fenced: Collection[UUID]
) -> dict[UUID, LeaseAnswer]:
    """The answers on runs that are cancelled: by an open fence, or already by its drain.

    Args:
        held: the leases.
        fenced: the roots of the trees that may have open fences.
    """
    told: dict[UUID, LeaseAnswer] = {}
    drained = [lease for lease in held.values() if lease.status == RunStatus.CANCELLED]
    if drained:
        ends = {lease.run_id: (lease.root_run_id, lease.finalized_seq or 0) for lease in drained}
        reasons = await drains.reasons_of_ends(session, tenant_id, ends)
        for lease in drained:
            reason = reasons.get(lease.run_id)
            told[lease.run_id] = LeaseAnswer(lease.run_id, LeaseStatus.CANCEL, reason=reason, grace_s=0.0)
    doubtful = [
        (tenant_id, lease.root_run_id, lease.run_id)
        for lease in held.values()
        if lease.held and lease.root_run_id in fenced
    ]
    if doubtful and (found := await fences.over(session, doubtful)):
        now = await fences.clock(session)
        for (_, run_id), over in found.items():
            told[run_id] = _told(held[run_id], over, now)
    return told


def _told(lease: Held, over: Sequence[Fence], now: datetime) -> LeaseAnswer:
    first = min(over, key=lambda fence: fence.fence_seq)
    # Of overlapping graces the one that ends first counts; a fence without one ends it at once.
    grace_s = min((fence.grace_until - now).total_seconds() if fence.grace_until else 0.0 for fence in over)
    # The lease is not renewed any more, and with its end the run is cancelled.
    grace_s = min(grace_s, lease.left_s or 0.0)
    return LeaseAnswer(
        lease.run_id,
        LeaseStatus.CANCEL,
        reason=first.reason,
        grace_s=max(round(grace_s, 3), 0.0),
        cancellation_id=first.cancellation_id,
    )
