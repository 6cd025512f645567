"""Join: wait for a group, read its decision, or name other terms while it has none."""

import asyncio
from dataclasses import dataclass, replace
from uuid import UUID

from kernel.commands import asking
from kernel.commands.aftermath import Aftermath
from kernel.commands.asking import Standing
from kernel.commands.joining import decide_groups, join_event
from kernel.commands.spawning.refusals import count_decisions
from kernel.domain.errors import InvalidRequestError, NotFoundError
from kernel.domain.events import Surface
from kernel.domain.joins import Decided, GroupStatus, JoinMode, JoinParameters, Tally, judge
from kernel.domain.principal import Principal
from kernel.policy import records
from kernel.policy.contract import Action, DecisionInput, RequestFacts
from kernel.policy.engine import Evaluated, PolicyEngine
from kernel.store import decisions, fences, groups, propagations, trees
from kernel.store.engine import Database, ReadSession, WriteSession
from kernel.store.groups import Group
from kernel.store.propagations import Propagated
from kernel.store.trees import LockedTree
from kernel.wakeups import Wakeups


@dataclass(frozen=True, slots=True)
class JoinGroup:
    """A call to join; what is None stays as it is.

    Args:
        timeout_s: from the group's start, in seconds.
        wait_s: how long to wait for the decision, in seconds.
    """

    caller_run_id: UUID
    group_id: UUID
    mode: JoinMode | None = None
    quorum_threshold: int | None = None
    timeout_s: int | None = None
    wait_s: float = 0.0
    surface: Surface = Surface.RUNTIME_PRIMITIVES


@dataclass(frozen=True, slots=True)
class Joined:
    """How a group stands: its effective status and tally, as a fence shows them before they are written down."""

    group: Group
    status: GroupStatus
    tally: Tally
    member_run_ids: tuple[UUID, ...]
    propagated: Propagated | None

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.status is not GroupStatus.RUNNING


class JoinCommand:
    """Reads groups, and gives undecided ones other parameters."""

    def __init__(self, database: Database, engine: PolicyEngine, wakeups: Wakeups) -> None:
        self._database = database
        self._engine = engine
        self._wakeups = wakeups

    async def execute(self, principal: Principal, request: JoinGroup) -> Joined:
        """Join a group.

        A group that is decided or closed may be read by a caller that has ended, too; its parameters stay as they are.

        Raises:
            NotFoundError: when the tenant has no such group, or no such caller.
            ForbiddenError: when the group is beyond the reach of the token or of the caller.
            PolicyDeniedError: when policy refuses.
            InvalidRequestError: for a quorum that is missing or above the group's size.
            CallerNotActiveError, RunCancelledError: when the caller has ended and the group is undecided.
        """
        principal.check_acts_as(request.caller_run_id)
        patience = asyncio.get_running_loop().time() + request.wait_s
        async with self._database.read() as session:
            group = await _load(session, principal.tenant, request.group_id)
            standing = await _standing(session, principal, request, group)
            group, closed = await _look(session, group)
            wanted, timeout_s = _wanted(request, group)
            if not closed:
                await asking.check_caller_active(session, standing, Action.JOIN)
        asked = _question(principal, request, standing)
        evaluated = await asking.ask(self._database, self._engine, asked)
        if not evaluated.decision.allow:
            raise await asking.refuse(self._database, asked, evaluated)
        if closed or (wanted, timeout_s) == (group.parameters, group.timeout_s):
            await self._record(asked, evaluated)
        else:
            await self._reparameterise(principal, request, group, asked, evaluated)
        with self._wakeups.awaiting_group(principal.tenant, request.group_id) as waiter:
            waiting = True
            while True:
                async with self._database.read() as session:
                    joined = await _read(session, principal.tenant, request.group_id)
                left = patience - asyncio.get_running_loop().time()
                if joined.complete or left <= 0 or not waiting:
                    return joined
                # Read once more also where the wait was in vain: members may have ended meanwhile.
                waiting = await waiter.wait(left)

    async def _record(self, asked: DecisionInput, evaluated: Evaluated) -> None:
        record = records.record(asked, evaluated)
        async with self._database.write() as session:
            await decisions.append(session, record)
        count_decisions([record])

    async def _reparameterise(
        self, principal: Principal, request: JoinGroup, group: Group, asked: DecisionInput, evaluated: Evaluated
    ) -> None:
        """Change the parameters, as an input of the group with a number of its own, and judge it anew."""
        record = records.record(asked, evaluated)
        aftermath = Aftermath()
        async with self._database.write() as session:
            tree = await trees.lock_one(session, group.tenant_id, group.root_run_id)
            now, closed = await _look(session, await _load(session, group.tenant_id, group.group_id))
            if not closed:
                standing = await _standing(session, principal, request, now)
                await asking.check_caller_active(session, standing, Action.JOIN)
                aftermath = await _change(session, tree, request, now)
                await trees.advance(session, tree, decided=[record])
            else:
                await decisions.append(session, record)
        count_decisions([record])
        aftermath.tell(self._wakeups)


