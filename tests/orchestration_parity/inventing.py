"""Scenarios that nobody thought of, in the format of those that somebody did.

What is drawn needs no knowledge of the rules: whether a spawn is denied, a group decided or a run ended is found out by
playing it. Only what would make two plays of it race with time or with each other is left out.
"""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tests.orchestration_parity.story import DEFAULT_SCOPES, KINDS

Document = dict[str, Any]

MODES = ("all", "best_effort", "fail_fast", "quorum", "first_success")
HANDLES = ("completed", "completed_with_errors", "failed", "timed_out")
MOST_STEPS = 4
MOST_NESTED = 2
# Without `agents.execute` a run's own token opens no primitive: that is for the route to say, and no decision.
FEWER_SCOPES = ["agents.execute", "read"]
# Longer than any play takes, and shorter than anybody waits.
TIMED_S = 1

outcomes = st.sampled_from(["completed"] * 4 + ["failed"] * 3 + ["cancelled", "hold", "release"])
scopes = st.sampled_from([["read"]] * 5 + [["read", "write"], ["admin", "read"], ["write"], []])
names = st.sampled_from(["worker"] * 5 + ["other"])
policies = st.fixed_dictionaries(
    {},
    optional={
        "max_fanout": st.integers(0, 5),
        "max_children_total": st.integers(1, 6),
        "max_depth": st.integers(1, 3),
        "allowed_scope_subset": st.sampled_from([[], ["read"], ["read", "write"]]),
        "default_failure_policy": st.sampled_from(["best_effort", "fail_fast"]),
        "enforce_published_only": st.booleans(),
        "parent_close_policy": st.sampled_from(["continue", "cancel"]),
        "is_active": st.sampled_from([True, True, True, False]),
    },
)
# What changes under an orchestrator that waits; one of them a scenario.
turns = st.one_of(
    st.just("flag_off"),
    st.just("cancel_orchestrator"),
    st.sampled_from([{"unpublish": "worker"}, {"allow": []}, {"allow": ["other"]}]),
    policies.map(lambda policy: {"policy": policy}),
)


@st.composite
def scenario_documents(draw: st.DrawFn) -> Document:
    """A scenario; what is played in it is a suggestion."""
    steps = draw(_steps(MOST_STEPS, MOST_NESTED, may_lead=True))
    joins = [step for step in _all(steps) if "join" in step]
    leads = any("lead" in step["spawn_group"]["to"] for step in _all(steps) if "spawn_group" in step)
    # Nothing turns while a lead is at work: a graph does not wait for its turn.
    if joins and not leads and draw(st.integers(0, 3)) == 0:
        play = draw(st.sampled_from(joins)).setdefault("play", [])
        play.insert(draw(st.integers(0, len(play))), draw(turns))
    _number(steps, "s")
    allow = draw(st.sampled_from([["worker", "other"]] * 6 + [["worker"], ["tag:both"], []]))
    agents: Document = {"other": draw(_others), "worker": {"tags": ["both"]}}
    if leads:
        agents["lead"] = draw(_leads())
        _number(agents["lead"]["steps"], "l")
        allow = [*allow, "lead"]
    return {
        "name": "an invented scenario",
        "agents": agents,
        "policy": draw(st.one_of(st.just({}), policies)),
        "allow": allow,
        "scopes": draw(st.sampled_from([DEFAULT_SCOPES, DEFAULT_SCOPES, FEWER_SCOPES])),
        "steps": steps,
        "improvised": True,
    }


_others = st.fixed_dictionaries(
    {}, optional={"published": st.sampled_from([True, True, False]), "tags": st.just(["both"])}
)


@st.composite
def _leads(draw: st.DrawFn) -> Document:
    return {
        "steps": draw(_steps(2, 1, may_lead=False)),
        "policy": draw(st.one_of(st.just({}), policies)),
        "allow": draw(st.sampled_from([["worker", "other"], ["worker"], []])),
    }


@st.composite
def _steps(draw: st.DrawFn, most: int, nested: int, *, may_lead: bool) -> list[Document]:
    """Steps that make sense one after the other; each tells what may follow it."""
    steps: list[Document] = []
    for _ in range(draw(st.sampled_from([number for number in range(1, most + 1) for _ in range(number)]))):
        kinds = ["spawn_run", "group", "group"]
        if steps:
            kinds += 2 * _following(steps)
        if may_lead and not any("lead" in step.get("spawn_group", {}).get("to", ()) for step in steps):
            kinds += draw(st.sampled_from([[], [], ["lead"]]))
        steps += draw(_step(draw(st.sampled_from(kinds)), nested, steps))
    return steps


def _following(steps: Sequence[Document]) -> list[str]:
    kinds = []
    if "join" in steps[-1] and "when" not in steps[-1]:
        kinds += ["judge", "judge", "replan", "replan", "join"]
    if "replan" in steps[-1] and not _branches(steps[-1]):
        kinds += ["judge", "replan"]
    if any(_surely_spawns(step) for step in steps):
        kinds.append("cancel")
    return kinds


