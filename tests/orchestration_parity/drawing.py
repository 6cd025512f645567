"""The graph of an orchestrator's steps."""

from typing import Any

from tests.graphs import Definition
from tests.orchestration_parity.story import Agent, Step

JOIN_HANDLES = ("completed", "completed_with_errors", "failed", "timed_out", "pending")
ENDS: dict[str, tuple[str, ...]] = {"judge": ("pass", "fail"), "replan": ("replan", "continue"), "join": JOIN_HANDLES}


def draw(agent: Agent) -> Definition:
    """Each step a node, in their order; what each node gave is the run's output."""
    drawing = _Drawing()
    drawing.node("end", "end", {"output": {"steps": "nodes"}})
    entry = drawing.chain(agent.steps, "end")
    drawing.node("start", "start", {})
    drawing.edge("start", entry)
    return {"spec_version": "2.0", "nodes": drawing.nodes, "edges": drawing.edges}


def spawn_config(step: Step) -> dict[str, Any]:
    """A spawn as a node's configuration; but for the names, as the primitive's body too."""
    more = {name: value for name, value in step.args.items() if name not in {"to", "scopes", "key"}}
    key = step.args.get("key", step.id)
    if step.kind == "spawn_run":
        named: dict[str, Any] = {**target_of(step.args["to"]), "idempotency_key": key}
    else:
        targets = [
            {**target_of(slug), "mapped_input_payload": {"n": number}} for number, slug in enumerate(step.args["to"])
        ]
        named = {"targets": targets, "idempotency_key_prefix": key}
    return {**named, "scope_subset": step.args.get("scopes", ["read"]), **more}


def target_of(slug: str) -> dict[str, str]:
    return {"target_agent_slug": slug}


class _Drawing:
    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.edges: list[dict[str, Any]] = []

    def node(
        self, node_id: str, node_type: str, config: dict[str, Any], mappings: dict[str, str] | None = None
    ) -> None:
        self.nodes.append({"id": node_id, "type": node_type, "config": config, "input_mappings": mappings or {}})

    def edge(self, source: str, target: str, handle: str | None = None) -> None:
        edge = {"id": f"e{len(self.edges)}", "source": source, "target": target, "source_handle": handle}
        self.edges.append(edge)

    def chain(self, steps: list[Step], after: str) -> str:
        """Draw steps one after the other, and say which is first."""
        for step in reversed(steps):
            self._step(step, after)
            after = step.id
        return after

    def _step(self, step: Step, after: str) -> None:
        entries = {name: self.chain(branch, after) for name, branch in step.branches.items()}
        match step.kind:
            case "spawn_run" | "spawn_group":
                self.node(step.id, step.kind, spawn_config(step))
                if "denied" not in step.branches:
                    self.edge(step.id, after)
                    return
                router = f"{step.id}_router"
                self.node(router, "router", {"routes": ["denied"]})
                self.edge(step.id, router)
                self.edge(router, entries["denied"], "denied")
                self.edge(router, after, "default")
            case "join" | "judge" | "replan":
                self.node(step.id, step.kind, step.args)
                for handle in ENDS[step.kind]:
                    self.edge(step.id, entries.get(handle, after), handle)
            case "cancel":
                config = {name: value for name, value in step.args.items() if name != "of"}
                runs = f"nodes.{step.args['of']}.spawned_run_ids[0]"
                self.node(step.id, "cancel_subtree", config, {"run_id": runs})
                self.edge(step.id, after)
