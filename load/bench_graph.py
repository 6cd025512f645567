"""What a graph costs beyond the calls that it makes: a chain of spawns, beside the same calls and bare checkpoints.

Run `python -m load.bench_graph [SPAWNS] [ROUNDS]`. Everything is in one process, but for PostgreSQL and OPA. The bare
checkpoints are those of a graph of LangGraph's with as many steps and its own checkpointer, which keeps only the last
output; ours keeps them all. A difference is taken within a round, where the machine was as busy for both.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict
from uuid import UUID

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from kernel.commands.cancel_subtree import CancelSubtreeCommand
from kernel.commands.catalog import Agents, AllowlistEntry, Tenants
from kernel.commands.evaluate_and_replan import EvaluateAndReplanCommand
from kernel.commands.join import JoinCommand
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.order import ChildOrder, SpawnOrder, TargetRef
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.start_run import StartRun, StartRunCommand
from kernel.domain.events import Surface
from kernel.domain.principal import ADMIN, Principal
from kernel.graph.checkpoints import Checkpoints, make_checkpoint_tables
from kernel.graph.executors.visit import Commands
from kernel.graph.ir import Graph, build
from kernel.graph.langgraph_runtime import LangGraphRuntime
from kernel.graph.reading import read_spec
from kernel.graph.state import Lineage
from kernel.identifiers import new_id
from kernel.policy.contract import Action
from kernel.policy.opa import OpaEngine, from_url
from kernel.store import catalog, migrate
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from load.arguments import at_least_one
from load.subject import run_measurement

NODES, ROUNDS = 50, 15
OUTPUT_BYTES = 700
POLICY = {
    "max_depth": 5,
    "max_fanout": 1_000_000,
    "max_children_total": 1_000_000,
    "join_timeout_s": 60,
    "default_failure_policy": "best_effort",
    "enforce_published_only": True,
    "allowed_scope_subset": [],
    "parent_close_policy": "continue",
    "is_active": True,
}


@dataclass
class Bench:
    database: Database
    engine: OpaEngine
    combiner: SpawnCombiner
    pool: AsyncConnectionPool[AsyncConnection[DictRow]]
    runtime: LangGraphRuntime
    principal: Principal
    agent_id: UUID

    async def root(self) -> Lineage:
        """A fresh tree."""
        asked = StartRun(self.agent_id, ("read",), {})
        started = await StartRunCommand(self.database, self.engine).execute(self.principal, asked)
        return Lineage(
            tenant_id=self.principal.tenant,
            run_id=started.run_id,
            root_run_id=started.run_id,
            parent_run_id=None,
            parent_node_id=None,
            depth=0,
            scopes=("read",),
            spawn_key=None,
            orchestration_group_id=None,
            surface=Surface.GRAPHSPEC_V2.value,
        )


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """PostgreSQL, OPA, a tenant with two agents, and the parts that run graphs."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="remit-bench-"))
        servers = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.servers",
            directory,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert servers.stdin is not None
        assert servers.stdout is not None
        stack.push_async_callback(servers.wait)
        stack.callback(servers.stdin.close)
        found = json.loads(await servers.stdout.readline())
        await migrate.upgrade(found["postgres"])
        await make_checkpoint_tables(found["postgres"])
        database = Database(found["postgres"])
        stack.push_async_callback(database.close)
        engine = await stack.enter_async_context(
            OpaEngine(from_url(found["opa_url"]), token=found["opa_token"], timeout_s=10.0)
        )
        checkpoints = await stack.enter_async_context(Checkpoints.open(found["postgres"]))
        combiner = SpawnCombiner(SpawnPipeline(database, engine))
        wakeups = Wakeups(database, asyncio.Event())
        commands = Commands(
            combiner,
            JoinCommand(database, engine, wakeups),
            CancelSubtreeCommand(database, engine, wakeups),
            EvaluateAndReplanCommand(database, engine),
            wakeups,
        )
        tenant = await Tenants(database).create(ADMIN, {"slug": "bench", "name": "bench"})
        principal = Principal("tenant", tenant["tenant_id"], frozenset({"*"}), delegable_scopes=("*",))
        agent_id = await _agent(database, principal.tenant, "orchestrator")
        await _agent(database, principal.tenant, "worker")
        agents = Agents(database)
        await agents.put_policy(principal.tenant, agent_id, POLICY)
        await agents.put_allowlist(principal.tenant, agent_id, [AllowlistEntry(target_agent_slug="worker")])
        runtime = LangGraphRuntime(commands, checkpoints)
        yield Bench(database, engine, combiner, checkpoints.pool, runtime, principal, agent_id)


async def _agent(database: Database, tenant_id: UUID, slug: str) -> UUID:
    made = await Agents(database).create(tenant_id, {"slug": slug, "name": slug, "kind": "external"})
    agent_id: UUID = made["agent_id"]
    async with database.write() as session:
        await catalog.change_agent(session, tenant_id, agent_id, {"status": "published"})
    return agent_id