@st.composite
def _step(draw: st.DrawFn, kind: str, nested: int, before: Sequence[Document]) -> list[Document]:
    match kind:
        case "group":
            return draw(_joined(nested))
        case "lead":
            return [{"spawn_group": {"to": ["lead"], "scopes": ["agents.execute", "read"]}}, {"join": {}}]
        case "join":
            step: Document = {"join": draw(_terms(2)), "play": draw(st.lists(outcomes, max_size=3))}
        case "spawn_run":
            step = draw(_branching({"spawn_run": draw(_run())}, ("denied",), nested))
        case "judge":
            step = draw(_branching({"judge": {}}, ("pass", "fail"), nested))
        case "replan":
            step = draw(_branching({"replan": {}}, ("again", "continue"), nested))
        case _:
            numbers = [number for number, step in enumerate(before) if _surely_spawns(step)]
            # Which step that is, is known when all are numbered.
            step = {"cancel": {"of": before[draw(st.sampled_from(numbers))], **draw(_cancels)}}
    return [step]


_cancels = st.fixed_dictionaries({}, optional={"reason": st.just("not needed any more"), "include_root": st.booleans()})


@st.composite
def _run(draw: st.DrawFn) -> Document:
    more = {
        "timeout_s": st.just(600),
        "failure_policy": st.sampled_from(["fail_fast", "best_effort"]),
        "mapped_input_payload": st.just({"a": [1, {"b": None}]}),
        "start_background": st.sampled_from([True, False]),
    }
    return {"to": draw(names), "scopes": draw(scopes), **draw(st.fixed_dictionaries({}, optional=more))}


@st.composite
def _joined(draw: st.DrawFn, nested: int) -> list[Document]:
    """A group, mostly with its join."""
    members = draw(st.lists(names, max_size=4))
    asked: Document = {"to": members, "scopes": draw(scopes), **draw(_terms(len(members)))}
    if "mode" in asked:
        asked["join_mode"] = asked.pop("mode")
    if draw(st.integers(0, 3)) == 0:
        asked["failure_policy"] = draw(st.sampled_from(["fail_fast", "best_effort"]))
    timed = draw(st.integers(0, 11)) == 0
    if timed:
        asked["timeout_s"] = TIMED_S
    group = draw(_branching({"spawn_group": asked}, ("denied",), nested))
    if not timed and draw(st.integers(0, 5)) == 0:
        return [group]
    again = draw(_terms(len(members))) if draw(st.integers(0, 3)) == 0 else {}
    join: Document = {"join": again, "play": draw(st.lists(outcomes, max_size=len(members) + 1))}
    if nested and draw(st.integers(0, 3)) == 0:
        handles = draw(
            st.lists(st.sampled_from(["completed", "completed_with_errors", "failed", "timed_out"]), max_size=2)
        )
        join["when"] = {handle: draw(_steps(1, nested - 1, may_lead=False)) for handle in handles}
    return [group, join]


@st.composite
def _terms(draw: st.DrawFn, size: int) -> Document:
    mode = draw(st.sampled_from([None, None, *MODES]))
    if mode is None:
        return {}
    return {"mode": mode, **({"quorum_threshold": draw(st.integers(1, size + 1))} if mode == "quorum" else {})}


@st.composite
def _branching(draw: st.DrawFn, step: Document, names: tuple[str, ...], nested: int) -> Document:
    for name in names:
        if draw(st.integers(0, 2)) == 0:
            step[name] = draw(_steps(1, nested - 1, may_lead=False)) if nested and draw(st.booleans()) else []
    return step


def _number(steps: Sequence[Document], letter: str) -> None:
    """Give each step its id, and say by it what is cancelled."""
    everything = _all(steps)
    for number, step in enumerate(everything, 1):
        _asked(step)["id"] = f"{letter}{number}"
    for step in everything:
        if "cancel" in step:
            step["cancel"]["of"] = _asked(step["cancel"]["of"])["id"]


def _asked(step: Document) -> Document:
    asked: Document = next(step[kind] for kind in KINDS if kind in step)
    return asked


def _branches(step: Document) -> list[list[Document]]:
    named = [step[name] for name in ("denied", "pass", "fail", "again", "continue") if name in step]
    return [*step.get("when", {}).values(), *named]


def _all(steps: Sequence[Document]) -> list[Document]:
    return [one for step in steps for one in (step, *(below for branch in _branches(step) for below in _all(branch)))]


def _surely_spawns(step: Document) -> bool:
    """Whether there are children of it wherever it has been passed: a denial would have ended the run."""
    asked = step.get("spawn_run") or step.get("spawn_group")
    return asked is not None and "denied" not in step and asked["to"] not in ([], ["lead"])
