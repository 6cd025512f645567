"""The survey's orchestrator as a graph: what `survey.py` does by calls, done by nodes."""

from itertools import pairwise

from pydantic import JsonValue

from service.demo.archive import QUESTIONS
from service.demo.cast import ORCHESTRATOR_SCOPES, Role, Tool

_SURVEYED = ("completed", "completed_with_errors")
_NOT_SURVEYED = ("failed", "timed_out")


def survey_graph(pipeline_id: str) -> dict[str, JsonValue]:
    """Spawn a child for each folder of the input, wait for all, have the report kept, ask about it, and tell.

    Args:
        pipeline_id: where the report is kept.
    """
    asks = [f"ask_{number}" for number in range(1, len(QUESTIONS) + 1)]
    spawning: dict[str, JsonValue] = {
        "targets": [{"target_agent_slug": Role.FOLDER}],
        "for_each": "input.folders",
        "scope_subset": list(ORCHESTRATOR_SCOPES),
        "join_mode": "all",
        "idempotency_key_prefix": "folders-0",
    }
    keeping: dict[str, JsonValue] = {"tool_slug": Tool.KEEP, "input": {"pipeline_id": pipeline_id}}
    telling: dict[str, JsonValue] = {
        "folders": "nodes.wait.member_run_ids",
        "kept": "nodes.keep",
        "answers": f"[{', '.join(f'nodes.{ask}' for ask in asks)}]",
    }
    nodes: list[JsonValue] = [
        {"id": "start", "type": "start"},
        {"id": "folders", "type": "spawn_group", "config": spawning},
        {"id": "wait", "type": "join"},
        {"id": "keep", "type": "tool_call", "config": keeping, "input_mappings": {"runs": "nodes.wait.member_run_ids"}},
    ]
    for ask, question in zip(asks, QUESTIONS, strict=True):
        asked: dict[str, JsonValue] = {"question": question.text, "query": question.query}
        nodes.append({"id": ask, "type": "tool_call", "config": {"tool_slug": Tool.ASK, "input": asked}})
    nodes.append({"id": "end", "type": "end", "config": {"output": telling}})
    ways: list[tuple[str, str, str | None]] = [
        ("start", "folders", None),
        ("folders", "wait", None),
        *(("wait", "keep", handle) for handle in _SURVEYED),
        *(("wait", "end", handle) for handle in _NOT_SURVEYED),
        ("wait", "wait", "pending"),
    ]
    chain = ["keep", *asks, "end"]
    ways += [(one, other, None) for one, other in pairwise(chain)]
    edges: list[JsonValue] = [
        {"id": f"e{number}", "source": source, "target": target, "source_handle": handle}
        for number, (source, target, handle) in enumerate(ways, 1)
    ]
    return {"spec_version": "2.0", "nodes": nodes, "edges": edges}
