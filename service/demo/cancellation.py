"""A subtree of slow runs is cancelled while they work, and the proof that nothing below the fence ran on."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue
from watchfiles import awatch

from service.demo.cast import READ_SCOPE, Role
from service.demo.catalog import SLOW_RUNS
from service.demo.client import RefusedError
from service.demo.groups import Orchestrator, join
from service.demo.journal import Entry, read_journals
from service.demo.refusals import spawn_planner
from service.demo.survey import finish_run
from service.demo.wire import Cancellation, Run, SpawnedGroup, TreeNode, TreePage

SLOW_SLOTS = 4
SLOW_WORKERS = 2
SLOW_HEARTBEAT_S = 0.25
REASON = "demo_superseded"

# Much longer than the demo, for the runs that are to be cancelled; a few seconds for the one that is to go on.
_ENDLESS_STEPS = 2_000
_BYSTANDER_STEPS = 60
_STEPS_BEFORE_FENCE = 4
_PATIENCE_S = 30.0
_WATCH_STEP_MS = 50
_WATCH_LONGEST_MS = 500
# Several heartbeats and many steps long: whoever had gone on would have written something in it.
_WATCH_S = 4 * SLOW_HEARTBEAT_S
_CONFLICT = 409
# Larger than the branch, so that one page holds it.
_PAGE = 2 * SLOW_RUNS


@dataclass(frozen=True)
class SlowRun:
    """One run below the fence: its steps when its worker was told, and after the watch; none if it never started."""

    run_id: str
    status: str
    spawned_seq: int
    started_seq: int | None
    steps_when_told: int
    steps_after_watch: int
    told_after_ms: float | None
    late_answer: str | None


@dataclass(frozen=True)
class CancellationProof:
    """What was seen of the cancellation. `problems` says where it is not as it must be."""

    root_run_id: str
    branch_run_id: str
    cancellation: Cancellation
    fence_ms: float
    runs: tuple[SlowRun, ...]
    spawn_under_fence: str
    bystander: Run
    bystander_steps: tuple[int, int]
    problems: tuple[str, ...]


async def cancel_midway(root: Orchestrator, journals: Path) -> CancellationProof:
    """Start slow runs in a branch and one beside it, cancel the branch while they work, and gather the evidence.

    Args:
        root: the run at whose tree this happens.
        journals: where the slow runs write their steps.
    """
    beside = await _spawn_slow(root, "bystander", 1, _BYSTANDER_STEPS)
    (bystander_id,) = beside.spawned_run_ids
    branch = await spawn_planner(root, "branch")
    members = (await _spawn_slow(branch, "slow", SLOW_RUNS, _ENDLESS_STEPS)).spawned_run_ids
    started = SLOW_SLOTS * SLOW_WORKERS - 1
    await _until(
        journals,
        lambda: _working(journals, members) >= started and _working(journals, [bystander_id]) == 1,
        f"{started} slow runs and the one beside them were working",
    )

    began = time.time_ns()
    cancellation = await root.client.post(
        "/internal/orchestration/cancel-subtree",
        {"caller_run_id": root.run_id, "run_id": branch.run_id, "reason": REASON},
        Cancellation,
        token=root.token,
    )
    fenced = time.time_ns()
    spawn_under_fence = await _try_spawn(branch)

    at_work = [run_id for run_id in members if run_id in read_journals(journals)]
    await _until(
        journals,
        lambda: all(_told(journals, run_id) for run_id in at_work),
        "every slow run that had started had been told to stop",
    )
    before = read_journals(journals)
    await asyncio.sleep(_WATCH_S)
    after = read_journals(journals)
    nodes = await _nodes_below(root, branch.run_id)
    runs = [_describe(nodes[run_id], before, after, fenced) for run_id in members]
    await join(root, beside.orchestration_group_id)
    bystander = await _read(root, bystander_id)
    await finish_run(root)
    proof = CancellationProof(
        root_run_id=root.run_id,
        branch_run_id=branch.run_id,
        cancellation=cancellation,
        fence_ms=(fenced - began) / 1e6,
        runs=tuple(runs),
        spawn_under_fence=spawn_under_fence,
        bystander=bystander,
        bystander_steps=(_steps(before.get(bystander_id)), _steps(read_journals(journals).get(bystander_id))),
        problems=(),
    )
    return _judged(proof, nodes[branch.run_id])


def _judged(proof: CancellationProof, branch: TreeNode) -> CancellationProof:
    """Hold the evidence against what a fence promises."""
    problems = [*_doubts_about_the_whole(proof, branch)]
    for run in proof.runs:
        problems.extend(f"{run.run_id}: {doubt}" for doubt in _doubts_about(run, proof.cancellation.fence_seq))
    return replace(proof, problems=tuple(problems))


def _doubts_about_the_whole(proof: CancellationProof, branch: TreeNode) -> Iterator[str]:
    expected = len(proof.runs) + 1
    done = proof.cancellation
    if (done.cancelled_count, done.state) != (expected, "drained"):
        yield f"{expected} runs were to be cancelled at once, {done.cancelled_count} are, and the fence is {done.state}"
    if branch.status != "cancelled":
        yield f"the branch reads as {branch.status}"
    if not proof.spawn_under_fence.startswith(f"{_CONFLICT} "):
        yield f"a spawn below the fence was answered {proof.spawn_under_fence}"
    if proof.bystander.status != "completed":
        yield f"the run beside the branch reads as {proof.bystander.status}"
    started = sum(run.steps_when_told > 0 for run in proof.runs)
    if started in {0, len(proof.runs)}:
        yield f"{started} of {len(proof.runs)} slow runs had started, which does not show both kinds"


def _doubts_about(run: SlowRun, fence_seq: int) -> Iterator[str]:
    if run.status != "cancelled":
        yield f"reads as {run.status}"
    if run.steps_after_watch != run.steps_when_told:
        yield f"went on from step {run.steps_when_told} to {run.steps_after_watch}"
    if run.steps_when_told and not (run.late_answer or "").startswith(f"{_CONFLICT} "):
        yield f"its late completion was answered {run.late_answer}"
    if not run.steps_when_told and run.started_seq is not None:
        yield "counts as started, and no worker had it"
    if max(run.spawned_seq, run.started_seq or 0) > fence_seq:
        yield f"was spawned or started after the fence at {fence_seq}"


async def _spawn_slow(caller: Orchestrator, key: str, count: int, steps: int) -> SpawnedGroup:
    targets: list[JsonValue] = [{"target_agent_slug": Role.SLOW, "mapped_input_payload": {"steps": steps}}] * count
    return await caller.client.post(
        "/internal/orchestration/spawn-group",
        {
            "caller_run_id": caller.run_id,
            "targets": targets,
            "scope_subset": [READ_SCOPE],
            "idempotency_key_prefix": key,
        },
        SpawnedGroup,
        token=caller.token,
    )


async def _try_spawn(branch: Orchestrator) -> str:
    try:
        await spawn_planner(branch, "too-late")
    except RefusedError as refused:
        return f"{refused.problem.status} {refused.problem.code}"
    return "200 accepted"


def _describe(run: TreeNode, before: dict[str, list[Entry]], after: dict[str, list[Entry]], fenced_ns: int) -> SlowRun:
    entries = after.get(run.run_id, [])
    told = next((entry for entry in entries if entry.what == "told"), None)
    late = next((entry for entry in entries if entry.what == "late"), None)
    return SlowRun(
        run_id=run.run_id,
        status=run.status,
        spawned_seq=run.spawned_seq,
        started_seq=run.started_seq,
        steps_when_told=_steps(before.get(run.run_id)),
        steps_after_watch=_steps(entries),
        told_after_ms=None if told is None else (told.at_ns - fenced_ns) / 1e6,
        late_answer=None if late is None else f"{late.status} {late.code}",
    )


async def _nodes_below(root: Orchestrator, run_id: str) -> dict[str, TreeNode]:
    body: dict[str, JsonValue] = {"run_id": run_id, "limit": _PAGE}
    page = await root.client.post("/internal/orchestration/query-tree", body, TreePage, token=root.token)
    assert page.next_cursor is None
    return {node.run_id: node for node in page.nodes}


async def _read(root: Orchestrator, run_id: str) -> Run:
    return await root.client.get(f"/agents/runs/{run_id}", Run, token=root.token)


async def _until(journals: Path, holds: Callable[[], bool], what: str) -> None:
    """Wait until the journals show something."""
    if holds():
        return
    try:
        async with asyncio.timeout(_PATIENCE_S):
            async for _ in awatch(journals, step=_WATCH_STEP_MS, rust_timeout=_WATCH_LONGEST_MS, yield_on_timeout=True):
                if holds():
                    return
    except TimeoutError:
        raise TimeoutError(f"it took more than {_PATIENCE_S:.0f} s until {what}") from None


def _working(journals: Path, run_ids: Sequence[str]) -> int:
    entries = read_journals(journals)
    return sum(_steps(entries.get(run_id)) >= _STEPS_BEFORE_FENCE for run_id in run_ids)


def _told(journals: Path, run_id: str) -> bool:
    return any(entry.what == "late" for entry in read_journals(journals).get(run_id, []))


def _steps(entries: list[Entry] | None) -> int:
    return max((entry.step for entry in entries or []), default=0)
