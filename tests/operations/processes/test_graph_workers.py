"""Graphs are executed by processes of their own, any of which may die or leave: another one goes on where it was."""

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx2
import pytest

from load.audit import audit
from tests.faults.scale import TORTURE
from tests.graphs import Definition, ended, graph, graph_agent, joined, node, play, start
from tests.kit import Api, Kit, done
from tests.operations.processes.fleet import ROOT, Fleet, Part, free_port

pytestmark = pytest.mark.xdist_group("fleet")

EXAMPLES = ROOT / "tests" / "cases" / "graphs"
KILLS = 20 if TORTURE else 2
LEASE_S = 2
CHILDREN = 12
QUORUM = 8
# So slow that graphs are cut off in the midst of waiting.
PACE_S = 0.1
SEED = 20_261_123
CHAIN: Definition = graph(
    [
        node("first", "spawn_group", targets=[{"target_agent_slug": "worker"}] * CHILDREN, scope_subset=["read"]),
        node("all", "join"),
        node(
            "second",
            "spawn_group",
            targets=[{"target_agent_slug": "worker"}] * CHILDREN,
            scope_subset=["read"],
            join_mode="quorum",
            quorum_threshold=QUORUM,
        ),
        node("enough", "join"),
        node("last", "spawn_run", target_agent_slug="worker", scope_subset=["read"]),
        node("end", "end", output={"all": "nodes.all.success_count", "enough": "nodes.enough.success_count"}),
    ],
    "start -> first",
    "first -> all",
    *joined("all", "second"),
    "second -> enough",
    *joined("enough", "last"),
    "last -> end",
)
# The graph's run, both groups, and the last child.
RUNS = 1 + 2 * CHILDREN + 1


@dataclass
class Crew:
    """The graph workers of a fleet: each a process that has nothing in common with the others but the database."""

    fleet: Fleet
    directory: Path
    parts: list[Part] = field(default_factory=list)

    async def hire(self) -> Part:
        """Start one more."""
        number, port = len(self.parts), free_port()
        part = Part(
            [sys.executable, "-m", "service.cli", "work"],
            {
                **self.fleet.reconciler.environment,
                "REMIT_DATA_DIR": str(self.directory / f"worker-{number}"),
                "REMIT_GRAPH_LEASE_S": str(LEASE_S),
                "REMIT_METRICS_PORT": str(port),
            },
            self.directory / f"worker-{number}.log",
            url=f"http://127.0.0.1:{port}",
            probe="/metrics",
        )
        self.parts.append(part)
        await part.start()
        return part


@pytest.fixture
async def crew(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Crew]:
    crew = Crew(fleet, tmp_path)
    yield crew
    for part in crew.parts:
        await part.kill()


@pytest.fixture
async def kit(fleet: Fleet) -> AsyncIterator[Kit]:
    url = fleet.apis[0].url
    assert url is not None
    async with httpx2.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        kit = await Kit.make(Api(client, fleet.secret("admin-token")))
        await kit.agent("worker")
        yield kit


async def test_an_api_without_graph_workers_leaves_a_graph_to_the_first_that_comes(kit: Kit, crew: Crew) -> None:
    definition = graph([node("end", "end", output={"said": "input.word"})], "start -> end")
    run = await start(kit, await graph_agent(kit, definition), {"word": "yes"})
    with pytest.raises(TimeoutError):
        await ended(kit, run.run_id, within_s=1)
    assert done(await kit.api.get(f"/agents/runs/{run.run_id}"))["status"] == "queued"
    await crew.hire()
    assert (await ended(kit, run.run_id, within_s=60))["output"] == {"said": "yes"}


async def test_a_worker_that_is_killed_while_it_waits_is_followed_by_the_other(
    kit: Kit, crew: Crew, auditor: asyncpg.Connection
) -> None:
    first = await crew.hire()
    run = await start(kit, await graph_agent(kit, CHAIN))
    await joins(kit, run.run_id, 1)
    second = await crew.hire()
    await first.kill()
    await play(kit, *["completed"] * CHILDREN)
    # It is the other that goes on: the first is gone.
    await joins(kit, run.run_id, 3)
    await play(kit, *["completed"] * QUORUM)
    await check(kit, run.run_id, auditor)
    assert await second.terminate() == 0


