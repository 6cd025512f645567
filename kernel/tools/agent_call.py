"""agent_call: another agent's run as a function call. It is spawned as a child, and waited for.

Nobody holds a thread or a connection while waiting. The child's deadline is the call's timeout, so that a call ends in
time also where the process that waits for it is gone: then the reconciler cancels the child as this does.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from kernel.commands import calls
from kernel.commands.draining import Drain
from kernel.commands.reporting import locked_run
from kernel.commands.spawning.order import ChildOrder, Spawned, SpawnOrder, TargetRef, digest
from kernel.domain.errors import DatabaseUnavailableError, RemitError, SpawnKeyConflictError
from kernel.domain.fences import Fence, covering
from kernel.domain.principal import Principal
from kernel.domain.run import TERMINAL, RunStatus
from kernel.policy.contract import Action
from kernel.store import drains, fences, tools, trees
from kernel.store.engine import ReadSession
from kernel.tools.configs import AgentCallConfig
from kernel.tools.parts import ToolCall, ToolParts

Row = Mapping[str, Any]

# What is below a call that ends early is drained at once where it is little.
DRAINED_AT_ONCE = 100
# How long to wait at least before looking again, so that a clock that is a little off makes no busy loop.
LOOK_S = 0.05
# How often to look after a run that has no deadline: a spawn under a key in the form of a call's.
WITHOUT_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Called:
    """How a call ended. `status` is the child's, but `failed` where the call timed out."""

    run_id: UUID
    agent_id: UUID
    agent_slug: str
    status: RunStatus
    output: object
    context: Mapping[str, object]
    error: object
    repeated: bool

    def answer(self) -> dict[str, object]:
        """The answer as the wire shows it."""
        optional = {"output": self.output, "context": self.context, "error": self.error}
        return {
            "mode": "sync",
            "target_agent_id": str(self.agent_id),
            "target_agent_slug": self.agent_slug,
            "run_id": str(self.run_id),
            "status": self.status.value,
            **{name: value for name, value in optional.items() if value is not None},
        }


async def call_agent(
    parts: ToolParts, principal: Principal, call: ToolCall, config: AgentCallConfig, caller_scopes: tuple[str, ...]
) -> Called:
    """Call an agent and wait for its answer.

    When this is cancelled, as it is when the caller's connection goes away, the child is cancelled too, unless somebody
    else in this process waits for it.

    Raises:
        NotFoundError: when the tenant has no such agent any more.
        PolicyDeniedError: with every reason.
        RunCancelledError, CallerNotActiveError: when the caller has ended.
        TenantSaturatedError: when the tenant has as much active as it may.
    """
    order = SpawnOrder(
        action=Action.AGENT_CALL,
        surface=call.surface,
        principal=principal,
        tenant_id=principal.tenant,
        caller_run_id=call.caller_run_id,
        key=call.spawn_key,
        children=(ChildOrder(TargetRef(config.target_agent_id, config.target_agent_slug), call.input),),
        scopes=config.scope_subset if config.scope_subset is not None else tuple(sorted(caller_scopes)),
        parent_node_id=call.parent_node_id,
        timeout_s=config.execution.timeout_s,
        trace_parent=call.trace_parent,
    )
    async with parts.turns.taken(principal.tenant):
        spawned = await _spawn(parts, call, order)
    if not spawned.idempotent:
        parts.wakeups.work_arrived(principal.tenant, spawned.agent_ids)
    return await follow(parts, principal.tenant, call, spawned.run_ids[0], repeated=spawned.idempotent)


async def follow(parts: ToolParts, tenant_id: UUID, call: ToolCall, run_id: UUID, *, repeated: bool) -> Called:
    """Wait for the end of a call that was made, now or earlier; see `call_agent`."""
    try:
        with parts.wakeups.awaiting_run(tenant_id, run_id) as waiter:
            while True:
                async with parts.database.read() as session:
                    row, fence = await _look(session, tenant_id, run_id)
                    if RunStatus(row["status"]) in TERMINAL or fence is not None:
                        return await _ended(session, tenant_id, row, fence, repeated=repeated)
                left_s = row["left_s"] if row["left_s"] is not None else WITHOUT_DEADLINE_S
                if left_s <= 0:
                    await cancel(parts, tenant_id, run_id, reason=calls.TIMED_OUT)
                await waiter.wait(max(left_s, LOOK_S))
                if waiter.ended:
                    # Whoever has a key asks again, and goes on waiting. Nobody could for a call without one.
                    if call.idempotency_key is None:
                        await cancel(parts, tenant_id, run_id, reason=calls.ABANDONED)
                    raise DatabaseUnavailableError(
                        f"the service is shutting down; run {run_id} was called and has not answered yet",
                        run_id=str(run_id),
                    )
    except asyncio.CancelledError:
        await _abandon(parts, tenant_id, call, run_id)
        raise


