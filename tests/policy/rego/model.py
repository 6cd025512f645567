"""What a spawn's reasons should be, said a second time in Python: the test's own reading of the rules."""

from collections.abc import Iterator
from typing import NamedTuple

from kernel.policy.contract import (
    Action,
    AllowlistEntryFacts,
    Decision,
    DecisionInput,
    OrchestratorPolicyFacts,
    TargetFacts,
)

DEFAULTS = OrchestratorPolicyFacts(
    max_depth=3,
    max_fanout=8,
    max_children_total=32,
    join_timeout_s=60,
    default_failure_policy="best_effort",
    enforce_published_only=True,
    allowed_scope_subset=(),
    parent_close_policy="continue",
    is_active=True,
)


class Expected(NamedTuple):
    code: str
    target: str = ""
    limit: int | None = None
    observed: int | None = None
    requested: int | None = None
    scopes: tuple[str, ...] = ()


def expect(question: DecisionInput) -> list[Expected]:
    stored = question.orchestrator_policy
    policy = stored if stored is not None and stored.is_active else DEFAULTS
    reasons = [*_surface(question), *_scopes(question, policy), *_limits(question, policy)]
    if not question.allowlist:
        reasons.append(Expected("allowlist_empty"))
    for target in question.targets or ():
        if question.allowlist and not _names(target) & {_name(entry) for entry in question.allowlist}:
            reasons.append(Expected("target_not_allowlisted", target.slug))
        if target.status != "published" and (policy.enforce_published_only or question.action is Action.AGENT_CALL):
            reasons.append(Expected("target_not_published", target.slug))
    return sorted(reasons, key=lambda reason: (reason.code, reason.target))


def told(decision: Decision) -> list[Expected]:
    """The reasons of a decision, in the same form."""
    return [
        Expected(
            reason.code,
            reason.target or "",
            reason.limit,
            reason.observed,
            reason.requested,
            tuple(reason.scopes or ()),
        )
        for reason in decision.reasons
    ]


def _surface(question: DecisionInput) -> Iterator[Expected]:
    if not getattr(question.tenant.flags, question.surface):
        yield Expected("surface_disabled")


def _scopes(question: DecisionInput, policy: OrchestratorPolicyFacts) -> Iterator[Expected]:
    assert question.caller is not None
    wanted = set(question.request.scopes)
    if not wanted:
        yield Expected("scope_required")
    if beyond := wanted - set(question.caller.effective_scopes):
        yield Expected("scope_exceeds_caller", scopes=tuple(sorted(beyond)))
    if policy.allowed_scope_subset and (beyond := wanted - set(policy.allowed_scope_subset)):
        yield Expected("scope_exceeds_policy", scopes=tuple(sorted(beyond)))


def _limits(question: DecisionInput, policy: OrchestratorPolicyFacts) -> Iterator[Expected]:
    assert question.caller is not None
    assert question.tree is not None
    depth, children, total = question.caller.depth, question.caller.children_count, question.tree.children_total
    count = question.request.count
    if depth + 1 > policy.max_depth:
        yield Expected("max_depth_exceeded", "", policy.max_depth, depth, depth + 1)
    if children + count > policy.max_fanout:
        yield Expected("max_fanout_exceeded", "", policy.max_fanout, children, count)
    if total + count > policy.max_children_total:
        yield Expected("max_children_total_exceeded", "", policy.max_children_total, total, count)


def _names(target: TargetFacts) -> set[str]:
    return {str(target.agent_id), target.slug, *target.capability_tags}


def _name(entry: AllowlistEntryFacts) -> str:
    return str(entry.target_agent_id or entry.target_agent_slug or entry.capability_tag)
