"""Where a scenario is played: a tenant with its agents, and those who act in it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from kernel.store.engine import Database
from tests.kit import ROOT_SCOPES, Kit, Run, done, refused
from tests.orchestration_parity.drawing import draw
from tests.orchestration_parity.story import Agent, Scenario

GENEROUS: dict[str, Any] = {"max_fanout": 1000, "max_children_total": 1000, "max_depth": 50, "join_timeout_s": 60}
PATIENCE_S = 40.0
LOOK_S = 0.05
ENDED = ("completed", "failed", "cancelled")
OWN_FLAG = {"graph": "option_a_graphspec_v2", "primitives": "option_b_runtime_primitives"}


@dataclass
class Cue:
    """While a run waits in its n-th join, and another one has ended, this is played."""

    path: tuple[str, ...]
    number: int
    play: list[Any]
    after: tuple[str, ...] | None = None


@dataclass
class Stage:
    """`surface` is the one that is tried; `boss` is the root run, which spawns the orchestrator as its child."""

    kit: Kit
    database: Database
    scenario: Scenario
    surface: str
    boss: Run
    ids: dict[str, str] = field(default_factory=dict)
    held: list[dict[str, Any]] = field(default_factory=list)
    performed: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    async def set(cls, kit: Kit, database: Database, scenario: Scenario, surface: str) -> "Stage":
        boss_agent = await kit.orchestrator("boss", may_spawn=["orchestrator"], **GENEROUS)
        ids: dict[str, str] = {}
        for agent in scenario.agents.values():
            ids[agent.slug] = await _make(kit, agent, as_graph=surface == "graph" and bool(agent.steps))
        orchestrators = [agent for agent in scenario.agents.values() if agent.steps]
        # First everything is allowed, so that graphs can be published that will be refused when they run.
        for agent in orchestrators:
            await _permit(kit, ids[agent.slug], GENEROUS, list(scenario.agents))
        for agent in scenario.agents.values():
            if not agent.steps:
                done(await kit.api.post(f"/agents/{ids[agent.slug]}/publish"))
        # Leads before those who spawn them.
        compiled = [await _publish(kit, database, ids[agent.slug]) for agent in orchestrators]
        if surface == "graph":
            scenario.compiles = all(compiled) if scenario.improvised else scenario.compiles
            assert scenario.compiles == all(compiled)
        for agent in orchestrators:
            await _permit(kit, ids[agent.slug], {**GENEROUS, **agent.policy}, agent.allow)
        for agent in scenario.agents.values():
            if not agent.published:
                done(await kit.api.post(f"/agents/{ids[agent.slug]}/unpublish"))
        boss = await kit.root(boss_agent, ROOT_SCOPES)
        return cls(kit, database, scenario, surface, boss, ids)

    async def open(self) -> str:
        """The boss spawns the orchestrator."""
        spawned = await self.kit.spawn(self.boss, "o", target="orchestrator", scope_subset=self.scenario.scopes)
        run_id: str = done(spawned)["spawned_run_ids"][0]
        return run_id

    async def claim(self, *slugs: str) -> dict[str, Any]:
        """The next run of some agents, once it is there."""
        body = {"agent_slugs": list(slugs), "max_runs": 1, "lease_s": 300, "wait_s": 10}
        async with asyncio.timeout(PATIENCE_S):
            while not (runs := done(await self.kit.api.post("/work/claim", body))["runs"]):
                pass
        claimed: dict[str, Any] = runs[0]
        return claimed

    async def complete(self, run: dict[str, Any], status: str) -> None:
        body = {"run_id": run["run_id"], "lease": run["lease"], "status": status}
        response = await self.kit.api.post("/work/complete", body)
        assert response.is_success or response.json()["code"] == "run_cancelled", response.text

    async def act(self, action: Any) -> None:
        """What happens while an orchestrator waits."""
        match action:
            case "completed" | "failed" | "cancelled":
                await self.complete(await self.claim("worker"), action)
            case {"completed": slug} | {"failed": slug}:
                (status,) = action
                await self.complete(await self.claim(slug), status)
            case "hold":
                self.held.append(await self.claim("worker"))
            case "release":
                await self.complete(self.held.pop(0), "completed")
            case "flag_off":
                flags = {OWN_FLAG[self.surface]: False}
                other = {flag: True for flag in OWN_FLAG.values() if flag not in flags}
                done(await self.kit.api.put(f"/tenants/{self.kit.tenant_id}/flags", flags | other))
            case "cancel_orchestrator":
                body = {"caller_run_id": self.boss.run_id, "run_id": await self.run_at(("o",)), "wait_s": 10}
                done(await self.kit.api.post("/internal/orchestration/cancel-subtree", body))
            case {"unpublish": slug}:
                done(await self.kit.api.post(f"/agents/{self.ids[slug]}/unpublish"))
            case {"policy": policy}:
                path = f"/agents/{self.ids['orchestrator']}/orchestrator-policy"
                done(await self.kit.api.put(path, {**GENEROUS, **policy}))
            case {"allow": slugs}:
                await _permit(self.kit, self.ids["orchestrator"], None, slugs)
            case _:
                raise AssertionError(action)

    async def run_at(self, path: Sequence[str]) -> str:
        """The run at the end of a path of keys, once it is there."""
        run_id = self.boss.run_id
        for key in path:
            async with asyncio.timeout(PATIENCE_S):
                while (found := await self._child(run_id, key)) is None:  # noqa: ASYNC110 - it happens in the database
                    await asyncio.sleep(LOOK_S)
            run_id = found
        return run_id

    async def joined(self, run_id: str, number: int) -> None:
        """Wait until a run has made its n-th call to join."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._joins(run_id) < number:  # noqa: ASYNC110 - it happens in the database
                await asyncio.sleep(LOOK_S)

    async def ended(self, run_id: str) -> None:
        """Wait until a run has ended and every fence is drained."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self._is_over(run_id):  # noqa: ASYNC110 - it happens in the database
                await asyncio.sleep(LOOK_S)

    async def undecided(self, group_id: str) -> bool:
        """Whether a group's members may still decide it."""
        async with self.database.read() as session:
            found: bool = await session.driver.fetchval(
                "SELECT status = 'running' FROM orchestration_groups WHERE tenant_id = $1 AND group_id = $2",
                UUID(self.kit.tenant_id),
                UUID(group_id),
            )
        return found

    async def queued(self) -> frozenset[str]:
        """The agents of whom there is a run to claim, once every fence is drained."""
        tree = (UUID(self.kit.tenant_id), UUID(self.boss.run_id))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self.database.read() as session:
                    fences = await session.driver.fetchval(
                        "SELECT open_fences FROM run_trees WHERE tenant_id = $1 AND root_run_id = $2", *tree
                    )
                    slugs = await session.driver.fetch(
                        "SELECT DISTINCT a.slug FROM agent_runs r JOIN agents a USING (tenant_id, agent_id)"
                        " WHERE r.tenant_id = $1 AND r.root_run_id = $2 AND r.status = 'queued'",
                        *tree,
                    )
                if not fences:
                    return frozenset(row["slug"] for row in slugs)
                await asyncio.sleep(LOOK_S)

    async def _child(self, run_id: str, key: str) -> str | None:
        async with self.database.read() as session:
            found = await session.driver.fetchval(
                "SELECT run_id FROM agent_runs WHERE tenant_id = $1 AND parent_run_id = $2 AND spawn_key = $3",
                UUID(self.kit.tenant_id),
                UUID(run_id),
                key,
            )
        return str(found) if found is not None else None

    async def _joins(self, run_id: str) -> int:
        async with self.database.read() as session:
            count: int = await session.driver.fetchval(
                "SELECT count(*) FROM policy_decisions"
                " WHERE tenant_id = $1 AND caller_run_id = $2 AND action = 'join' AND outcome = 'allow'",
                UUID(self.kit.tenant_id),
                UUID(run_id),
            )
        return count

    async def _is_over(self, run_id: str) -> bool:
        async with self.database.read() as session:
            over: bool = await session.driver.fetchval(
                "SELECT r.status = ANY ($3::text[]) AND t.open_fences = 0 FROM agent_runs r"
                " JOIN run_trees t USING (tenant_id, root_run_id) WHERE r.tenant_id = $1 AND r.run_id = $2",
                UUID(self.kit.tenant_id),
                UUID(run_id),
                list(ENDED),
            )
        return over


