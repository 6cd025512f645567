"""Scenarios as they are written in YAML.

A scenario tells what one orchestrator does, step by step, and what its children do while it waits for them:

    name: what it shows
    policy: the orchestrator's policy, where it differs from a generous one
    allow: [worker]             # slugs, or `tag:...`
    agents: {worker: {tags: [], published: true}, lead: {steps: [...], policy: ..., allow: ...}}
    scopes: [agents.execute, read, write]
    steps:
      - spawn_run: {to: worker, scopes: [read]}
        denied: [steps instead]
      - spawn_group: {to: [worker, worker], scopes: [read], join_mode: quorum, quorum_threshold: 1}
      - join: {mode: all}
        play: [completed, failed, hold, {unpublish: worker}, lead]
        when: {failed: [steps]}
      - judge: {}
        pass: [steps]
        fail: [steps]
      - replan: {}
        again: [steps]
        continue: [steps]
      - cancel: {of: s1}
    repeat: [s1]                # calls that are made once more at the end
    ends: completed             # how the orchestrator is expected to end, or the code that ended it
    compiles: false             # for a graph that would be refused before it runs
    improvised: true            # what is played is a suggestion: see `Client`; then nothing is expected of its end

Steps are numbered `s1`, `s2` … in the order in which they are written, unless they have an `id`; that is the node in
the graph, the `parent_node_id` of the primitive, and the key of both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SCENARIOS = Path(__file__).parent / "scenarios"
# How the branches of a step are written, and the outcomes that they stand for.
BRANCHES = {
    "judge": {"pass": "pass", "fail": "fail"},
    "replan": {"again": "replan", "continue": "continue"},
    "spawn_run": {"denied": "denied"},
    "spawn_group": {"denied": "denied"},
}
KINDS = ("spawn_run", "spawn_group", "join", "judge", "replan", "cancel")
DEFAULT_SCOPES = ["agents.execute", "read", "runs.read", "write"]


@dataclass
class Step:
    """One thing that an orchestrator does. `branches` are the steps that follow some outcomes only."""

    id: str
    kind: str
    args: dict[str, Any]
    branches: dict[str, list["Step"]] = field(default_factory=dict)
    play: list[Any] = field(default_factory=list)


@dataclass
class Agent:
    """An agent of a scenario; one with steps is an orchestrator."""

    slug: str
    published: bool = True
    tags: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    policy: dict[str, Any] = field(default_factory=dict)
    allow: list[str] = field(default_factory=lambda: ["worker"])


@dataclass
class Scenario:
    name: str
    agents: dict[str, Agent]
    scopes: list[str]
    repeat: list[str]
    ends: str
    compiles: bool
    improvised: bool = False

    @property
    def orchestrator(self) -> Agent:
        return self.agents["orchestrator"]

    def settle(self, performed: dict[str, list[Any]], *, repeat: list[str], ends: str) -> None:
        """Take over what was improvised: what was played in each join, what can be repeated, and how it ended."""
        for agent in self.agents.values():
            for step in walk(agent.steps):
                step.play = performed.get(step.id, [])
        self.repeat, self.ends = repeat, ends

    def step(self, step_id: str) -> Step:
        return next(step for agent in self.agents.values() for step in walk(agent.steps) if step.id == step_id)


def walk(steps: list[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        for branch in step.branches.values():
            yield from walk(branch)


def load() -> list[Scenario]:
    """Every scenario of every file."""
    found = [
        scenario_of(document)
        for path in sorted(SCENARIOS.glob("*.yaml"))
        for document in yaml.safe_load(path.read_text())
    ]
    names = [scenario.name for scenario in found]
    assert len(names) == len(set(names)), "two scenarios have one name"
    return found


def scenario_of(document: dict[str, Any]) -> Scenario:
    """A scenario as it is written."""
    known = {"name", "policy", "allow", "agents", "scopes", "steps", "repeat", "ends", "compiles", "improvised"}
    assert set(document) <= known, (document["name"], set(document) - known)
    agents = {"worker": Agent("worker")}
    for slug, told in (document.get("agents") or {}).items():
        agents[slug] = Agent(slug, **{**told, "steps": _Numbered(slug[0]).steps(told.get("steps") or [])})
    agents["orchestrator"] = Agent(
        "orchestrator",
        steps=_Numbered("s").steps(document["steps"]),
        policy=document.get("policy") or {},
        allow=document.get("allow", ["worker"]),
    )
    return Scenario(
        document["name"],
        agents,
        document.get("scopes") or DEFAULT_SCOPES,
        document.get("repeat") or [],
        document.get("ends", "completed"),
        document.get("compiles", True),
        document.get("improvised", False),
    )


def tell(scenario: Scenario) -> dict[str, Any]:
    """A scenario as it would be written; the inverse of `scenario_of`."""
    boss = scenario.orchestrator
    agents = {
        agent.slug: {
            **({"published": False} if not agent.published else {}),
            **({"tags": agent.tags} if agent.tags else {}),
            **({"steps": _told(agent.steps), "policy": agent.policy, "allow": agent.allow} if agent.steps else {}),
        }
        for agent in scenario.agents.values()
        if agent is not boss and agent != Agent("worker")
    }
    return {
        "name": scenario.name,
        **({"agents": agents} if agents else {}),
        **({"policy": boss.policy} if boss.policy else {}),
        "allow": boss.allow,
        "scopes": scenario.scopes,
        "steps": _told(boss.steps),
        **({"repeat": scenario.repeat} if scenario.repeat else {}),
        "ends": scenario.ends,
        **({} if scenario.compiles else {"compiles": False}),
        **({"improvised": True} if scenario.improvised else {}),
    }


def _told(steps: list[Step]) -> list[dict[str, Any]]:
    return [
        {
            step.kind: {"id": step.id, **step.args},
            **({"play": step.play} if step.play else {}),
            **({"when": {name: _told(branch) for name, branch in step.branches.items()}} if step.branches else {}),
        }
        for step in steps
    ]


class _Numbered:
    def __init__(self, letter: str) -> None:
        self._letter = letter
        self._count = 0

    def steps(self, documents: list[dict[str, Any]]) -> list[Step]:
        return [self._step(dict(document)) for document in documents]

    def _step(self, document: dict[str, Any]) -> Step:
        (kind,) = (key for key in document if key in KINDS and isinstance(document[key], dict))
        args = dict(document.pop(kind))
        self._count += 1
        step = Step(args.pop("id", f"{self._letter}{self._count}"), kind, args, play=document.pop("play", []))
        told = document.pop("when", {}) | {
            outcome: document.pop(name) for name, outcome in BRANCHES.get(kind, {}).items() if name in document
        }
        step.branches = {name: self.steps(steps or []) for name, steps in told.items()}
        assert not document, document
        return step
