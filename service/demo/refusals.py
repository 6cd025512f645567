"""Five spawns that policy must refuse, each for one reason, and leave nothing behind."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from service.demo.cast import FOREIGN_SCOPE, ORCHESTRATOR_SCOPES, READ_SCOPE, Role
from service.demo.catalog import PLANNER_LIMITS
from service.demo.client import RefusedError
from service.demo.groups import Orchestrator
from service.demo.survey import finish_run
from service.demo.wire import Run, SpawnedGroup, SpawnedRun


@dataclass(frozen=True)
class Refusal:
    """What was tried, what had to be the answer, and what was."""

    attempt: str
    expected: str
    status: int
    codes: tuple[str, ...]
    message: str
    decision_id: str | None

    @property
    def as_expected(self) -> bool:
        """Refused by policy, for this reason and no other, with a decision to look up."""
        return self.status == _FORBIDDEN and self.codes == (self.expected,) and self.decision_id is not None


_FORBIDDEN = 403


async def provoke_refusals(root: Orchestrator) -> list[Refusal]:
    """Try what a planner may not do, at the root and at the deepest run that it may spawn."""
    deepest = await descend(root, PLANNER_LIMITS.max_depth)
    too_wide = [_target(Role.SLOW)] * (PLANNER_LIMITS.max_fanout + 1)
    refusals = [
        await _try_run(root, "spawn an agent that is not published", "target_not_published", Role.DRAFT),
        await _try_run(root, "spawn an agent that is not on the allowlist", "target_not_allowlisted", Role.OUTSIDER),
        await _try_run(
            root,
            f"give a child the scope {FOREIGN_SCOPE}, which the caller does not hold",
            "scope_exceeds_caller",
            Role.SLOW,
            (READ_SCOPE, FOREIGN_SCOPE),
        ),
        await _try_run(
            deepest[-1], f"spawn below depth {PLANNER_LIMITS.max_depth}", "max_depth_exceeded", Role.PLANNER
        ),
        await _try_group(root, f"spawn {len(too_wide)} children at once", "max_fanout_exceeded", too_wide),
    ]
    for run in reversed(deepest):
        await finish_run(run)
    return refusals


async def descend(root: Orchestrator, levels: int) -> list[Orchestrator]:
    """Spawn a planner below a planner, so many levels down; this process executes them itself."""
    chain = [root]
    for _ in range(levels):
        chain.append(await spawn_planner(chain[-1], "deeper"))
    return chain[1:]


async def spawn_planner(caller: Orchestrator, key: str) -> Orchestrator:
    """Spawn a planner that is executed here, and return the means to act as it."""
    spawned = await caller.client.post(
        "/internal/orchestration/spawn-run",
        {**_request(caller, key, ORCHESTRATOR_SCOPES), **_target(Role.PLANNER), "start_background": False},
        SpawnedRun,
        token=caller.token,
    )
    (run_id,) = spawned.spawned_run_ids
    planner = Orchestrator(caller.client, run_id, spawned.run_tokens[run_id])
    run = await planner.client.get(f"/agents/runs/{run_id}", Run, token=planner.token)
    if run.status == "queued":
        await planner.client.post(f"/agents/runs/{run_id}/status", {"status": "running"}, Run, token=planner.token)
    return planner


async def _try_run(
    caller: Orchestrator, attempt: str, expected: str, target: Role, scopes: Sequence[str] = (READ_SCOPE,)
) -> Refusal:
    body = {**_request(caller, expected, scopes), **_target(target)}
    try:
        await caller.client.post("/internal/orchestration/spawn-run", body, SpawnedRun, token=caller.token)
    except RefusedError as refused:
        return _refusal(attempt, expected, refused)
    return _permitted(attempt, expected)


async def _try_group(
    caller: Orchestrator, attempt: str, expected: str, targets: Sequence[dict[str, JsonValue]]
) -> Refusal:
    body: dict[str, JsonValue] = {
        "caller_run_id": caller.run_id,
        "targets": list(targets),
        "scope_subset": [READ_SCOPE],
        "idempotency_key_prefix": expected,
    }
    try:
        await caller.client.post("/internal/orchestration/spawn-group", body, SpawnedGroup, token=caller.token)
    except RefusedError as refused:
        return _refusal(attempt, expected, refused)
    return _permitted(attempt, expected)


def _request(caller: Orchestrator, key: str, scopes: Sequence[str]) -> dict[str, JsonValue]:
    return {"caller_run_id": caller.run_id, "scope_subset": list(scopes), "idempotency_key": key}


def _target(role: Role) -> dict[str, JsonValue]:
    return {"target_agent_slug": role, "mapped_input_payload": {"steps": 1}}


def _refusal(attempt: str, expected: str, refused: RefusedError) -> Refusal:
    problem = refused.problem
    return Refusal(
        attempt=attempt,
        expected=expected,
        status=problem.status,
        codes=tuple(reason.code for reason in problem.reasons),
        message="; ".join(reason.message for reason in problem.reasons) or problem.detail,
        decision_id=problem.decision_id,
    )


def _permitted(attempt: str, expected: str) -> Refusal:
    return Refusal(attempt, expected, 200, (), "permitted", None)
