"""Where a tree begins: a repeat finds the first run, and nothing is granted on facts that no longer hold."""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import pytest

from kernel.commands.start_run import StartRun, StartRunCommand
from kernel.domain.errors import PolicyDeniedError
from kernel.domain.principal import Principal
from kernel.policy.contract import DecisionInput
from kernel.policy.engine import Evaluated, PolicyEngine
from kernel.policy.opa import OpaEngine
from kernel.store.engine import Database
from tests.graphs import graph, graph_agent
from tests.kit import Kit, done
from tests.orchestration_runtime_primitives.trees.forest import Forest

STARTED = {"requested_scopes": ["read"], "idempotency_key": "once"}


class Meanwhile(PolicyEngine):
    """An engine after whose first answer something happens."""

    def __init__(self, engine: OpaEngine, happen: Callable[[], Awaitable[object]]) -> None:
        self._engine = engine
        self._happen: Callable[[], Awaitable[object]] | None = happen

    async def decide(self, question: DecisionInput) -> Evaluated:
        evaluated = await self._engine.decide(question)
        if self._happen is not None:
            happen, self._happen = self._happen, None
            await happen()
        return evaluated

    async def decide_all(self, questions: Sequence[DecisionInput]) -> list[Evaluated]:
        return await self._engine.decide_all(questions)


async def test_a_repeat_tells_the_decision_that_allowed_the_first_run(kit: Kit) -> None:
    agent_id = await kit.orchestrator()
    first = done(await kit.api.post(f"/agents/{agent_id}/runs", STARTED))
    again = done(await kit.api.post(f"/agents/{agent_id}/runs", STARTED))
    for answer in (first, again):
        del answer["run_token"], answer["token_expires_at"]
    assert again == first | {"idempotent": True}


async def test_a_repeat_tells_the_status_that_readers_see(kit: Kit, database: Database) -> None:
    agent_id = await kit.orchestrator()
    run_id = done(await kit.api.post(f"/agents/{agent_id}/runs", STARTED))["run_id"]
    await Forest(database, kit).fence(run_id, "run")
    assert done(await kit.api.get(f"/agents/runs/{run_id}"))["status"] == "cancelled"
    assert done(await kit.api.post(f"/agents/{agent_id}/runs", STARTED))["status"] == "cancelled"


@pytest.mark.parametrize("change", ["the agent is unpublished", "the surface is switched off"])
async def test_what_changes_between_the_question_and_the_commit_counts(
    kit: Kit, database: Database, opa_engine: OpaEngine, change: str
) -> None:
    agent_id = await graph_agent(kit, graph([], "start -> end"))

    async def happen() -> None:
        if change == "the agent is unpublished":
            done(await kit.api.post(f"/agents/{agent_id}/unpublish"))
        else:
            done(await kit.api.put(f"/tenants/{kit.tenant_id}/flags", {"option_a_graphspec_v2": False}))

    principal = Principal("tenant", UUID(kit.tenant_id), frozenset({"agents.execute"}), ("*",))
    command = StartRunCommand(database, Meanwhile(opa_engine, happen))
    with pytest.raises(PolicyDeniedError) as refusal:
        await command.execute(principal, StartRun(UUID(agent_id), ("read",), {}))
    reason = "target_not_published" if change == "the agent is unpublished" else "surface_disabled"
    assert [given["code"] for given in refusal.value.reasons] == [reason]