async def test_a_worker_that_is_asked_to_end_hands_over_what_it_holds_at_once(kit: Kit, crew: Crew) -> None:
    leaving = await crew.hire()
    run = await start(kit, await graph_agent(kit, CHAIN))
    await joins(kit, run.run_id, 1)
    assert await leaving.terminate() == 0
    # Not when its lease has run out: it has let go of it.
    assert done(await kit.api.get(f"/agents/runs/{run.run_id}"))["status"] == "queued"


@pytest.mark.torture
@pytest.mark.timeout(900)
async def test_workers_that_are_killed_at_any_moment_spawn_nothing_twice(
    kit: Kit, crew: Crew, auditor: asyncpg.Connection
) -> None:
    await crew.hire()
    await crew.hire()
    agent_id = await graph_agent(kit, CHAIN)
    dice = random.Random(SEED)
    over = asyncio.Event()
    working = asyncio.create_task(work(kit, over))
    runs = [await start(kit, agent_id) for _ in range(4)]
    for number in range(KILLS):
        await asyncio.sleep(dice.uniform(0.0, 1.0))
        part = crew.parts[number % 2]
        await part.kill()
        if number >= KILLS // 2:
            runs.append(await start(kit, agent_id))
        await part.start()
    for run in runs:
        await check(kit, run.run_id, auditor, within_s=300)
    over.set()
    await working


async def test_a_graph_from_a_file_is_run_by_a_fleet(kit: Kit, crew: Crew) -> None:
    await crew.hire()
    arguments = ["--scope", "read", "--allow", "worker", "--input", '{"question": "why?"}']
    (code, said), _ = await asyncio.gather(
        command(kit, crew.fleet, EXAMPLES / "fan_out_quorum.json", *arguments),
        play(kit, *["completed"] * 3, within_s=60),
    )
    assert code == 0, said
    assert '"agreed": true' in said


async def joins(kit: Kit, run_id: str, count: int) -> None:
    """Wait until a graph has asked so often how a group stands."""
    async with asyncio.timeout(60):
        while True:
            asked = done(await kit.api.get(f"/policies/decisions?action=join&run={run_id}"))["items"]
            if len(asked) >= count:
                return
            await asyncio.sleep(0.05)


async def check(kit: Kit, run_id: str, auditor: asyncpg.Connection, *, within_s: float = 60.0) -> None:
    """A graph has ended as it would have without any kill."""
    run = await ended(kit, run_id, within_s=within_s)
    assert run["status"] == "completed", run
    assert run["output"] == {"all": CHILDREN, "enough": QUORUM}
    body = {"run_id": run_id, "rollup": True, "limit": 1}
    counted = Counter(done(await kit.api.post("/internal/orchestration/query-tree", body))["rollup"]["by_status"])
    assert counted.total() == RUNS
    assert counted["cancelled"] == CHILDREN - QUORUM
    groups = await auditor.fetchval("SELECT count(*) FROM orchestration_groups WHERE root_run_id = $1::uuid", run_id)
    assert groups == 2
    assert await audit(auditor) == []


async def work(kit: Kit, over: asyncio.Event) -> None:
    """Complete what there is to do, a little at a time, until all is over."""
    while not over.is_set():
        body = {"agent_slugs": ["worker"], "max_runs": 4, "lease_s": 30, "wait_s": 1}
        for one in done(await kit.api.post("/work/claim", body))["runs"]:
            report = {"run_id": one["run_id"], "lease": one["lease"], "status": "completed"}
            response = await kit.api.post("/work/complete", report)
            assert response.is_success or response.json()["code"] == "run_cancelled", response.text
        await asyncio.sleep(PACE_S)


async def command(kit: Kit, fleet: Fleet, file: Path, *arguments: str) -> tuple[int | None, str]:
    """`remit graph run`, as somebody at a terminal runs it; how it ended and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", "graph", "run", str(file), *arguments),
        env={**os.environ, "REMIT_URL": str(fleet.apis[1].url), "REMIT_TOKEN": kit.api.token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()
