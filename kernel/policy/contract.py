"""What the kernel tells the policy engine, and what it expects to hear.

These models are the contract between the kernel and `policies/`: the JSON schemas that Rego is checked against are
generated from them. Facts that do not apply to an action are absent (dumped with `exclude_none`), so a rule that needs
one is undefined without it, and denials negate a helper: missing input denies.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from kernel.domain.events import Surface


class Action(StrEnum):
    """What is asked about; the entrypoint dispatches on it."""

    START_RUN = "start_run"
    SPAWN_RUN = "spawn_run"
    SPAWN_GROUP = "spawn_group"
    JOIN = "join"
    CANCEL_SUBTREE = "cancel_subtree"
    EVALUATE_AND_REPLAN = "evaluate_and_replan"
    QUERY_TREE = "query_tree"
    COMPILE_GRAPH = "compile_graph"
    AGENT_CALL = "agent_call"
    RETRIEVE = "retrieve"


class Facts(BaseModel):
    """The base of everything that is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def known(cls, **facts: object) -> Self:
        """Take facts that are known to be right, each of them named, and check nothing.

        For the hot path: `model_construct` looks through all fields for defaults and aliases, which takes longer than
        all that is done with a question until it is sent.
        """
        made = cls.__new__(cls)
        for name, value in (
            ("__dict__", facts),
            ("__pydantic_fields_set__", set(facts)),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(made, name, value)
        return made


class SurfaceFlags(Facts):
    """Which surfaces the tenant has switched on; None where it has set no flags."""

    option_a_graphspec_v2: bool | None = True
    option_b_runtime_primitives: bool | None = True


class TenantFacts(Facts):
    """The tenant; `time_zone` is an IANA name, for rules about the hour of the day.

    With `platform_flags` it has set no flags of its own, and goes by the platform's.
    """

    tenant_id: UUID
    slug: str
    time_zone: str = "UTC"
    flags: SurfaceFlags
    platform_flags: bool = False


class PrincipalFacts(Facts):
    """Who asks, by its token. `delegable_scopes` are those a root run may be given (`*` for any)."""

    kind: Literal["admin", "tenant", "run"]
    run_id: UUID | None = None
    delegable_scopes: tuple[str, ...] = ()


class CallerFacts(Facts):
    """The run on whose behalf the call is made. `children_count` counts over its lifetime."""

    run_id: UUID
    agent_id: UUID
    agent_slug: str
    status: str
    depth: int
    effective_scopes: tuple[str, ...]
    children_count: int


class TreeFacts(Facts):
    """The caller's tree; `children_total` counts every run but the root, over the tree's lifetime."""

    root_run_id: UUID
    children_total: int


class OrchestratorPolicyFacts(Facts):
    """The stored policy of the orchestrator's agent; absent where there is none. Inactive: the defaults hold.

    The orchestrator is the caller; for `evaluate_and_replan` it is the subject, whose children are judged.
    """

    max_depth: int
    max_fanout: int
    max_children_total: int
    join_timeout_s: int
    default_failure_policy: str
    enforce_published_only: bool
    allowed_scope_subset: tuple[str, ...]
    parent_close_policy: str
    is_active: bool


class AllowlistEntryFacts(Facts):
    """One entry, by exactly one of the three."""

    target_agent_id: UUID | None = None
    target_agent_slug: str | None = None
    capability_tag: str | None = None


class TargetFacts(Facts):
    """An agent that is to run; `count` is how many children of a group are meant for it."""

    agent_id: UUID
    slug: str
    kind: Literal["external", "graph"]
    status: Literal["draft", "published"]
    capability_tags: tuple[str, ...] = ()
    count: int = 1


class RequestFacts(Facts):
    """What is asked for. `count` is the number of runs that would be made."""

    scopes: tuple[str, ...] = ()
    count: int = 0
    failure_policy: str | None = None
    timeout_s: int | None = None
    join_mode: str | None = None
    quorum_threshold: int | None = None
    include_root: bool | None = None
    grace_s: int | None = None


class SubjectFacts(Facts):
    """The run that a join, cancel, query or replan is about.

    `within_principal`: it is the principal's run or below it (always true of a tenant's or admin's token).
    `within_caller`: it is the caller's run or below it. `children_count` counts over its lifetime.
    """

    run_id: UUID
    status: str
    depth: int
    within_principal: bool
    within_caller: bool
    children_count: int


class OutcomeFacts(Facts):
    """The children of a run, for a verdict on replanning. `attempts` is the number of replans tried so far."""

    total_children: int
    completed_children: int
    failed_children: int
    cancelled_children: int
    active_children: int
    attempts: int


class RetrievalFacts(Facts):
    """The pipeline that a retrieval would search."""

    pipeline_id: UUID
    is_active: bool


class GraphSpawnFacts(Facts):
    """One spawn node of a graph at compile time.

    `depth` is that of the children it would make: 1 for those of a root run. `targets` is absent where the catalog is
    not at hand.
    """

    node_id: str
    scopes: tuple[str, ...]
    count: int
    depth: int
    targets: tuple[TargetFacts, ...] | None = None


class GraphFacts(Facts):
    """What is static in a graph."""

    spawns: tuple[GraphSpawnFacts, ...]


class DecisionInput(Facts):
    """One question. Which facts are present depends on `action`."""

    action: Action
    surface: Surface
    now: datetime
    tenant: TenantFacts
    principal: PrincipalFacts
    request: RequestFacts
    caller: CallerFacts | None = None
    tree: TreeFacts | None = None
    orchestrator_policy: OrchestratorPolicyFacts | None = None
    allowlist: tuple[AllowlistEntryFacts, ...] | None = None
    targets: tuple[TargetFacts, ...] | None = None
    subject: SubjectFacts | None = None
    outcomes: OutcomeFacts | None = None
    retrieval: RetrievalFacts | None = None
    graph: GraphFacts | None = None


class DecisionInputs(Facts):
    """Several questions at once, answered in the same order."""

    requests: tuple[DecisionInput, ...] = Field(max_length=64)


class Answer(BaseModel):
    """The base of everything that is heard; fields that policy adds are kept out of the kernel's sight."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Reason(Answer):
    """One fact that is wrong: its code, a message for a person, and the numbers.

    `node_id` names the graph's node, at compile time.
    """

    code: str
    message: str
    limit: int | None = None
    observed: int | None = None
    requested: int | None = None
    target: str | None = None
    scopes: list[str] | None = None
    node_id: str | None = None


class Limits(Answer):
    """The limits that the kernel re-checks under the lock of the tree: a closed list."""

    max_depth: int
    max_fanout: int
    max_children_total: int


class Headroom(Answer):
    """What is left after what was asked for is granted (before it, where it is denied); never below 0.

    For `evaluate_and_replan`, what the subject may still spend.
    """

    depth: int
    fanout: int
    children_total: int


class EffectivePolicy(Answer):
    """The policy in force for the caller: the stored one, or the platform's defaults."""

    max_depth: int
    max_fanout: int
    max_children_total: int
    join_timeout_s: int
    default_failure_policy: str
    enforce_published_only: bool
    allowed_scope_subset: list[str]
    parent_close_policy: str


class Verdict(Answer):
    """What to do about failed children: `continue`, `replan`, `escalate` or `stop`."""

    suggested_action: str
    needs_replan: bool
    reasons: list[Reason]


class Decision(Answer):
    """The answer to one question.

    `policy`, `limits` and `headroom` are present wherever there is an orchestrator in the question; `verdict` for
    `evaluate_and_replan`. `surface_enabled` tells of the question's surface, whatever the action.
    """

    allow: bool
    reasons: list[Reason]
    effective_scopes: list[str] = Field(default_factory=list)
    policy: EffectivePolicy | None = None
    limits: Limits | None = None
    headroom: Headroom | None = None
    verdict: Verdict | None = None
    surface_enabled: bool | None = None
