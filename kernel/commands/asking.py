"""How a command that is about one run asks policy: the facts, the question, the refusal and its record."""

from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from uuid import UUID

from kernel.commands.spawning.question import check_status, principal_facts
from kernel.commands.spawning.refusals import (
    cancelled_callers,
    count_decisions,
    count_refusal,
    count_surface,
    denial_data,
    denied,
    under_fence,
)
from kernel.domain.errors import ForbiddenError, NotFoundError, PolicyUnavailableError, RemitError
from kernel.domain.events import EventType, Surface
from kernel.domain.fences import Fence
from kernel.domain.principal import Principal
from kernel.domain.run import ACTIVE, RunStatus
from kernel.policy import records
from kernel.policy.contract import (
    Action,
    CallerFacts,
    DecisionInput,
    OrchestratorPolicyFacts,
    OutcomeFacts,
    RequestFacts,
    SubjectFacts,
    TenantFacts,
    TreeFacts,
)
from kernel.policy.engine import Evaluated, PolicyEngine
from kernel.policy.records import DecisionRecord
from kernel.store import decisions, fences, lineage, trees
from kernel.store.engine import Database, ReadSession
from kernel.store.events import Event
from kernel.store.lineage import Row
from kernel.store.spawn_facts import tenant_facts

# The reason of a refusal that is about whose token it is, not about what policy thinks of the call.
OUTSIDE_REMIT = "outside_remit"


@dataclass(frozen=True, slots=True)
class Standing:
    """Who stands where: the run that a call is about, and the run on whose behalf it is made.

    Statuses are effective ones. `tree` is the caller's tree, or the subject's where nobody calls; `policy` is the
    stored policy of the caller's agent, or of the subject's where that was asked for; `tree_size` and `open_fences` are
    of the subject's tree.
    """

    tenant: TenantFacts
    tree: TreeFacts
    caller: CallerFacts | None
    caller_fence: Fence | None
    policy: OrchestratorPolicyFacts | None
    subject: SubjectFacts
    subject_fence: Fence | None
    subject_root_run_id: UUID
    subject_agent_id: UUID
    subject_surface: Surface
    subject_position: tuple[int, int]
    replan_attempts: int
    tree_size: int
    open_fences: int

    @property
    def is_root(self) -> bool:
        """Whether the subject is the root of its tree."""
        return self.subject.run_id == self.subject_root_run_id

    @property
    def caller_is_active(self) -> bool:
        """Whether the calling run may still act; true where nobody calls."""
        return self.caller is None or RunStatus(self.caller.status) in ACTIVE


async def check_caller_active(session: ReadSession, standing: Standing, action: Action) -> None:
    """Check that the calling run may still act; a refusal of one that was cancelled is counted by `action`.

    Raises:
        RunCancelledError: when it was cancelled, or a fence covers it; with the reason.
        CallerNotActiveError: when it has ended otherwise.
    """
    caller = standing.caller
    if caller is None:
        return
    try:
        if standing.caller_fence is not None:
            raise under_fence(caller.run_id, standing.caller_fence)
        if caller.status == RunStatus.CANCELLED:
            key = (standing.tenant.tenant_id, caller.run_id)
            raise (await cancelled_callers(session, [key]))[key]
        check_status(caller.run_id, RunStatus(caller.status))
    except RemitError as error:
        count_refusal(error, standing.tenant.slug, action.value)
        raise


