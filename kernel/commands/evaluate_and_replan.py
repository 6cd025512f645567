"""Judge the outcomes of a run's children: go on, plan anew, ask for help or give up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from pydantic import TypeAdapter

from kernel.commands import asking
from kernel.commands.asking import Standing
from kernel.commands.spawning.refusals import MAX_ATTEMPTS, count_decisions
from kernel.domain.errors import FactsChangedError, PolicyUnavailableError
from kernel.domain.events import Surface
from kernel.domain.lineage import Ancestry
from kernel.domain.principal import Principal
from kernel.domain.run import ACTIVE, RunStatus
from kernel.policy import records
from kernel.policy.contract import Action, Headroom, OutcomeFacts, Verdict
from kernel.policy.engine import PolicyEngine
from kernel.store import decisions, effective, lineage, trees, verdicts
from kernel.store.engine import Database, ReadSession
from kernel.store.verdicts import Asking


@dataclass(frozen=True, slots=True)
class EvaluateAndReplan:
    """What is asked for: a verdict on the children of `run_id`.

    A graph says which of its nodes asks: when it asks again because its process died, it is told the same.
    """

    caller_run_id: UUID
    run_id: UUID
    surface: Surface = Surface.RUNTIME_PRIMITIVES
    asking: Asking | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The verdict, and what it rests on. `attempts` counts the replans so far, with this one if it is one.

    `failed_children` lists at most 1,000: first those that failed, then those that were cancelled. `headroom` is what a
    new plan may still spend, by the limits in force for the run.
    """

    run_id: UUID
    needs_replan: bool
    suggested_action: str
    failed_children: Sequence[UUID]
    failed_count: int
    total_children: int
    active_children: int
    attempts: int
    reasons: list[dict[str, object]]
    headroom: Headroom
    decision_id: UUID


_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """The children of a run by effective status, and those that failed or were cancelled, as far as they are told."""

    counts: Counter[str]
    failed: Sequence[UUID]

    def facts(self, attempts: int) -> OutcomeFacts:
        return OutcomeFacts(
            total_children=self.counts.total(),
            completed_children=self.counts[RunStatus.COMPLETED],
            failed_children=self.counts[RunStatus.FAILED],
            cancelled_children=self.counts[RunStatus.CANCELLED],
            active_children=sum(self.counts[status] for status in ACTIVE),
            attempts=attempts,
        )