async def cancel(parts: ToolParts, tenant_id: UUID, run_id: UUID, *, reason: str) -> None:
    """Cancel a child with all that is below it; what has ended, or is cancelled already, stays as it is."""
    async with locked_run(parts.database, tenant_id, run_id) as locked:
        run = locked.run
        if not run.active or await _final_fence(locked.session, tenant_id, run.root_run_id, run_id) is not None:
            return
        fence, aftermath = await calls.cancel_call(locked.session, locked.tree, run, reason=reason)
        await trees.advance(locked.session, locked.tree)
    aftermath.tell(parts.wakeups)
    async with parts.database.read() as session:
        target = await drains.open_fence(session, tenant_id, fence.cancellation_id)
    if target is not None:
        await Drain(parts.database, parts.wakeups).execute(target, at_most=DRAINED_AT_ONCE)


async def _look(session: ReadSession, tenant_id: UUID, run_id: UUID) -> tuple[Row, Fence | None]:
    """A child as it stands, and the fence that has cancelled it though it is active in the table."""
    row = await tools.called(session, tenant_id, run_id)
    if RunStatus(row["status"]) in TERMINAL:
        return row, None
    return row, await _final_fence(session, tenant_id, row["root_run_id"], run_id)


async def _final_fence(session: ReadSession, tenant_id: UUID, root_run_id: UUID, run_id: UUID) -> Fence | None:
    """The open fence without a grace that covers a run; within a grace its worker may still say how it ended."""
    standing = (await fences.open_fences(session, [(tenant_id, root_run_id)])).get((tenant_id, root_run_id), [])
    final = [fence for fence in standing if fence.grace_until is None]
    if not final:
        return None
    return covering(final, (await fences.paths(session, [(tenant_id, run_id)]))[tenant_id, run_id])


async def _spawn(parts: ToolParts, call: ToolCall, order: SpawnOrder) -> Spawned:
    """Spawn the child. An order that was taken is executed also where its caller goes away meanwhile."""
    spawning = asyncio.ensure_future(parts.combiner.spawn(order))
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        with suppress(RemitError):
            spawned = await parts.to_the_end(spawning)
            await _abandon(parts, order.tenant_id, call, spawned.run_ids[0])
        raise


async def _abandon(parts: ToolParts, tenant_id: UUID, call: ToolCall, run_id: UUID) -> None:
    if call.cancel_when_abandoned and not parts.wakeups.is_run_awaited(tenant_id, run_id):
        with suppress(RemitError):
            await parts.to_the_end(asyncio.ensure_future(cancel(parts, tenant_id, run_id, reason=calls.ABANDONED)))


async def _ended(session: ReadSession, tenant_id: UUID, row: Row, fence: Fence | None, *, repeated: bool) -> Called:
    status, error = RunStatus(row["status"]), row["error"]
    if status is RunStatus.CANCELLED:
        end = (row["root_run_id"], row["finalized_seq"])
        fence = (await drains.fences_of_ends(session, tenant_id, {row["run_id"]: end})).get(row["run_id"])
    if fence is not None:
        status, error = RunStatus.CANCELLED, f"cancelled: {fence.reason}"
        if fence.reason == calls.TIMED_OUT and fence.run_id == row["run_id"]:
            status, error = RunStatus.FAILED, f"agent_call timed out after {row['timeout_s']}s"
    return Called(
        run_id=row["run_id"],
        agent_id=row["agent_id"],
        agent_slug=row["agent_slug"],
        status=status,
        output=row["output"],
        context={
            "tenant_id": str(tenant_id),
            "run_id": str(row["run_id"]),
            "root_run_id": str(row["root_run_id"]),
            "parent_run_id": str(row["parent_run_id"]),
            "parent_node_id": row["parent_node_id"],
            "depth": row["depth"],
            "spawn_key": row["spawn_key"],
            "orchestration_group_id": None,
            "requested_scopes": list(row["effective_scopes"]),
            "surface": row["surface"],
        },
        error=error,
        repeated=repeated,
    )


def check_repeat(call: ToolCall, digests: Mapping[str, str] | None) -> None:
    """Check that a call with a key that was used before is that call once more; the tool may have changed since.

    Raises:
        SpawnKeyConflictError: when its input is another.
    """
    if digests is None or digests.get("mapped_input_payload") != digest(call.input):
        raise SpawnKeyConflictError(
            f"idempotency_key: {call.idempotency_key!r} was used before with another input", fields=["input"]
        )
