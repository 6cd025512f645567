"""The records of what policy decided, and why."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import AwareDatetime, Field, StringConstraints

from kernel.commands.read_decisions import ReadDecisions
from kernel.policy.contract import Action
from kernel.policy.records import Outcome
from kernel.store.decision_pages import DecisionFilter, Row
from service.dependencies import PolicyReadDep, ServicesDep
from service.errors import DenialReason
from service.wire import Answer, Body, Json, Text, make_router

router = make_router("decisions")

ReasonCode = Annotated[Text, StringConstraints(min_length=1, max_length=200)]


class DecisionQuery(Body):
    """Which decisions are wanted; what is absent does not matter. An unknown name is a mistake, and is told."""

    run: UUID | None = Field(None, description="The run that asked, or the root of its tree.")
    action: Action | None = None
    outcome: Outcome | None = None
    reason: ReasonCode | None = Field(None, description="The code of a reason of a denial.")
    since: AwareDatetime | None = Field(None, description="Made at this time (RFC 3339) or later.")
    until: AwareDatetime | None = Field(None, description="Made before this time (RFC 3339).")
    cursor: UUID | None = Field(None, description="`next_cursor` of the page before.")
    limit: int = Field(100, ge=1, le=500)


class DecisionItem(Answer):
    """A decision as lists show it. `duration_us` is what the policy engine took, in microseconds."""

    decision_id: UUID
    action: str
    surface: str
    outcome: Outcome
    reasons: list[DenialReason]
    revision: str
    caller_run_id: UUID | None
    root_run_id: UUID | None
    duration_us: int
    created_at: str


class DecisionsPage(Answer):
    """A page of decisions, the newest first; `next_cursor` goes on after it, null at the end.

    With a filter, a page may be shorter than `limit`, even empty, before the end.
    """

    items: list[DecisionItem]
    next_cursor: UUID | None


class DecisionAnswer(DecisionItem):
    """A decision in full: `input` is what was asked, secrets masked; `result` is null where nothing was answered."""

    input: dict[str, object]
    result: dict[str, object] | None


@router.get("/policies/decisions", response_model=DecisionsPage)
async def list_decisions(
    query: Annotated[DecisionQuery, Query()], principal: PolicyReadDep, services: ServicesDep
) -> Json:
    """The tenant's decisions, the newest first."""
    wanted = DecisionFilter(
        run_id=query.run,
        action=query.action,
        outcome=query.outcome,
        reason=query.reason,
        since=query.since,
        until=query.until,
    )
    page = await ReadDecisions(services.database).page(principal, wanted, before=query.cursor, limit=query.limit)
    return Json({"items": [_render(row, DecisionItem) for row in page.items], "next_cursor": page.following})


@router.get("/policies/decisions/{decision_id}", response_model=DecisionAnswer)
async def read_decision(decision_id: UUID, principal: PolicyReadDep, services: ServicesDep) -> Json:
    """A decision: what was asked, what was answered, by which revision of the policies."""
    return Json(_render(await ReadDecisions(services.database).one(principal, decision_id), DecisionAnswer))


def _render(row: Row, shape: type[DecisionItem]) -> dict[str, object]:
    return {name: row[name] for name in shape.model_fields}