class EvaluateAndReplanCommand:
    """Asks policy for a verdict, and counts the replans under the lock of the tree."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, request: EvaluateAndReplan) -> Evaluation:
        """Judge. A verdict to replan takes one of the attempts that policy grants, once for each visit of a node.

        Raises:
            NotFoundError: when the tenant has no such run.
            RunCancelledError, CallerNotActiveError: when the caller has ended.
            ForbiddenError: when the run is not at or below the caller, or the caller is not the token's run.
            PolicyDeniedError: with every reason.
            FactsChangedError: when others judged the same run three times in between.
        """
        principal.check_acts_as(request.caller_run_id)
        for _ in range(MAX_ATTEMPTS):
            evaluation = await self._judge(principal, request)
            if evaluation is not None:
                return evaluation
        raise FactsChangedError(
            f"run_id: the children of {request.run_id} were judged {MAX_ATTEMPTS} times by others meanwhile; try again"
        )

    async def _judge(self, principal: Principal, request: EvaluateAndReplan) -> Evaluation | None:
        """A verdict; None where another one took an attempt since the question was asked."""
        tenant_id = principal.tenant
        async with self._database.read() as session:
            standing = await asking.subject_facts(
                session, principal, request.run_id, caller_run_id=request.caller_run_id, policy_of_subject=True
            )
            await asking.check_caller_active(session, standing, Action.EVALUATE_AND_REPLAN)
            if (given := await _given(session, tenant_id, request)) is not None:
                return given
            outcomes = await _outcomes(session, standing)
        asked = asking.question(
            standing,
            principal,
            Action.EVALUATE_AND_REPLAN,
            request.surface,
            outcomes=outcomes.facts(standing.replan_attempts),
        )
        evaluated = await asking.ask(self._database, self._engine, asked)
        if not evaluated.decision.allow:
            raise await asking.refuse(self._database, asked, evaluated)
        verdict, headroom = evaluated.decision.verdict, evaluated.decision.headroom
        if verdict is None or headroom is None:
            raise PolicyUnavailableError("policy allowed the evaluation, and gave no verdict or no headroom")
        record = records.record(asked, evaluated)
        attempts = standing.replan_attempts
        async with self._database.write() as session:
            await trees.lock_one(session, tenant_id, standing.subject_root_run_id)
            now = await asking.subject_facts(session, principal, request.run_id, caller_run_id=request.caller_run_id)
            await asking.check_caller_active(session, now, Action.EVALUATE_AND_REPLAN)
            if (given := await _given(session, tenant_id, request)) is not None:
                return given
            if now.replan_attempts != attempts:
                return None
            if verdict.needs_replan:
                await lineage.add_attempt(session, tenant_id, request.run_id)
                attempts += 1
            evaluation = _evaluation(request, outcomes, verdict, headroom, attempts, record.decision_id)
            if request.asking is not None:
                text = _EVALUATION.dump_json(evaluation).decode()
                await verdicts.keep(session, tenant_id, request.caller_run_id, request.asking, text)
            await decisions.append(session, record)
        count_decisions([record])
        return evaluation


async def _given(session: ReadSession, tenant_id: UUID, request: EvaluateAndReplan) -> Evaluation | None:
    """What a graph was told already when it asked for this."""
    if request.asking is None:
        return None
    text = await verdicts.find(session, tenant_id, request.caller_run_id, request.asking)
    return _EVALUATION.validate_json(text) if text is not None else None


async def _outcomes(session: ReadSession, standing: Standing) -> _Outcomes:
    tenant_id, root_run_id = standing.tenant.tenant_id, standing.subject_root_run_id
    known, whole = Ancestry(), list[str]()
    if standing.open_fences:
        known = await effective.ancestry(session, tenant_id, root_run_id)
        # All of them: each is counted as what it is under the fences.
        whole = sorted(ACTIVE)
    listed = [RunStatus.FAILED, RunStatus.CANCELLED]
    found = await lineage.children(session, tenant_id, standing.subject.run_id, listed, whole)
    counts = Counter({status: count for status, (count, _) in found.items()})
    failed = [run_id for status in (RunStatus.FAILED, RunStatus.CANCELLED) for run_id in found.get(status, (0, []))[1]]
    for status in sorted(ACTIVE):
        run_ids = found.get(status, (0, []))[1]
        covered = await effective.cover(session, tenant_id, root_run_id, known, run_ids)
        counts[status] -= len(covered)
        counts[RunStatus.CANCELLED] += len(covered)
        failed.extend(run_id for run_id in run_ids if run_id in covered)
    return _Outcomes(counts, failed)


def _evaluation(
    request: EvaluateAndReplan,
    outcomes: _Outcomes,
    verdict: Verdict,
    headroom: Headroom,
    attempts: int,
    decision_id: UUID,
) -> Evaluation:
    counts = outcomes.counts
    return Evaluation(
        run_id=request.run_id,
        needs_replan=verdict.needs_replan,
        suggested_action=verdict.suggested_action,
        failed_children=outcomes.failed[: lineage.MAX_LISTED],
        failed_count=counts[RunStatus.FAILED] + counts[RunStatus.CANCELLED],
        total_children=counts.total(),
        active_children=sum(counts[status] for status in ACTIVE),
        attempts=attempts,
        reasons=records.render_reasons(verdict.reasons),
        headroom=headroom,
        decision_id=decision_id,
    )
