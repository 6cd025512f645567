"""Claims beside each other and beside busy trees: nobody goes without for the sake of another."""

import asyncio
from uuid import UUID

import pytest

from kernel.store import trees
from kernel.store.engine import Database
from tests.kit import Kit
from tests.orchestration_runtime_primitives.work.crew import PLENTY, WELL_BEFORE_S, claim, ids, spawn_one


async def test_workers_that_ask_in_step_for_different_agents_starve_none_of_them(kit: Kit) -> None:
    for slug in "abcd":
        await kit.agent(slug)
    root = await kit.root(await kit.orchestrator("boss", may_spawn=list("abcd"), **PLENTY))
    for slug in "abcd":
        for number in range(3):
            await spawn_one(kit, root, f"{slug}{number}", target=slug)
    served = []
    for _ in range(3):
        for slugs in ("ab", "cd"):
            served += [run["agent_slug"] for run in await claim(kit, *slugs)]
    assert set(served) == set("abcd")


@pytest.mark.parametrize("wait_s", [0, 60])
async def test_as_many_claimers_as_there_are_trees_with_work_get_a_run_each(kit: Kit, wait_s: int) -> None:
    root, _ = await kit.team(**PLENTY)
    run_ids = [await spawn_one(kit, await kit.root(root.agent_id)) for _ in range(24)]
    claims = asyncio.gather(*(claim(kit, wait_s=wait_s) for _ in run_ids))
    found = [ids(runs) for runs in await asyncio.wait_for(claims, WELL_BEFORE_S)]
    assert sorted(found) == sorted([run_id] for run_id in run_ids)


async def test_a_busy_tree_does_not_keep_claimers_from_work_that_comes_later(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    other = await kit.root(root.agent_id)
    held = await spawn_one(kit, root)
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        claims = [asyncio.create_task(claim(kit, wait_s=60)) for _ in range(2)]
        await asyncio.sleep(0.1)
        free = await spawn_one(kit, other)
        served, waiting = await asyncio.wait(claims, timeout=WELL_BEFORE_S, return_when=asyncio.FIRST_COMPLETED)
        assert [ids(await task) for task in served] == [[free]]
    assert [ids(await asyncio.wait_for(task, WELL_BEFORE_S)) for task in waiting] == [[held]]


async def test_more_busy_trees_than_a_look_finds_do_not_hide_one_that_is_free(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    by_root = {}
    for _ in range(10):
        other = await kit.root(root.agent_id)
        by_root[UUID(other.run_id)] = await spawn_one(kit, other)
    *held, last = sorted(by_root)
    async with database.write() as session:
        await trees.lock(session, [(UUID(kit.tenant_id), root_run_id) for root_run_id in held])
        assert ids(await asyncio.wait_for(claim(kit, wait_s=60), WELL_BEFORE_S)) == [by_root[last]]


async def test_a_claim_that_does_not_wait_for_work_does_not_wait_long_for_a_lock(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        assert await asyncio.wait_for(claim(kit), WELL_BEFORE_S) == []
