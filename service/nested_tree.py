"""A tree as nested JSON, however deep: written without recursion, because JSON writers stop at some depth."""

from collections.abc import Sequence
from uuid import UUID

import orjson

from kernel.commands.query_tree import Tree
from kernel.domain.lineage import GroupNode, Node


def flat_node(node: Node) -> dict[str, object]:
    """A node as the flat pages show it."""
    return {
        **_fields(node),
        "agent_slug": node.agent_slug,
        "ordinal": node.ordinal,
        "spawned_seq": node.spawned_seq,
        "started_seq": node.started_seq,
        "finalized_seq": node.finalized_seq,
        "started_at": node.started_at,
        "finalized_at": node.finalized_at,
    }


def tree_answer(tree: Tree) -> dict[str, object]:
    """A tree as its readers get it: nested, or the first flat page of one that is too large."""
    if tree.truncated:
        return {
            "root_run_id": tree.root_run_id,
            "tree": None,
            "node_count": tree.node_count,
            "truncated": True,
            "nodes": [flat_node(node) for node in tree.nodes],
            "next_cursor": tree.next_cursor,
        }
    return {
        "root_run_id": tree.root_run_id,
        "tree": orjson.Fragment(_nested(tree)),
        "node_count": tree.node_count,
        "truncated": False,
    }


def _nested(tree: Tree) -> bytes:
    children: dict[UUID, list[Node]] = {}
    members: dict[UUID, list[Node]] = {}
    groups: dict[UUID, list[GroupNode]] = {}
    for node in tree.nodes:
        if node.parent_run_id is not None:
            children.setdefault(node.parent_run_id, []).append(node)
        if node.orchestration_group_id is not None:
            members.setdefault(node.orchestration_group_id, []).append(node)
    for group in tree.groups:
        groups.setdefault(group.orchestrator_run_id, []).append(group)
    top = next(node for node in tree.nodes if node.run_id == tree.top_run_id)
    written: list[bytes] = []
    # What is left to write, the next at the end: a node to be opened, or bytes that are final.
    pending: list[Node | bytes] = [top]
    while pending:
        item = pending.pop()
        if isinstance(item, bytes):
            written.append(item)
            continue
        written.append(_dump(_fields(item))[:-1] + b',"children":[')
        shown = [_group(group, members.get(group.group_id, ())) for group in groups.get(item.run_id, ())]
        pending.append(b'],"groups":' + _dump(shown) + b"}")
        below = children.get(item.run_id, [])
        for number, child in enumerate(reversed(below), start=1):
            pending.append(child)
            if number < len(below):
                pending.append(b",")
    return b"".join(written)


def _dump(value: object) -> bytes:
    # str: asyncpg's ids are a subclass of UUID, which orjson does not take for one.
    return orjson.dumps(value, default=str, option=orjson.OPT_UTC_Z)


def _fields(node: Node) -> dict[str, object]:
    return {
        "run_id": node.run_id,
        "agent_id": node.agent_id,
        "agent_name": node.agent_name,
        "status": node.status,
        "depth": node.depth,
        "parent_run_id": node.parent_run_id,
        "parent_node_id": node.parent_node_id,
        "spawn_key": node.spawn_key,
        "orchestration_group_id": node.orchestration_group_id,
        "created_at": node.created_at,
    }


def _group(group: GroupNode, members: Sequence[Node]) -> dict[str, object]:
    return {
        "group_id": group.group_id,
        "status": group.status,
        "failure_policy": group.failure_policy,
        "join_mode": group.join_mode,
        "quorum_threshold": group.quorum_threshold,
        "timeout_s": group.timeout_s,
        "parent_node_id": group.parent_node_id,
        "members": [
            {"id": member.run_id, "run_id": member.run_id, "ordinal": member.ordinal, "status": member.status}
            for member in sorted(members, key=lambda member: member.ordinal)
        ],
    }
