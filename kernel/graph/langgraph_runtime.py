"""Runs a graph on LangGraph: a step for each set of nodes that are under way at once, a checkpoint after each.

A node may be executed again when the process died before the checkpoint of its step: what it does is the same then,
because keys are derived from what is checkpointed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, get_type_hints

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command
from langsmith import tracing_context

from kernel.domain.errors import (
    CallerNotActiveError,
    DatabaseUnavailableError,
    FactsChangedError,
    PolicyUnavailableError,
    RemitError,
    RunCancelledError,
    TenantSaturatedError,
)
from kernel.graph.checkpoints import Checkpoints, thread_of
from kernel.graph.executors import cancelling, deciding, joining, plain, replanning, spawning, tool_call
from kernel.graph.executors.visit import (
    Commands,
    Executor,
    GraphInterruptedError,
    GraphRunError,
    Outcome,
    Visit,
    search,
)
from kernel.graph.expressions import BeyondBoundsError, check
from kernel.graph.ir import Graph, GraphNode
from kernel.graph.spec import CancelSubtreeConfig, NodeType
from kernel.graph.state import Frontier, GraphState, Kept, Lineage, Made, Ways, expression_document

EXECUTORS: Mapping[NodeType, Executor] = {
    NodeType.START: plain.start,
    NodeType.END: plain.end,
    NodeType.TRANSFORM: plain.transform,
    NodeType.PARALLEL: plain.parallel,
    NodeType.TOOL_CALL: tool_call.tool_call,
    NodeType.IF_ELSE: deciding.if_else,
    NodeType.ROUTER: deciding.router,
    NodeType.JUDGE: deciding.judge,
    NodeType.SPAWN_RUN: spawning.spawn_run,
    NodeType.SPAWN_GROUP: spawning.spawn_group,
    NodeType.JOIN: joining.join,
    NodeType.REPLAN: replanning.replan,
    NodeType.CANCEL_SUBTREE: cancelling.cancel_subtree,
}
# What waits, rather than works, takes no one's turn.
WAITING = frozenset({NodeType.JOIN, NodeType.TOOL_CALL})
# Who can take a denial as an output.
ROUTING = frozenset({NodeType.ROUTER, NodeType.IF_ELSE})

MAX_STEPS = 10_000
# What a compiled graph takes grows with the square of its nodes: this is 10 of the largest, or thousands of small ones.
MAX_KNOWN = 10_000_000

# What passes is tried again; a run that meets it for longer than this has failed.
PASSING = (DatabaseUnavailableError, FactsChangedError, PolicyUnavailableError, TenantSaturatedError)
PATIENCE_S = 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0

# The checkpoint of a step is there before the next one begins: where a graph went on from a refusal, a verdict or the
# answer of a tool, which might be others if they were asked for again, it goes the same way after a crash.
DURABILITY: Final = "sync"

log = structlog.get_logger()


@dataclass(slots=True)
class _UnderWay:
    """A run while this process executes it, with what waits in it beyond the step in which that has begun."""

    lineage: Lineage
    _waits: dict[str, asyncio.Task[Outcome]] = field(default_factory=dict)
    _step: int = 0
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def moved_on(self, step: int) -> asyncio.Event:
        """Set when a node of a step is done, so that what follows it need not wait for the others of the step."""
        if step != self._step:
            self._step, self._moved = step, asyncio.Event()
        return self._moved

    def wait(self, node_id: str, execution: Callable[[], Coroutine[None, None, Outcome]]) -> asyncio.Task[Outcome]:
        """What a node waits for: begun, or still under way since an earlier step."""
        if node_id not in self._waits:
            self._waits[node_id] = asyncio.create_task(execution(), name=f"{self.lineage.run_id} waits: {node_id}")
        return self._waits[node_id]

    def waited(self, node_id: str) -> None:
        """What a node waited for is there."""
        del self._waits[node_id]

    async def leave(self) -> None:
        """Wait for nothing any more."""
        for wait in self._waits.values():
            wait.cancel()
        await asyncio.gather(*self._waits.values(), return_exceptions=True)


_Compiled = CompiledStateGraph[Kept, _UnderWay, Kept, Kept]


class LangGraphRuntime:
    """Runs graphs, any number at once.

    Args:
        active_nodes: how many nodes work at once in this process; those that wait do not count.
    """

    def __init__(self, commands: Commands, checkpoints: Checkpoints, *, active_nodes: int = 16) -> None:
        self._commands = commands
        self._checkpoints = checkpoints
        self._turns = asyncio.Semaphore(active_nodes)
        self._known: OrderedDict[str, _Compiled] = OrderedDict()

    async def run(self, graph: Graph, lineage: Lineage, run_input: Mapping[str, Any], *, resumed: bool) -> Any:
        """Run a graph to its end, from its last checkpoint on where `resumed` and there is one.

        Returns:
            The output of its last end.

        Raises:
            GraphRunError: when it fails.
            GraphInterruptedError: when the run has ended otherwise, or the process ends.
        """
        saver = self._checkpoints.saver(fresh=not resumed)
        config: RunnableConfig = {
            "configurable": {"thread_id": thread_of(lineage.tenant_id, lineage.run_id)},
            "recursion_limit": MAX_STEPS,
        }
        ends = {channel: node_id for node_id, channel in _channels_of(graph).items() if node_id in graph.exits}
        begun = resumed and await saver.aget_tuple(config) is not None
        first: Kept = {"input": dict(run_input), "context": lineage.document()}
        compiled = (await self._compiled(graph)).copy({"checkpointer": saver})
        under_way = _UnderWay(lineage)
        try:
            # Nothing of a run is told to a tracing service, whatever the environment says.
            with tracing_context(enabled=False):
                kept = await compiled.ainvoke(
                    None if begun else first,
                    config,
                    context=under_way,
                    durability=DURABILITY,
                    stream_mode="values",
                    output_keys=list(ends),
                )
        except GraphRecursionError:
            raise GraphRunError("graph_too_long", f"the graph took more than {MAX_STEPS} steps") from None
        finally:
            await under_way.leave()
        return _output({end: kept[channel] for channel, end in ends.items() if channel in (kept or ())})

    async def _compiled(self, graph: Graph) -> _Compiled:
        known = self._known.get(graph.digest)
        if known is None:
            # In a thread: a large graph takes a second, and others go on meanwhile.
            known = self._known[graph.digest] = await asyncio.to_thread(self._compile, graph)
            while sum(len(one.nodes) ** 2 for one in self._known.values()) > MAX_KNOWN and len(self._known) > 1:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(graph.digest)
        return known

    def _compile(self, graph: Graph) -> _Compiled:
        names, channels, ways = _names_of(graph), _channels_of(graph), Ways(graph)
        # LangGraph takes the channels of a state from its type.
        types = {**get_type_hints(Kept, include_extras=True), **dict.fromkeys(channels.values(), Made)}
        kept: Any = type("Kept", (dict,), {"__annotations__": types})
        builder: Any = StateGraph(kept, _UnderWay)
        for node in graph.nodes.values():
            step = _Step(self._commands, self._turns, graph, ways, node, names, channels)
            builder.add_node(names[node.id], step.take, input_schema=kept)
        builder.add_edge(START, names[graph.entry])
        compiled: _Compiled = builder.compile()
        return compiled


class _Step:
    """A node as a step of LangGraph's."""

    def __init__(
        self,
        commands: Commands,
        turns: asyncio.Semaphore,
        graph: Graph,
        ways: Ways,
        node: GraphNode,
        names: Mapping[str, str],
        channels: Mapping[str, str],
    ) -> None:
        self._commands = commands
        self._turns = turns
        self._graph = graph
        self._ways = ways
        self._node = node
        self._names = names
        self._channels = channels
        targets = [target for found in graph.routes.get(node.id, {}).values() for target in found]
        self._waits = node.type in WAITING or (isinstance(node.config, CancelSubtreeConfig) and node.config.wait_s > 0)
        self._can_be_denied = bool(targets) and all(graph.nodes[target].type in ROUTING for target in targets)

    async def take(self, kept: Kept, runtime: Any) -> Command[str]:
        """Execute the node, unless it waits for others, and go on.

        A step ends with the last of its nodes. What waits for others outside the graph would hold up whatever follows
        its neighbours; so when one of them is done, it ends the step with them, and waits on in the next one.
        """
        node_id = self._node.id
        here: Frontier = kept.get("frontier") or {"step": 0, "nodes": [node_id], "parked": []}
        if self._ways.must_wait(node_id, here):
            parked: Frontier = {"step": here["step"] + 1, "nodes": [node_id], "parked": [node_id]}
            return Command(update={"frontier": parked}, goto=self._names[node_id])
        by_channel: Mapping[str, Any] = {**kept}
        made = {name: by_channel[channel] for name, channel in self._channels.items() if channel in by_channel}
        state = GraphState(kept["input"], kept["context"], made)
        iteration = state.visits(node_id)
        under_way: _UnderWay = runtime.context
        moved_on = under_way.moved_on(here["step"])
        try:
            if not self._waits:
                outcome = await self._execute(state, under_way.lineage, iteration)
            else:
                waits = under_way.wait(node_id, partial(self._execute, state, under_way.lineage, iteration))
                if len(here["nodes"]) > 1:
                    await _either(waits, moved_on)
                    if not waits.done():
                        still: Frontier = {"step": here["step"] + 1, "nodes": [node_id], "parked": []}
                        return Command(update={"frontier": still}, goto=self._names[node_id])
                outcome = await waits
                under_way.waited(node_id)
            check(outcome.output)
        except (RunCancelledError, CallerNotActiveError) as error:
            raise GraphInterruptedError(error.detail) from error
        except BeyondBoundsError as error:
            raise GraphRunError("output_beyond_bounds", f"the output of node {node_id!r}: {error}", node_id) from error
        except RemitError as error:
            raise GraphRunError(error.code, error.detail, node_id, **error.members) from error
        if outcome.denied and not self._can_be_denied:
            reasons = outcome.output["reasons"]
            said = "; ".join(str(reason["message"]) for reason in reasons)
            raise GraphRunError(
                "policy_denied",
                f"node {node_id!r} was refused: {said}",
                node_id,
                reasons=reasons,
                decision_id=outcome.output["decision_id"],
            )
        moved_on.set()
        targets = self._graph.routes.get(node_id, {}).get(outcome.handle, ())
        frontier: Frontier = {"step": here["step"] + 1, "nodes": sorted(targets), "parked": []}
        now: Made = {"output": outcome.output, "step": here["step"], "visits": iteration + 1}
        return Command(
            update={self._channels[node_id]: now, "frontier": frontier},
            goto=[self._names[target] for target in targets] or END,
        )

    async def _execute(self, state: GraphState, lineage: Lineage, iteration: int) -> Outcome:
        node = self._node
        document = expression_document(state, self._ways, node.id, {})
        mapped = {name: search(expression, document, node.id) for name, expression in node.input_mappings.items()}
        visit = Visit(
            commands=self._commands,
            ways=self._ways,
            state=state,
            lineage=lineage,
            node=node,
            iteration=iteration,
            document={**document, "mapped": mapped},
        )
        executor = EXECUTORS[node.type]
        if self._waits:
            return await _persist(lambda: executor(visit), visit)
        async with self._turns:
            return await _persist(lambda: executor(visit), visit)


