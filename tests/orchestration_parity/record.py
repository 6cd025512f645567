"""What a play leaves behind, told without ids, times and surface, so that two plays can be laid side by side.

A drain writes down what its fence has decided, at its own time and in its own portions; so the cancellations of single
runs are told apart from the order of everything else.
"""

import re
from typing import Any
from uuid import UUID

from tests.orchestration_parity.stage import Stage

ID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")

RUNS = """
SELECT r.run_id, r.parent_run_id, r.parent_node_id, r.depth, r.spawn_key, r.ordinal, a.slug, r.status, r.background,
  r.effective_scopes, r.failure_policy, r.timeout_s, r.children_count, r.replan_attempts, r.orchestration_group_id
FROM agent_runs r JOIN agents a USING (tenant_id, agent_id)
WHERE r.tenant_id = $1 AND r.root_run_id = $2 ORDER BY r.spawned_seq, r.ordinal
"""
GROUPS = """
SELECT group_id, orchestrator_run_id, parent_node_id, spawn_key_prefix, status, join_mode, failure_policy,
  quorum_threshold, timeout_s, size, success_count, failure_count, propagation_reason, effective_scopes,
  decided_seq IS NOT NULL AS decided
FROM orchestration_groups WHERE tenant_id = $1 AND root_run_id = $2 ORDER BY spawned_seq
"""
EVENTS = """
SELECT type, run_id, subjects, data FROM run_events WHERE tenant_id = $1 AND root_run_id = $2 ORDER BY seq
"""
# What the test itself reads leaves records, too.
DECISIONS = """
SELECT action, outcome, reasons, caller_run_id FROM policy_decisions
WHERE tenant_id = $1 AND root_run_id = $2 AND action <> 'query_tree' ORDER BY created_at, decision_id
"""

TOLD: dict[str, tuple[str, ...]] = {
    "spawn_run": ("status", "reasons", "effective_scope_subset", "failure_policy", "timeout_s"),
    "spawn_group": ("status", "reasons", "effective_scope_subset", "failure_policy", "timeout_s", "join_mode"),
    "join": ("status", "complete", "mode", "quorum_threshold", "timeout_s", "success_count", "failure_count"),
    "judge": ("outcome",),
    "replan": ("needs_replan", "suggested_action", "failed_count", "total_children", "reasons"),
    "cancel": ("cancelled_count", "include_root", "reason"),
}


async def record(stage: Stage, told: dict[str, Any], ended_by: str | None) -> dict[str, Any]:
    """Everything of a play that the two surfaces are to have in common."""
    tree = (UUID(stage.kit.tenant_id), UUID(stage.boss.run_id))
    async with stage.database.read() as session:
        runs = await session.driver.fetch(RUNS, *tree)
        groups = await session.driver.fetch(GROUPS, *tree)
        events = await session.driver.fetch(EVENTS, *tree)
        decisions = await session.driver.fetch(DECISIONS, *tree)
    names = _names(runs, groups)
    ordered, cancelled = _split([dict(event) for event in events])
    ended = next(run["status"] for run in runs if run["spawn_key"] == "o")
    steps = {step_id: _told(stage, step_id, answer) for step_id, answer in told.items() if _is_step(step_id)}
    document: dict[str, Any] = {
        # Who is cancelled is told so at the next call that it makes; a graph makes none.
        "orchestrator": {"status": ended, "ended_by": ended_by if ended != "cancelled" else None},
        # What a run that did not complete was answered on the way is in the decisions and events.
        "steps": steps if ended == "completed" else {},
        "runs": [dict(run) for run in runs],
        "groups": [dict(group) for group in groups],
        # Orchestrators at work at once take no turns; each one's own decisions have their order.
        "decisions": sorted(
            (dict(decision) for decision in decisions), key=lambda one: names[str(one["caller_run_id"])]
        ),
        "events": ordered,
        "cancelled": cancelled,
    }
    plain = _plain(document, names)
    plain["cancelled"] = sorted(plain["cancelled"], key=str)
    result: dict[str, Any] = plain
    return result


def _names(runs: list[Any], groups: list[Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for run in runs:
        above = names.get(str(run["parent_run_id"]))
        names[str(run["run_id"])] = f"{above}/{run['spawn_key']}" if above else "boss"
    for group in groups:
        names[str(group["group_id"])] = f"group {names[str(group['orchestrator_run_id'])]}/{group['spawn_key_prefix']}"
    return names


def _split(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    ordered: list[dict[str, Any]] = []
    cancelled: list[dict[str, Any]] = []
    for event in events:
        data = event["data"]
        if event["type"] == "orchestration.cancellation_propagation" and data["cancelled_run_ids"]:
            told = {"reason": data["reason"], "include_root": data["include_root"]}
            cancelled.extend({"child_run_id": run_id, **told} for run_id in data["cancelled_run_ids"])
            continue
        if event["type"] != "orchestration.child_lifecycle":
            ordered.append(event)
            continue
        children = data.get("children") or [data]
        cancelled.extend({**child, "status": "cancelled"} for child in children if child["status"] == "cancelled")
        if any(child["status"] != "cancelled" for child in children):
            ordered.append(event)
    return ordered, cancelled


def _is_step(step_id: str) -> bool:
    return step_id not in {"start", "end"} and not step_id.endswith("_router")


def _told(stage: Stage, step_id: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer.get(name) for name in TOLD[stage.scenario.step(step_id).kind]}


def _plain(value: Any, names: dict[str, str]) -> Any:
    match value:
        case dict():
            return {
                str(_plain(key, names)): _plain(item, names)
                for key, item in value.items()
                if key not in {"surface", "decision_id", "cancellation_id", "seq", "fence_seq"}
            }
        case list() | tuple():
            return [_plain(item, names) for item in value]
        case UUID() | str():
            text = str(value)
            if text in names:
                return names[text]
            if ID.match(text):
                return "id"
            # Messages name ids and the surface.
            for known, name in names.items():
                text = text.replace(known, name)
            return re.sub(r"option_[ab]_\w+|[0-9a-f]{8}-[0-9a-f-]{27}", "…", text)
        case _:
            return value
