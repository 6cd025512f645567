"""Claims beside each other and beside busy trees: nobody goes without for the sake of another."""

import asyncio

import pytest

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