async def _either(task: asyncio.Task[Outcome], event: asyncio.Event) -> None:
    """Wait for the one or the other."""
    other = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, other), return_when=asyncio.FIRST_COMPLETED)
    finally:
        other.cancel()


async def _persist(attempt: Callable[[], Awaitable[Outcome]], visit: Visit) -> Outcome:
    """Try again what fails only for now."""
    clock = asyncio.get_running_loop().time
    until, pause = clock() + PATIENCE_S, FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except PASSING as error:
            if clock() + pause > until or visit.commands.wakeups.stopping:
                raise
            log.warning(
                "a node is tried again", run_id=str(visit.lineage.run_id), node_id=visit.node.id, error=error.detail
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


def _names_of(graph: Graph) -> dict[str, str]:
    """LangGraph's names of the nodes: it reserves some characters, so they go by their numbers."""
    return {node_id: f"n{number}" for number, node_id in enumerate(graph.nodes)}


def _channels_of(graph: Graph) -> dict[str, str]:
    """LangGraph's names of the channels that keep what the nodes have made."""
    return {node_id: f"made_{number}" for number, node_id in enumerate(graph.nodes)}


def _output(ends: Mapping[str, Made]) -> Any:
    """What the run gives back: the output of its end, of several the one that was come to last."""
    last = max(ends, key=lambda node_id: (ends[node_id]["step"], node_id), default=None)
    return ends[last]["output"] if last is not None else None
