"""Claims beside each other and beside busy trees: nobody goes without for the sake of another."""

from tests.kit import Kit
from tests.orchestration_runtime_primitives.work.crew import PLENTY, claim, spawn_one


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