async def subject_facts(
    session: ReadSession,
    principal: Principal,
    run_id: UUID,
    *,
    caller_run_id: UUID | None = None,
    field: str = "run_id",
    policy_of_subject: bool = False,
) -> Standing:
    """The facts of a call about a run, in one round trip (two, while a tree has open fences).

    Args:
        principal: who calls; its tenant is the one that is looked in.
        run_id: the run that the call is about.
        caller_run_id: the run on whose behalf it is made, if any.
        field: the name on the wire of what led to `run_id`.
        policy_of_subject: whether the policy to read is that of the subject's agent, and not of the caller's.

    Raises:
        NotFoundError: when the tenant has no such run, or no such caller.
    """
    tenant_id = principal.tenant
    asked = (tenant_id, run_id, caller_run_id, principal.run_id)
    row = await lineage.standing(session, *asked, policy_of_subject=policy_of_subject)
    if row is None or row["run_id"] is None:
        raise NotFoundError(f"{field}: there is no run {run_id}")
    if caller_run_id is not None and row["caller_run_id"] is None:
        raise NotFoundError(f"caller_run_id: there is no run {caller_run_id}")
    asked_of = set()
    if row["open_fences"]:
        asked_of.add((tenant_id, row["root_run_id"], run_id))
    if caller_run_id is not None and row["caller_open_fences"]:
        asked_of.add((tenant_id, row["caller_root_run_id"], caller_run_id))
    covered = await fences.covered(session, asked_of)
    if len(covered) < len(asked_of):
        # A fence may have been drained since the first look: read after the fences, the runs then say so themselves.
        row = await lineage.standing(session, *asked, policy_of_subject=policy_of_subject) or row
    return _standing(row, tenant_id, covered)


def question(
    standing: Standing,
    principal: Principal,
    action: Action,
    surface: Surface,
    *,
    request: RequestFacts | None = None,
    outcomes: OutcomeFacts | None = None,
) -> DecisionInput:
    """What policy is asked about a call."""
    return DecisionInput(
        action=action,
        surface=surface,
        now=datetime.now(UTC),
        tenant=standing.tenant,
        principal=principal_facts(principal),
        request=request or RequestFacts(),
        caller=standing.caller,
        tree=standing.tree,
        orchestrator_policy=standing.policy,
        subject=standing.subject,
        outcomes=outcomes,
    )


async def ask(database: Database, engine: PolicyEngine, asked: DecisionInput) -> Evaluated:
    """Ask policy one question.

    Raises:
        PolicyUnavailableError: without an answer nothing is permitted; the failure is on record then.
    """
    try:
        evaluated = await answer(database, engine, asked)
    except PolicyUnavailableError:
        count_surface(asked, None)
        raise
    count_surface(asked, evaluated.decision)
    return evaluated


async def answer(database: Database, engine: PolicyEngine, asked: DecisionInput) -> Evaluated:
    """As `ask`, for a call that uses no surface, or whose question is put again: then it is counted already."""
    started = perf_counter()
    try:
        return await engine.decide(asked)
    except PolicyUnavailableError as error:
        refusal = records.record_failure(asked, error.detail, perf_counter() - started)
        async with database.write() as session:
            await decisions.append(session, refusal)
        count_decisions([refusal])
        raise


async def refuse(database: Database, asked: DecisionInput, evaluated: Evaluated, *, tell: bool = True) -> RemitError:
    """Record a denial, and return the refusal to raise.

    Args:
        database: where it is recorded.
        asked: the question.
        evaluated: its answer.
        tell: whether the caller's tree gets an event of it, unless it has ended, since nothing follows its end. Reads
            leave no trace in a tree.
    """
    record = records.record(asked, evaluated)
    async with database.write() as session:
        tree = None
        if tell and asked.caller is not None and asked.tree is not None:
            tree = await trees.lock_one(session, record.tenant_id, asked.tree.root_run_id)
        if tree is not None and not tree.has_ended:
            tree.tell(denial_event(asked, record, tree.next_seq()))
            await trees.advance(session, tree, decided=[record])
        else:
            await decisions.append(session, record)
    count_decisions([record])
    return refusal_of(record)


async def check_may_read(
    database: Database,
    engine: PolicyEngine,
    principal: Principal,
    run_id: UUID,
    surface: Surface | None = None,
) -> Standing:
    """Check that a run and what is below it may be read; the decision is on record either way.

    Args:
        surface: the one that the call came through; None for a look at a run, which uses neither.

    Raises:
        NotFoundError: when the tenant has no such run.
        ForbiddenError: when it is outside the reach of the token.
        PolicyDeniedError: with every reason.
    """
    async with database.read() as session:
        standing = await subject_facts(session, principal, run_id)
    asked = question(standing, principal, Action.QUERY_TREE, surface or Surface.RUNTIME_PRIMITIVES)
    evaluated = await (answer if surface is None else ask)(database, engine, asked)
    if not evaluated.decision.allow:
        raise await refuse(database, asked, evaluated, tell=False)
    record = records.record(asked, evaluated)
    async with database.write() as session:
        await decisions.append(session, record)
    count_decisions([record])
    return standing


