"""Runs and trees as their readers see them."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query
from pydantic import Field, StringConstraints

from kernel.commands.query_tree import QueryTree, QueryTreeCommand, ReadTree
from kernel.commands.read_run import ReadRun, RunView
from kernel.domain.events import Surface
from kernel.domain.run import RunStatus
from service.dependencies import ExecuteDep, ReadDep, ServicesDep
from service.nested_tree import flat_node, tree_answer
from service.wire import Answer, Body, Json, JsonObject, make_router

router = make_router("runs")

Status = Literal["queued", "running", "paused", "completed", "failed", "cancelled"]


class TreeNode(Answer):
    """A run in a tree, with its effective status."""

    run_id: UUID
    agent_id: UUID
    agent_name: str
    status: Status
    depth: int
    parent_run_id: UUID | None
    parent_node_id: str | None
    spawn_key: str | None
    orchestration_group_id: UUID | None
    created_at: datetime


class GroupMember(Answer):
    """A member of a group; `id` is its run."""

    id: UUID
    run_id: UUID
    ordinal: int
    status: Status


class TreeGroup(Answer):
    """A group under the run that spawned it."""

    group_id: UUID
    status: Literal["running", "completed", "completed_with_errors", "failed", "timed_out", "cancelled", "empty"]
    failure_policy: str
    join_mode: str
    quorum_threshold: int | None
    timeout_s: int
    parent_node_id: str | None
    members: list[GroupMember]


class NestedNode(TreeNode):
    """A run with what is below it."""

    children: list["NestedNode"]
    groups: list[TreeGroup]


class FlatNode(TreeNode):
    """A run in a page, with its place in the order of the tree."""

    agent_slug: str
    ordinal: int
    spawned_seq: int
    started_seq: int | None
    finalized_seq: int | None
    started_at: datetime | None
    finalized_at: datetime | None


class TreeAnswer(Answer):
    """A tree, nested up to 1,000 nodes. Beyond that `tree` is null, and the first page of nodes is there instead."""

    root_run_id: UUID
    tree: NestedNode | None
    node_count: int
    truncated: bool
    nodes: list[FlatNode] | None = None
    next_cursor: str | None = None


class RollupAnswer(Answer):
    """A subtree, counted; agents by their ids."""

    total: int
    by_status: dict[str, int]
    by_depth: dict[str, int]
    by_agent: dict[str, int]


class TreePageAnswer(Answer):
    """A page in tree order; without `next_cursor` it is the last one."""

    root_run_id: UUID
    run_id: UUID
    nodes: list[FlatNode]
    next_cursor: str | None
    rollup: RollupAnswer | None = None


class QueryTreeBody(Body):
    """What is to be shown. `max_depth` counts from the run; `status` is the effective one."""

    run_id: UUID
    max_depth: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    status: RunStatus | None = None
    cursor: Annotated[str, StringConstraints(max_length=400)] | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 200
    rollup: bool = False


class RunCancellation(Answer):
    """The fence that cancelled a run."""

    cancellation_id: UUID
    reason: str


class RunAnswer(Answer):
    """A run. `attempt` counts the leases of one that waits for workers."""

    run_id: UUID
    root_run_id: UUID
    parent_run_id: UUID | None
    parent_node_id: str | None
    depth: int
    spawn_key: str | None
    orchestration_group_id: UUID | None
    agent_id: UUID
    agent_slug: str
    agent_name: str
    status: Status
    surface: str
    effective_scopes: list[str]
    children_count: int
    timeout_s: int | None
    failure_policy: str
    created_at: datetime
    started_at: datetime | None
    finalized_at: datetime | None
    attempt: int
    input: JsonObject
    output: object
    error: object
    cancellation: RunCancellation | None
    decision_id: UUID | None
    run_tree: TreeAnswer | None = None


@router.get("/agents/runs/{run_id}", response_model=RunAnswer)
async def read_run(
    run_id: UUID,
    principal: ReadDep,
    services: ServicesDep,
    include_tree: Annotated[bool, Query(description="Answer with the tree around it, too.")] = False,
) -> Json:
    """A run, with the status that holds: one under a fence is cancelled already."""
    view = await ReadRun(services.database, services.engine).execute(principal, run_id, include_tree=include_tree)
    answer = _run(view)
    if view.tree is not None:
        answer["run_tree"] = tree_answer(view.tree)
    return Json(answer)


@router.get("/agents/runs/{run_id}/tree", response_model=TreeAnswer)
async def read_tree(run_id: UUID, principal: ReadDep, services: ServicesDep) -> Json:
    """The tree of a run's root; with a run's token, the part of it at and below that run."""
    return Json(tree_answer(await ReadTree(services.database, services.engine).execute(principal, run_id)))


@router.get("/internal/orchestration/runs/{run_id}/tree", response_model=TreeAnswer, tags=["primitives"])
async def read_tree_as_primitive(run_id: UUID, principal: ExecuteDep, services: ServicesDep) -> Json:
    """The tree of a run's root, for runtimes."""
    tree = await ReadTree(services.database, services.engine).execute(principal, run_id, Surface.RUNTIME_PRIMITIVES)
    return Json(tree_answer(tree))


@router.post("/internal/orchestration/query-tree", response_model=TreePageAnswer, tags=["primitives"])
async def query_tree(body: QueryTreeBody, principal: ExecuteDep, services: ServicesDep) -> Json:
    """A run and all below it, in pages, in the order in which they were spawned."""
    page = await QueryTreeCommand(services.database, services.engine).execute(
        principal,
        QueryTree(
            run_id=body.run_id,
            max_depth=body.max_depth,
            status=body.status,
            cursor=body.cursor,
            limit=body.limit,
            rollup=body.rollup,
        ),
    )
    answer: dict[str, object] = {
        "root_run_id": page.root_run_id,
        "run_id": page.run_id,
        "nodes": [flat_node(node) for node in page.nodes],
        "next_cursor": page.next_cursor,
    }
    if page.rollup is not None:
        answer["rollup"] = {
            "total": page.rollup.total,
            "by_status": dict(page.rollup.by_status),
            "by_depth": dict(page.rollup.by_depth),
            "by_agent": {str(agent_id): count for agent_id, count in page.rollup.by_agent.items()},
        }
    return Json(answer)


def _run(view: RunView) -> dict[str, object]:
    row = view.row
    names = (
        "run_id", "root_run_id", "parent_run_id", "parent_node_id", "depth", "spawn_key", "orchestration_group_id",
        "agent_id", "agent_slug", "agent_name", "surface", "effective_scopes", "children_count", "timeout_s",
        "failure_policy", "created_at", "started_at", "finalized_at", "input", "output", "error", "decision_id",
    )  # fmt: skip
    return {
        **{name: row[name] for name in names},
        "status": view.status,
        "attempt": row["attempt"] or 0,
        "cancellation": (
            {"cancellation_id": view.fence.cancellation_id, "reason": view.fence.reason}
            if view.fence is not None
            else None
        ),
    }
