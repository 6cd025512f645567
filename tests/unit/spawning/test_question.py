"""The question about a spawn is put together without checks, so it is checked here: every fact is named, and right."""

from uuid import uuid4

from pydantic import BaseModel

from kernel.commands.spawning.order import ChildOrder, JoinOrder, SpawnOrder, TargetRef
from kernel.commands.spawning.question import prepare
from kernel.domain.events import Surface
from kernel.domain.joins import JoinMode
from kernel.domain.principal import Principal
from kernel.policy.contract import (
    Action,
    AllowlistEntryFacts,
    DecisionInput,
    OrchestratorPolicyFacts,
    TargetFacts,
    TenantFacts,
)
from kernel.store.spawn_facts import Agent, Caller, Orchestrator, SpawnFacts, tenant_facts


def _named(model: BaseModel) -> None:
    assert set(model.__dict__) == set(type(model).model_fields), type(model).__name__
    for value in model.__dict__.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, BaseModel):
                _named(item)


def _question(*, group: bool) -> DecisionInput:
    tenant_id, caller_id, agent_id = uuid4(), uuid4(), uuid4()
    tenant: TenantFacts = tenant_facts(
        {"tenant_slug": "acme", "time_zone": "UTC", "option_a": None, "option_b": False}, tenant_id
    )
    policy = OrchestratorPolicyFacts(
        max_depth=3,
        max_fanout=5,
        max_children_total=50,
        join_timeout_s=60,
        default_failure_policy="best_effort",
        enforce_published_only=True,
        allowed_scope_subset=("read",),
        parent_close_policy="abandon",
        is_active=True,
    )
    target = TargetFacts.known(
        agent_id=agent_id, slug="worker", kind="external", status="published", capability_tags=(), count=1
    )
    allowlist = (AllowlistEntryFacts(target_agent_id=agent_id),)
    orchestrator = Orchestrator(uuid4(), "orchestrator", tenant, 1, policy, allowlist)
    caller = Caller(caller_id, caller_id, "running", 0, ("read",), 0, 0, 0, 0, orchestrator)
    order = SpawnOrder(
        action=Action.SPAWN_GROUP if group else Action.SPAWN_RUN,
        surface=Surface.RUNTIME_PRIMITIVES,
        principal=Principal(kind="tenant", tenant_id=tenant_id, scopes=frozenset({"agents.execute"})),
        tenant_id=tenant_id,
        caller_run_id=caller_id,
        key="key",
        children=(ChildOrder(TargetRef(slug="worker"), {}),) * (2 if group else 1),
        scopes=("read",),
        join=JoinOrder(JoinMode.QUORUM, 1) if group else None,
    )
    agent = Agent(target, 1)
    facts = SpawnFacts({(tenant_id, caller_id): caller}, {(tenant_id, agent_id): agent}, {(tenant_id, "worker"): agent})
    return prepare(order, facts).question


def test_every_fact_of_a_question_is_named() -> None:
    for group in (False, True):
        _named(_question(group=group))


def test_a_question_that_was_not_checked_is_one_that_would_have_passed() -> None:
    for group in (False, True):
        question = _question(group=group)
        checked = DecisionInput.model_validate(question.model_dump())
        assert checked == question
        assert checked.model_dump_json(exclude_none=True) == question.model_dump_json(exclude_none=True)
