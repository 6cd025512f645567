"""The record of a decision: what was asked, what was answered, by which revision, and how long it took."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import orjson

from kernel.identifiers import new_id
from kernel.policy.contract import DecisionInput, Reason
from kernel.policy.engine import Evaluated
from kernel.policy.mask import mask, needs_mask
from kernel.policy.schemas import schema_of

Outcome = Literal["allow", "deny", "error"]

# Looked up once: today's questions have nothing to mask, and looking through each of them costs as much as asking it.
_NEEDS_MASK = needs_mask(schema_of("input.json"))


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One row of `policy_decisions`."""

    decision_id: UUID
    tenant_id: UUID
    tenant_slug: str
    action: str
    surface: str
    outcome: Outcome
    reasons: list[dict[str, object]]
    revision: str
    caller_run_id: UUID | None
    root_run_id: UUID | None
    asked: str
    result: str
    duration_us: int

    def row(self) -> tuple[object, ...]:
        """The row that the store takes."""
        return (
            self.tenant_id,
            self.decision_id,
            self.action,
            self.surface,
            self.outcome,
            orjson.dumps(self.reasons).decode(),
            self.revision,
            self.caller_run_id,
            self.root_run_id,
            self.asked,
            self.result,
            self.duration_us,
        )


def render_reasons(reasons: list[Reason]) -> list[dict[str, object]]:
    """Reasons as the wire shows them: without the numbers that do not apply."""
    return [reason.model_dump(exclude_none=True) for reason in reasons]


def record(question: DecisionInput, evaluated: Evaluated, *, decision_id: UUID | None = None) -> DecisionRecord:
    """The record of an answered question."""
    decision = evaluated.decision
    return DecisionRecord(
        decision_id=decision_id or new_id(),
        tenant_id=question.tenant.tenant_id,
        tenant_slug=question.tenant.slug,
        action=question.action.value,
        surface=question.surface.value,
        outcome="allow" if decision.allow else "deny",
        reasons=render_reasons(decision.reasons),
        revision=evaluated.revision,
        caller_run_id=question.caller.run_id if question.caller else None,
        root_run_id=question.tree.root_run_id if question.tree else None,
        asked=_kept(evaluated.asked),
        result=decision.model_dump_json(exclude_none=True),
        duration_us=round(evaluated.seconds * 1_000_000),
    )


def record_failure(question: DecisionInput, failure: str, seconds: float) -> DecisionRecord:
    """The record of a question to which the engine gave no well-formed answer: a refusal, too."""
    return DecisionRecord(
        decision_id=new_id(),
        tenant_id=question.tenant.tenant_id,
        tenant_slug=question.tenant.slug,
        action=question.action.value,
        surface=question.surface.value,
        outcome="error",
        reasons=[{"code": "policy_unavailable", "message": failure}],
        revision="",
        caller_run_id=question.caller.run_id if question.caller else None,
        root_run_id=question.tree.root_run_id if question.tree else None,
        asked=_kept(question.model_dump_json(exclude_none=True)),
        result="null",
        duration_us=round(seconds * 1_000_000),
    )


def _kept(asked: str) -> str:
    """What the record keeps of a question."""
    return orjson.dumps(mask(orjson.loads(asked))).decode() if _NEEDS_MASK else asked
