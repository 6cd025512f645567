"""Questions with plausible facts; a test changes what it is about."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from kernel.domain.events import Surface
from kernel.policy.contract import (
    Action,
    AllowlistEntryFacts,
    CallerFacts,
    DecisionInput,
    OrchestratorPolicyFacts,
    OutcomeFacts,
    PrincipalFacts,
    RequestFacts,
    SubjectFacts,
    SurfaceFlags,
    TargetFacts,
    TenantFacts,
    TreeFacts,
)

TENANT = UUID("01900000-0000-7000-8000-000000000001")
RUN = UUID("01900000-0000-7000-8000-000000000002")
AGENT = UUID("01900000-0000-7000-8000-000000000003")
WORKER = UUID("01900000-0000-7000-8000-000000000004")


def caller(**changes: Any) -> CallerFacts:
    facts: dict[str, Any] = {
        "run_id": RUN,
        "agent_id": AGENT,
        "agent_slug": "planner",
        "status": "running",
        "depth": 1,
        "effective_scopes": ("read", "write"),
        "children_count": 2,
    }
    return CallerFacts(**(facts | changes))


def stored_policy(**changes: Any) -> OrchestratorPolicyFacts:
    facts: dict[str, Any] = {
        "max_depth": 3,
        "max_fanout": 8,
        "max_children_total": 32,
        "join_timeout_s": 60,
        "default_failure_policy": "best_effort",
        "enforce_published_only": True,
        "allowed_scope_subset": (),
        "parent_close_policy": "continue",
        "is_active": True,
    }
    return OrchestratorPolicyFacts(**(facts | changes))


def question(action: Action, **changes: Any) -> DecisionInput:
    facts: dict[str, Any] = {
        "action": action,
        "surface": Surface.RUNTIME_PRIMITIVES,
        "now": datetime(2026, 11, 22, 12, tzinfo=UTC),
        "tenant": TenantFacts(tenant_id=TENANT, slug="acme", flags=SurfaceFlags()),
        "principal": PrincipalFacts(kind="tenant", delegable_scopes=("*",)),
        "request": RequestFacts(),
    }
    return DecisionInput(**(facts | changes))


def spawn(**changes: Any) -> DecisionInput:
    """A spawn that nothing is wrong with."""
    facts: dict[str, Any] = {
        "caller": caller(),
        "tree": TreeFacts(root_run_id=RUN, children_total=4),
        "orchestrator_policy": stored_policy(),
        "allowlist": (AllowlistEntryFacts(target_agent_slug="worker"),),
        "targets": (TargetFacts(agent_id=WORKER, slug="worker", kind="external", status="published"),),
        "request": RequestFacts(scopes=("read",), count=1),
    }
    return question(Action.SPAWN_RUN, **(facts | changes))


def replan(*, failed: int) -> DecisionInput:
    return question(
        Action.EVALUATE_AND_REPLAN,
        caller=caller(),
        tree=TreeFacts(root_run_id=RUN, children_total=4),
        orchestrator_policy=stored_policy(),
        subject=SubjectFacts(
            run_id=RUN, status="running", depth=1, within_principal=True, within_caller=True, children_count=4
        ),
        outcomes=OutcomeFacts(
            total_children=4,
            completed_children=4 - failed,
            failed_children=failed,
            cancelled_children=0,
            active_children=0,
            attempts=0,
        ),
    )