async def _change(session: WriteSession, tree: LockedTree, request: JoinGroup, group: Group) -> Aftermath:
    wanted, timeout_s = _wanted(request, group)
    if (wanted, timeout_s) == (group.parameters, group.timeout_s):
        return Aftermath()
    changed = await groups.reparameterise(session, group.tenant_id, group.group_id, wanted, timeout_s)
    seq = tree.next_seq()
    tree.tell(join_event(tree, changed, GroupStatus.RUNNING, seq=seq, complete=False))
    verdict = judge(changed.parameters, changed.tally)
    return await decide_groups(session, tree, [(changed, verdict)] if isinstance(verdict, Decided) else [], seq=seq)


def _wanted(request: JoinGroup, group: Group) -> tuple[JoinParameters, int]:
    """The parameters that a call asks for.

    Raises:
        InvalidRequestError: when the quorum is missing, or above the group's size.
    """
    wanted = replace(
        group.parameters,
        mode=request.mode or group.parameters.mode,
        quorum_threshold=request.quorum_threshold or group.parameters.quorum_threshold,
    )
    if wanted.mode is JoinMode.QUORUM and wanted.quorum_threshold is None:
        raise InvalidRequestError("quorum_threshold: the mode quorum needs one", field="quorum_threshold")
    if wanted.quorum_threshold is not None and wanted.quorum_threshold > wanted.size:
        raise InvalidRequestError(
            f"quorum_threshold: {wanted.quorum_threshold} is above the size of the group, which is {wanted.size}",
            field="quorum_threshold",
        )
    return wanted, request.timeout_s or group.timeout_s


def _question(principal: Principal, request: JoinGroup, standing: Standing) -> DecisionInput:
    return asking.question(
        standing,
        principal,
        Action.JOIN,
        request.surface,
        request=RequestFacts(
            join_mode=request.mode, quorum_threshold=request.quorum_threshold, timeout_s=request.timeout_s
        ),
    )


async def _standing(session: ReadSession, principal: Principal, request: JoinGroup, group: Group) -> Standing:
    return await asking.subject_facts(
        session,
        principal,
        group.orchestrator_run_id,
        caller_run_id=request.caller_run_id,
        field="orchestration_group_id",
    )


async def _load(session: ReadSession, tenant_id: UUID, group_id: UUID) -> Group:
    group = (await groups.load(session, tenant_id, [group_id])).get(group_id)
    if group is None:
        raise NotFoundError(f"orchestration_group_id: there is no group {group_id}")
    return group


async def _look(session: ReadSession, group: Group) -> tuple[Group, bool]:
    """A group, and whether it is decided or closed, or reads as closed because a fence covers its orchestrator."""
    if group.undecided:
        covered = await fences.covered(session, [(group.tenant_id, group.root_run_id, group.orchestrator_run_id)])
        if covered:
            return group, True
        # A fence may have been drained since the first look: read after the fences, the group then says so itself.
        group = await _load(session, group.tenant_id, group.group_id)
    return group, not group.undecided


async def _read(session: ReadSession, tenant_id: UUID, group_id: UUID) -> Joined:
    group, closed = await _look(session, await _load(session, tenant_id, group_id))
    status, tally = group.status, group.tally
    if closed and group.undecided:
        status = GroupStatus.CANCELLED
    if status is GroupStatus.CANCELLED or group.propagation_reason is not None:
        # Under the fence: members that are active in the table read as cancelled already.
        tally = replace(tally, failure=tally.size - tally.success)
    return Joined(
        group=group,
        status=status,
        tally=tally,
        member_run_ids=tuple(await groups.members(session, tenant_id, group_id)),
        propagated=await propagations.propagated(session, group) if group.propagation_reason is not None else None,
    )
