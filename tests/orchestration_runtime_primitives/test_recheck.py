"""What happens in a tree between the question to policy and the commit: whatever was answered, the truth counts."""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import pytest

from kernel.commands.spawning.order import Spawned
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.domain.errors import CallerNotActiveError, PolicyDeniedError, RunCancelledError
from kernel.policy.contract import DecisionInput
from kernel.policy.engine import Evaluated
from kernel.policy.opa import OpaEngine
from kernel.store import spawn_facts
from kernel.store.engine import Database, ReadSession
from kernel.store.spawn_facts import SpawnFacts, Wanted
from tests.kit import Kit, Run, done
from tests.orchestration_runtime_primitives.orders import order
from tests.orchestration_runtime_primitives.trees.forest import Forest

Change = Callable[[], Awaitable[object]]


class Overtaken:
    """A policy engine whose first answer is overtaken by a change."""

    def __init__(self, engine: OpaEngine, change: Change) -> None:
        self._engine = engine
        self._changes = [change]
        self.asked = 0

    async def decide(self, question: DecisionInput) -> Evaluated:
        (answer,) = await self.decide_all([question])
        return answer

    async def decide_all(self, questions: Sequence[DecisionInput]) -> list[Evaluated]:
        self.asked += 1
        answers = await self._engine.decide_all(questions)
        while self._changes:
            await self._changes.pop()()
        return answers


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What facts have been loaded of."""
    loads: list[Wanted] = []
    load = spawn_facts.load

    async def counting(session: ReadSession, wanted: Wanted) -> SpawnFacts:
        loads.append(wanted)
        return await load(session, wanted)

    monkeypatch.setattr(spawn_facts, "load", counting)
    return loads


async def overtaken(
    kit: Kit, database: Database, engine: OpaEngine, callers: Sequence[Run], change: Change
) -> tuple[list[object], int]:
    """What becomes of one order of each caller, and how often policy was asked."""
    asked = Overtaken(engine, change)
    outcomes = await SpawnPipeline(database, asked).execute([order(kit, caller, "key") for caller in callers])
    return [*outcomes], asked.asked


async def test_of_a_tree_that_stood_still_nothing_is_read_twice(
    kit: Kit, database: Database, opa_engine: OpaEngine, loads: list[Wanted]
) -> None:
    root, _ = await kit.team()
    moving = await kit.root(root.agent_id)
    loads.clear()
    outcomes, asked = await overtaken(kit, database, opa_engine, [root, moving], lambda: kit.spawn(moving, "other"))
    assert all(isinstance(outcome, Spawned) and not outcome.idempotent for outcome in outcomes)
    assert asked == 1
    tenant_id = UUID(kit.tenant_id)
    ours = [load.callers for load in loads if (tenant_id, UUID(root.run_id)) in load.callers]
    assert ours == [{(tenant_id, UUID(root.run_id)), (tenant_id, UUID(moving.run_id))}]
    assert loads[-1].callers == {(tenant_id, UUID(moving.run_id))}


async def test_a_caller_that_ends_meanwhile_spawns_no_more(kit: Kit, database: Database, opa_engine: OpaEngine) -> None:
    root, _ = await kit.team()
    report = kit.api.acting_with(root.token).post(f"/agents/runs/{root.run_id}/status", {"status": "completed"})
    (outcome,), _ = await overtaken(kit, database, opa_engine, [root], lambda: report)
    assert isinstance(outcome, CallerNotActiveError)


async def test_a_fence_that_is_set_meanwhile_covers_the_caller(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team()
    fence = Forest(database, kit).fence(root.run_id, "run", grace_s=60)
    (outcome,), _ = await overtaken(kit, database, opa_engine, [root], lambda: fence)
    assert isinstance(outcome, RunCancelledError)
    assert "cancellation_id" in outcome.members


async def test_a_key_that_is_used_meanwhile_gives_the_result_it_was_used_for(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team()
    first = SpawnPipeline(database, opa_engine).execute([order(kit, root, "key")])
    (outcome,), asked = await overtaken(kit, database, opa_engine, [root], lambda: first)
    assert isinstance(outcome, Spawned)
    assert outcome.idempotent
    assert asked == 1


@pytest.mark.parametrize("limit", ["max_fanout", "max_children_total"])
async def test_a_place_that_is_taken_meanwhile_is_not_given_twice(
    kit: Kit, database: Database, opa_engine: OpaEngine, limit: str
) -> None:
    root, _ = await kit.team(**{limit: 1})
    (outcome,), asked = await overtaken(kit, database, opa_engine, [root], lambda: kit.spawn(root, "other"))
    assert isinstance(outcome, PolicyDeniedError)
    assert asked == 2


async def test_whatever_ends_meanwhile_no_place_is_given_back(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team(max_fanout=2)
    done(await kit.spawn(root, "other"))
    (work,) = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"]}))["runs"]
    report = kit.api.post("/work/complete", {"run_id": work["run_id"], "lease": work["lease"], "status": "completed"})
    (outcome,), asked = await overtaken(kit, database, opa_engine, [root], lambda: report)
    assert isinstance(outcome, Spawned)
    assert asked == 1
