"""Scopes, limits and allowlists, decided by Rego and by a model of our own, case by case.

`REMIT_POLICY_CASES` is the number of cases (10,240 by default); they travel in batches of 64.
"""

import os
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID

import httpx2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kernel.domain.events import Surface
from kernel.policy.contract import (
    Action,
    AllowlistEntryFacts,
    CallerFacts,
    Decision,
    DecisionInput,
    DecisionInputs,
    OrchestratorPolicyFacts,
    PrincipalFacts,
    RequestFacts,
    SurfaceFlags,
    TargetFacts,
    TenantFacts,
    TreeFacts,
)
from tests.policy.rego.model import expect, told

BATCH = 64
CASES = int(os.environ.get("REMIT_POLICY_CASES", "10240"))

SCOPES = ("data.read", "data.write", "mail.send", "web.search")
SLUGS = ("browser", "coder", "critic", "reader")
TAGS = ("external", "fast", "trusted")
IDS = tuple(UUID(int=number) for number in range(1, 5))
RUN = UUID(int=77)

scopes = st.lists(st.sampled_from(SCOPES), max_size=3).map(tuple)
policies = st.builds(
    OrchestratorPolicyFacts,
    max_depth=st.integers(0, 4),
    max_fanout=st.integers(0, 10),
    max_children_total=st.integers(0, 40),
    join_timeout_s=st.just(60),
    default_failure_policy=st.just("best_effort"),
    enforce_published_only=st.booleans(),
    allowed_scope_subset=st.sampled_from(((), (), SCOPES, SCOPES[:2], SCOPES[2:])),
    parent_close_policy=st.just("continue"),
    is_active=st.sampled_from((True, True, False)),
)
entries = st.one_of(
    st.sampled_from([AllowlistEntryFacts(target_agent_id=agent) for agent in IDS]),
    st.sampled_from([AllowlistEntryFacts(target_agent_slug=slug) for slug in SLUGS]),
    st.sampled_from([AllowlistEntryFacts(capability_tag=tag) for tag in TAGS]),
)


@st.composite
def questions(draw: st.DrawFn) -> DecisionInput:
    agents = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
    targets = tuple(
        TargetFacts(
            agent_id=IDS[agent],
            slug=SLUGS[agent],
            kind="external",
            status=draw(st.sampled_from(("published", "published", "published", "draft"))),
            capability_tags=TAGS[: draw(st.integers(0, 3))],
            count=draw(st.integers(1, 4)),
        )
        for agent in agents
    )
    surface = draw(st.sampled_from(Surface))
    return DecisionInput(
        action=draw(st.sampled_from((Action.SPAWN_RUN, Action.SPAWN_GROUP, Action.AGENT_CALL))),
        surface=surface,
        now=datetime(2026, 7, 1, tzinfo=UTC),
        tenant=TenantFacts(
            tenant_id=UUID(int=9),
            slug="acme",
            flags=SurfaceFlags(option_b_runtime_primitives=draw(st.integers(0, 9)) > 0),
        ),
        principal=PrincipalFacts(kind="tenant", delegable_scopes=("*",)),
        request=RequestFacts(scopes=draw(scopes), count=sum(target.count for target in targets)),
        caller=CallerFacts(
            run_id=RUN,
            agent_id=UUID(int=8),
            agent_slug="lead",
            status="running",
            depth=draw(st.integers(0, 4)),
            effective_scopes=draw(st.sampled_from((SCOPES, SCOPES, SCOPES[:3], SCOPES[:1], ()))),
            children_count=draw(st.integers(0, 9)),
        ),
        tree=TreeFacts(root_run_id=RUN, children_total=draw(st.integers(0, 36))),
        orchestrator_policy=draw(st.none() | policies),
        allowlist=tuple(draw(st.lists(entries, max_size=4))),
        targets=targets,
    )


def ask(url: str, batch: list[DecisionInput]) -> list[Decision]:
    body = DecisionInputs(requests=tuple(batch)).model_dump_json(exclude_none=True)
    answer = httpx2.post(
        f"{url}/v1/data/orchestration/main/decisions",
        content=f'{{"input": {body}}}',
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    return [Decision.model_validate(decision) for decision in answer.json()["result"]]


def test_rego_decides_as_the_model_does(opa_url: str) -> None:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=-(-CASES // BATCH),
        deadline=None,
        database=None,
        # Without shrinking: the message names the one question of the batch that it is about.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(questions(), min_size=BATCH, max_size=BATCH))
    def compare(batch: list[DecisionInput]) -> None:
        answers = ask(opa_url, batch)
        assert len(answers) == len(batch)
        for question, decision in zip(batch, answers, strict=True):
            expected = expect(question)
            assert told(decision) == expected, question.model_dump_json(exclude_none=True)
            _holds(question, decision)
            outcomes.update(reason.code for reason in decision.reasons)
            outcomes["allow"] += decision.allow
            outcomes["cases"] += 1

    compare()
    assert outcomes["cases"] >= CASES
    assert min(outcomes.values()) > CASES // 1000, outcomes
    assert len(outcomes) == 12, outcomes


def _holds(question: DecisionInput, decision: Decision) -> None:
    assert question.caller is not None
    assert question.tree is not None
    assert decision.limits is not None
    assert decision.headroom is not None
    assert decision.policy is not None
    assert decision.allow == (not decision.reasons)
    if decision.allow:
        assert decision.effective_scopes == sorted(set(question.request.scopes))
        assert set(decision.effective_scopes) <= set(question.caller.effective_scopes)
        granted = (question.caller.depth + 1, question.request.count, question.request.count)
    else:
        assert decision.effective_scopes == []
        granted = (question.caller.depth, 0, 0)
    assert decision.headroom.depth == max(0, decision.limits.max_depth - granted[0])
    assert decision.headroom.fanout == max(0, decision.limits.max_fanout - question.caller.children_count - granted[1])
    left = decision.limits.max_children_total - question.tree.children_total - granted[2]
    assert decision.headroom.children_total == max(0, left)