def chain(nodes: int) -> Graph:
    """A graph of so many spawns, one after the other."""
    spawn: dict[str, JsonValue] = {"target_agent_slug": "worker", "scope_subset": ["read"]}
    ids = ["start", *(f"s{number}" for number in range(nodes)), "end"]
    types = ["start", *["spawn_run"] * nodes, "end"]
    spec, findings = read_spec(
        {
            "spec_version": "2.0",
            "nodes": [
                {"id": node_id, "type": node_type, "config": spawn if node_type == "spawn_run" else {}}
                for node_id, node_type in zip(ids, types, strict=True)
            ],
            "edges": [
                {"id": f"e{number}", "source": source, "target": target}
                for number, (source, target) in enumerate(itertools.pairwise(ids))
            ],
        }
    )
    assert not findings
    return build(spec)


async def by_calls(subject: Bench, lineage: Lineage, nodes: int) -> None:
    """The spawns alone."""
    for number in range(nodes):
        await subject.combiner.spawn(
            SpawnOrder(
                action=Action.SPAWN_RUN,
                surface=Surface.GRAPHSPEC_V2,
                principal=Principal("run", lineage.tenant_id, frozenset({"read"}), run_id=lineage.run_id),
                tenant_id=lineage.tenant_id,
                caller_run_id=lineage.run_id,
                key=f"s{number}",
                children=(ChildOrder(TargetRef(slug="worker"), {}),),
                scopes=("read",),
                parent_node_id=f"s{number}",
            )
        )


class Counted(TypedDict, total=False):
    """What LangGraph's peer keeps: no more than the output of its last step."""

    output: dict[str, Any]


def steps(nodes: int) -> Any:
    """As many steps of LangGraph's, with nothing done in them."""
    builder: Any = StateGraph(Counted)
    output = {"status": "spawned", "filler": "x" * OUTPUT_BYTES}

    def step(number: int) -> Callable[[Counted], Awaitable[Command[str]]]:
        async def take(state: Counted) -> Command[str]:  # noqa: ARG001 - its name is LangGraph's
            return Command(update={"output": output}, goto=f"n{number + 1}" if number + 1 < nodes else END)

        return take

    for number in range(nodes):
        builder.add_node(f"n{number}", step(number))
    builder.add_edge(START, "n0")
    return builder


async def by_checkpoints(subject: Bench, compiled: Any, durability: str) -> None:
    """LangGraph alone, with its own checkpointer on connections like ours."""
    bare = compiled.copy({"checkpointer": AsyncPostgresSaver(subject.pool)})
    config: Any = {"configurable": {"thread_id": str(new_id())}, "recursion_limit": 10_000}
    await bare.ainvoke({"output": {}}, config, durability=durability)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a node costs, in milliseconds: on the clock, and of this process's processor time."""

    wall: float
    cpu: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


async def cost(work: Awaitable[object], nodes: int) -> Cost:
    """The cost of some work for each of the nodes of the graph, also of those that make no call."""
    wall, cpu = time.perf_counter(), time.process_time()
    await work
    return Cost((time.perf_counter() - wall) * 1000 / nodes, (time.process_time() - cpu) * 1000 / nodes)


async def main(spawns: int, rounds: int) -> None:
    graph, nodes = chain(spawns), spawns + 2
    bare = steps(nodes).compile()
    rows: dict[str, list[Cost]] = {}
    async with bench() as subject:

        async def calls() -> Cost:
            return await cost(by_calls(subject, await subject.root(), spawns), nodes)

        async def of_graph() -> Cost:
            return await cost(subject.runtime.run(graph, await subject.root(), {}, resumed=False), nodes)

        async def checkpoints(durability: str) -> Cost:
            return await cost(by_checkpoints(subject, bare, durability), nodes)

        measures: list[tuple[str, Callable[[], Awaitable[Cost]]]] = [
            ("calls", calls),
            ("checkpoints, sync", partial(checkpoints, "sync")),
            ("checkpoints, async", partial(checkpoints, "async")),
            ("graph", of_graph),
        ]
        for number in range(rounds + 1):
            # Each round in another order, so that nobody always comes after the same one.
            turn = number % len(measures)
            figures = {name: await measure() for name, measure in (*measures[turn:], *measures[:turn])}
            beyond = {
                f"graph beyond calls and {name}": figures["graph"] - figures["calls"] - figures[name]
                for name in ("checkpoints, sync", "checkpoints, async")
            }
            if number:  # the first round warms up
                for name, figure in {**{name: figures[name] for name, _ in measures}, **beyond}.items():
                    rows.setdefault(name, []).append(figure)
    table = Table(
        "per node, ms",
        "wall, median",
        "wall, least",
        "CPU, median",
        title=f"{spawns} spawns in a chain, {rounds} rounds",
    )
    for name, found in rows.items():
        walls, cpus = [one.wall for one in found], [one.cpu for one in found]
        table.add_row(name, f"{statistics.median(walls):.2f}", f"{min(walls):.2f}", f"{statistics.median(cpus):.2f}")
    Console().print(table)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="python -m load.bench_graph", description=__doc__)
    arguments.add_argument("nodes", type=at_least_one, nargs="?", default=NODES, help=f"of the chain (default {NODES})")
    arguments.add_argument("rounds", type=at_least_one, nargs="?", default=ROUNDS, help=f"default {ROUNDS}")
    asked = arguments.parse_args()
    run_measurement(main(asked.nodes, asked.rounds))
