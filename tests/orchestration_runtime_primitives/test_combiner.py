"""Which orders leave together, and when."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest

from kernel import metrics
from kernel.commands.spawning import combiner as combiners
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.order import Spawned, SpawnOrder
from kernel.commands.spawning.pipeline import Postponed, SpawnPipeline
from kernel.commands.spawning.verdicts import Outcome
from kernel.domain.errors import PolicyDeniedError
from kernel.policy.opa import OpaEngine
from kernel.store import trees
from kernel.store.engine import Database
from tests.kit import Kit, Run
from tests.orchestration_runtime_primitives.orders import order
from tests.orchestration_runtime_primitives.work.crew import WELL_BEFORE_S


class HeldPipeline(SpawnPipeline):
    """The pipeline, whose batches set out and then stand until they are let go, one by one."""

    def __init__(self, database: Database, engine: OpaEngine) -> None:
        super().__init__(database, engine)
        self.sizes: list[int] = []
        self._let_go: list[asyncio.Event] = []
        self._came = asyncio.Event()

    async def execute(self, batch: Sequence[SpawnOrder], *, again: bool = False) -> list[Outcome | Postponed]:
        held = asyncio.Event()
        self._let_go.append(held)
        self.sizes.append(len(batch))
        self._came.set()
        await held.wait()
        return await super().execute(batch, again=again)

    def let_go(self, number: int) -> None:
        """Let one batch go on, by its number."""
        self._let_go[number].set()

    async def at_least(self, batches: int) -> list[int]:
        """The sizes of the batches, once there are so many."""
        async with asyncio.timeout(20):
            while len(self.sizes) < batches:
                self._came.clear()
                await self._came.wait()
        return self.sizes


class Orders:
    """Orders from trees of their own, under way."""

    def __init__(self, kit: Kit, combiner: SpawnCombiner, roots: Sequence[Run]) -> None:
        self._kit = kit
        self._combiner = combiner
        self._roots = iter(roots)
        self._spawns: list[asyncio.Task[Spawned]] = []

    async def put(self, count: int) -> list[asyncio.Task[Spawned]]:
        """So many more, each from another tree."""
        put = [
            asyncio.create_task(self._combiner.spawn(order(self._kit, next(self._roots), "one"))) for _ in range(count)
        ]
        self._spawns += put
        await asyncio.sleep(0)
        return put

    async def all_granted(self) -> None:
        """Wait for all of them."""
        async with asyncio.timeout(20):
            assert all(not spawned.idempotent for spawned in await asyncio.gather(*self._spawns))


async def trees_of(kit: Kit, count: int) -> list[Run]:
    root, _ = await kit.team()
    return [root, *[await kit.root(root.agent_id) for _ in range(count - 1)]]


async def test_what_finds_nothing_under_way_leaves_at_once_and_the_rest_when_they_are_as_many(
    kit: Kit, database: Database, opa_engine: OpaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combiners, "MAX_WAIT_S", 60)
    pipeline = HeldPipeline(database, opa_engine)
    orders = Orders(kit, SpawnCombiner(pipeline, lanes=2), await trees_of(kit, 10))
    await orders.put(1)
    (second,) = await orders.put(1)
    assert await pipeline.at_least(2) == [1, 1]
    # Both lanes are taken: what comes now leaves together.
    await orders.put(4)
    pipeline.let_go(0)
    assert await pipeline.at_least(3) == [1, 1, 4]
    pipeline.let_go(1)
    await second
    # A lane is free, and four are under way: what comes now leaves when it is as many.
    await orders.put(3)
    assert pipeline.sizes == [1, 1, 4]
    await orders.put(1)
    assert await pipeline.at_least(4) == [1, 1, 4, 4]
    pipeline.let_go(2)
    pipeline.let_go(3)
    await orders.all_granted()


async def test_company_is_not_waited_for_without_end(kit: Kit, database: Database, opa_engine: OpaEngine) -> None:
    pipeline = HeldPipeline(database, opa_engine)
    orders = Orders(kit, SpawnCombiner(pipeline, lanes=2), await trees_of(kit, 8))
    await orders.put(1)
    await orders.put(1)
    await pipeline.at_least(2)
    await orders.put(5)
    pipeline.let_go(0)
    pipeline.let_go(1)
    assert await pipeline.at_least(3) == [1, 1, 5]
    # One against five: it leaves alone, though the five never do.
    await orders.put(1)
    assert await pipeline.at_least(4) == [1, 1, 5, 1]
    pipeline.let_go(3)
    pipeline.let_go(2)
    await orders.all_granted()


async def test_trees_that_are_held_keep_the_spawns_elsewhere_from_no_lane(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team(max_fanout=100, max_children_total=100)
    *held, free = [root, *[await kit.root(root.agent_id) for _ in range(4)]]
    combiner = SpawnCombiner(SpawnPipeline(database, opa_engine))
    # Their trees are known from here on.
    for run in (*held, free):
        await combiner.spawn(order(kit, run, "first"))
    async with database.write() as session:
        await trees.lock(session, [(UUID(kit.tenant_id), UUID(run.run_id)) for run in held])
        waiting = [
            asyncio.create_task(combiner.spawn(order(kit, run, key))) for run in held for key in ("second", "third")
        ]
        async with asyncio.timeout(WELL_BEFORE_S):
            # In the same batch as orders that wait, and in batches after them.
            for number in range(6):
                await combiner.spawn(order(kit, free, f"free{number}"))
        assert not any(one.done() for one in waiting)
    spawned = await asyncio.gather(*waiting)
    assert len({run_id for one in spawned for run_id in one.run_ids}) == len(waiting)
    await combiner.drain()


async def test_an_order_that_waited_for_a_held_tree_is_decided_by_what_is_true_afterwards(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team(max_fanout=2)
    combiner = SpawnCombiner(SpawnPipeline(database, opa_engine))
    asked = asked_for(kit)
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        waiting = [asyncio.create_task(combiner.spawn(order(kit, root, f"k{number}"))) for number in range(5)]
        await asyncio.sleep(0.5)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(one, Spawned) for one in outcomes) == 2
    assert all(isinstance(one, Spawned | PolicyDeniedError) for one in outcomes)
    # Each came once, whatever it waited for.
    assert asked_for(kit) == asked + 5


def asked_for(kit: Kit) -> float:
    """How many requests of a tenant have come through any surface."""
    label = metrics.tenant_label(kit.slug)
    samples = [sample for metric in metrics.SURFACE_REQUESTS.collect() for sample in metric.samples]
    return sum(one.value for one in samples if one.labels["tenant"] == label and one.name.endswith("_total"))
