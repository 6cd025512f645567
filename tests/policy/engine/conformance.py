"""What any `PolicyEngine` must do. A test module inherits the class and gives it an `engine` fixture."""

import asyncio
from uuid import uuid4

import pytest

from kernel.policy.contract import AllowlistEntryFacts, RequestFacts, TargetFacts
from kernel.policy.engine import PolicyEngine
from tests.policy.engine.questions import AGENT, caller, replan, spawn, stored_policy


class PolicyEngineConformance:
    @pytest.fixture
    def engine(self) -> PolicyEngine:
        raise NotImplementedError

    @pytest.fixture
    def revision(self) -> str:
        """The revision that the engine's answers are of."""
        raise NotImplementedError

    async def test_a_permitted_spawn_comes_with_its_limits_and_scopes(self, engine: PolicyEngine) -> None:
        decision = (await engine.decide(spawn())).decision
        assert decision.allow
        assert decision.reasons == []
        assert decision.effective_scopes == ["read"]
        assert decision.limits is not None
        assert (decision.limits.max_depth, decision.limits.max_fanout, decision.limits.max_children_total) == (3, 8, 32)

    async def test_a_denial_gives_every_reason_in_the_order_of_the_codes(self, engine: PolicyEngine) -> None:
        decision = (
            await engine.decide(
                spawn(
                    caller=caller(depth=3, children_count=8),
                    allowlist=(AllowlistEntryFacts(target_agent_slug="another"),),
                    targets=(TargetFacts(agent_id=AGENT, slug="draft", kind="external", status="draft"),),
                    request=RequestFacts(scopes=("admin",), count=1),
                )
            )
        ).decision
        assert not decision.allow
        codes = [reason.code for reason in decision.reasons]
        assert codes == sorted(codes)
        assert set(codes) >= {
            "max_depth_exceeded",
            "max_fanout_exceeded",
            "scope_exceeds_caller",
            "target_not_allowlisted",
            "target_not_published",
        }
        assert all(reason.message for reason in decision.reasons)

    async def test_an_answer_names_its_revision_and_the_time_it_took(self, engine: PolicyEngine, revision: str) -> None:
        answer = await engine.decide(spawn())
        assert answer.revision == revision
        assert 0 < answer.seconds < 5

    async def test_facts_that_are_missing_deny(self, engine: PolicyEngine) -> None:
        for missing in ("caller", "tree", "targets", "allowlist"):
            assert not (await engine.decide(spawn(**{missing: None}))).decision.allow, missing

    async def test_a_replan_gets_a_verdict(self, engine: PolicyEngine) -> None:
        fine, failed = [
            answer.decision.verdict for answer in await engine.decide_all([replan(failed=0), replan(failed=1)])
        ]
        assert fine is not None
        assert failed is not None
        assert (fine.needs_replan, fine.suggested_action) == (False, "continue")
        assert (failed.needs_replan, failed.suggested_action) == (True, "replan")

    async def test_many_questions_are_answered_in_their_order_and_as_one_by_one(self, engine: PolicyEngine) -> None:
        questions = [spawn(orchestrator_policy=stored_policy(max_fanout=fanout)) for fanout in range(1, 65)]
        together = await engine.decide_all(questions)
        singly = [await engine.decide(question) for question in questions]
        assert [answer.decision for answer in together] == [answer.decision for answer in singly]
        limits = [answer.decision.limits for answer in together]
        assert [limit.max_fanout for limit in limits if limit is not None] == list(range(1, 65))

    async def test_no_questions_have_no_answers(self, engine: PolicyEngine) -> None:
        assert await engine.decide_all([]) == []

    async def test_more_questions_than_64_are_the_callers_mistake(self, engine: PolicyEngine) -> None:
        with pytest.raises(ValueError, match="64"):
            await engine.decide_all([spawn()] * 65)

    async def test_questions_at_the_same_time_get_their_own_answers(self, engine: PolicyEngine) -> None:
        async def scope_of(scope: str) -> list[str]:
            question = spawn(caller=caller(effective_scopes=(scope,)), request=RequestFacts(scopes=(scope,), count=1))
            return (await engine.decide(question)).decision.effective_scopes

        scopes = [f"scope-{uuid4()}" for _ in range(200)]
        assert await asyncio.gather(*map(scope_of, scopes)) == [[scope] for scope in scopes]

    async def test_an_asker_that_gives_up_disturbs_nobody(self, engine: PolicyEngine) -> None:
        impatient = [asyncio.create_task(engine.decide(spawn())) for _ in range(20)]
        await asyncio.sleep(0)
        for task in impatient[::2]:
            task.cancel()
        answers = await asyncio.gather(*impatient, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
        assert not any(isinstance(answer, BaseException) for answer in answers[1::2])
        assert (await engine.decide(spawn())).decision.allow