async def _make(kit: Kit, agent: Agent, *, as_graph: bool) -> str:
    body: dict[str, Any] = {"slug": agent.slug, "name": agent.slug, "kind": "external", "capability_tags": agent.tags}
    if as_graph:
        body |= {"kind": "graph", "graph_definition": draw(agent)}
    agent_id: str = done(await kit.api.post("/agents", body))["agent_id"]
    return agent_id


async def _publish(kit: Kit, database: Database, agent_id: str) -> bool:
    """Publish an agent; one whose graph does not compile unseen, so that what it does is refused when it runs."""
    published = await kit.api.post(f"/agents/{agent_id}/publish")
    if published.is_success:
        return True
    refused(published, 422, "graph_invalid")
    async with database.write() as session:
        await session.driver.execute("UPDATE agents SET status = 'published' WHERE agent_id = $1", UUID(agent_id))
    return False


async def _permit(kit: Kit, agent_id: str, policy: dict[str, Any] | None, allow: Sequence[str]) -> None:
    if policy is not None:
        done(await kit.api.put(f"/agents/{agent_id}/orchestrator-policy", policy))
    entries = [
        {"capability_tag": one.removeprefix("tag:")} if one.startswith("tag:") else {"target_agent_slug": one}
        for one in allow
    ]
    done(await kit.api.put(f"/agents/{agent_id}/allowlist", {"entries": entries}))