def denial_event(asked: DecisionInput, record: DecisionRecord, seq: int) -> Event:
    """The event of a denial, in the tree of the question."""
    if asked.caller is None or asked.tree is None:
        raise TypeError("a denial is told in the tree of a caller")
    return Event(
        tenant_id=record.tenant_id,
        root_run_id=asked.tree.root_run_id,
        seq=seq,
        type=EventType.POLICY_DENY,
        surface=asked.surface,
        run_id=asked.caller.run_id,
        subjects=[asked.caller.run_id],
        data=denial_data(record),
    )


def refusal_of(record: DecisionRecord) -> RemitError:
    """What a record of a denial is told as: a matter of authority alone is forbidden, all else is denied by policy."""
    if record.reasons and all(reason["code"] == OUTSIDE_REMIT for reason in record.reasons):
        said = "; ".join(str(reason["message"]) for reason in record.reasons)
        return ForbiddenError(
            f"{record.action} refused: {said}", decision_id=str(record.decision_id), reasons=record.reasons
        )
    return denied(record)


def _standing(row: Row, tenant_id: UUID, covered: dict[tuple[UUID, UUID], Fence]) -> Standing:
    subject_fence = covered.get((tenant_id, row["run_id"]))
    caller_fence = covered.get((tenant_id, row["caller_run_id"]))
    caller = None
    root_run_id, children_total = row["root_run_id"], row["children_total"]
    if row["caller_run_id"] is not None:
        root_run_id, children_total = row["caller_root_run_id"], row["caller_children_total"]
        caller = CallerFacts(
            run_id=row["caller_run_id"],
            agent_id=row["caller_agent_id"],
            agent_slug=row["caller_agent_slug"],
            status=effective(row["caller_status"], caller_fence),
            depth=row["caller_depth"],
            effective_scopes=tuple(row["caller_scopes"]),
            children_count=row["caller_children_count"],
        )
    return Standing(
        tenant=tenant_facts(row, tenant_id),
        tree=TreeFacts(root_run_id=root_run_id, children_total=children_total),
        caller=caller,
        caller_fence=caller_fence if caller is not None and caller.status == RunStatus.CANCELLED else None,
        policy=_policy(row),
        subject=SubjectFacts(
            run_id=row["run_id"],
            status=effective(row["status"], subject_fence),
            depth=row["depth"],
            within_principal=row["within_principal"],
            within_caller=row["within_caller"],
            children_count=row["children_count"],
        ),
        subject_fence=subject_fence,
        subject_root_run_id=row["root_run_id"],
        subject_agent_id=row["agent_id"],
        subject_surface=Surface(row["surface"]),
        subject_position=(row["spawned_seq"], row["ordinal"]),
        replan_attempts=row["replan_attempts"],
        tree_size=row["children_total"] + 1,
        open_fences=row["open_fences"],
    )


def effective(status: str, fence: Fence | None) -> str:
    """The status that readers see: what is active and under a fence is cancelled already."""
    return RunStatus.CANCELLED.value if fence is not None and RunStatus(status) in ACTIVE else status


def _policy(row: Row) -> OrchestratorPolicyFacts | None:
    if row["policy_agent_id"] is None:
        return None
    return OrchestratorPolicyFacts(
        max_depth=row["max_depth"],
        max_fanout=row["max_fanout"],
        max_children_total=row["max_children_total"],
        join_timeout_s=row["join_timeout_s"],
        default_failure_policy=row["default_failure_policy"],
        enforce_published_only=row["enforce_published_only"],
        allowed_scope_subset=tuple(row["allowed_scope_subset"]),
        parent_close_policy=row["parent_close_policy"],
        is_active=row["is_active"],
    )
