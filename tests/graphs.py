"""What tests of running graphs say in a line or two: a graph, its agent, its run, and how that ended."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tests.kit import ROOT_SCOPES, Kit, Run, done

Definition = dict[str, Any]
PLENTY: dict[str, Any] = {"max_fanout": 100_000, "max_children_total": 100_000, "max_depth": 100}


def node(node_id: str, node_type: str, mappings: Mapping[str, str] | None = None, **config: Any) -> dict[str, Any]:
    return {"id": node_id, "type": node_type, "config": config, "input_mappings": dict(mappings or {})}


def graph(nodes: Sequence[dict[str, Any]], *edges: str) -> Definition:
    """A graph with edges written as `a -> b` or `a:handle -> b`; a start and an end called so are added."""
    made = [node("start", "start"), *nodes, node("end", "end")]
    if any(one["id"] == "end" for one in nodes):
        made.pop()
    drawn = []
    for number, edge in enumerate(edges):
        source, target = (part.strip() for part in edge.split("->"))
        source, _, handle = source.partition(":")
        drawn.append({"id": f"e{number}", "source": source, "target": target, "source_handle": handle or None})
    return {"spec_version": "2.0", "nodes": made, "edges": drawn}


def joined(join: str, target: str = "end") -> list[str]:
    """Edges that lead each outcome of a join to one node."""
    handles = ("completed", "completed_with_errors", "failed", "timed_out", "pending")
    return [f"{join}:{handle} -> {target}" for handle in handles]


async def graph_agent(
    kit: Kit,
    definition: Definition,
    *,
    slug: str = "graph",
    may_spawn: Sequence[str] = ("worker",),
    publish: bool = True,
    **policy: Any,
) -> str:
    """A published agent that runs a graph."""
    body = {"slug": slug, "name": slug, "kind": "graph", "graph_definition": definition}
    agent_id: str = done(await kit.api.post("/agents", body))["agent_id"]
    done(await kit.api.put(f"/agents/{agent_id}/orchestrator-policy", {**PLENTY, **policy}))
    entries = [{"target_agent_slug": target} for target in may_spawn]
    done(await kit.api.put(f"/agents/{agent_id}/allowlist", {"entries": entries}))
    if publish:
        done(await kit.api.post(f"/agents/{agent_id}/publish"))
    return agent_id


async def start(kit: Kit, agent_id: str, run_input: Mapping[str, Any] | None = None, **more: object) -> Run:
    return await kit.root(agent_id, ROOT_SCOPES, input=dict(run_input or {}), **more)


async def ended(kit: Kit, run_id: str, *, within_s: float = 30.0) -> dict[str, Any]:
    """The run, once it has ended."""
    async with asyncio.timeout(within_s):
        while True:
            run = done(await kit.api.get(f"/agents/runs/{run_id}"))
            if run["status"] in {"completed", "failed", "cancelled"}:
                return run
            await asyncio.sleep(0.02)


async def play(kit: Kit, *outcomes: str, slug: str = "worker", within_s: float = 20.0) -> list[dict[str, Any]]:
    """Claim runs one by one, as they come, and end each with the next outcome; `hold` leaves it running."""
    played = []
    async with asyncio.timeout(within_s):
        for outcome in outcomes:
            claimed: list[dict[str, Any]] = []
            while not claimed:
                body = {"agent_slugs": [slug], "max_runs": 1, "lease_s": 60, "wait_s": 5}
                claimed = done(await kit.api.post("/work/claim", body))["runs"]
            (run,) = claimed
            played.append(run)
            if outcome != "hold":
                report = {"run_id": run["run_id"], "lease": run["lease"], "status": outcome}
                done(await kit.api.post("/work/complete", {**report, "output": {"was": outcome}}))
    return played
