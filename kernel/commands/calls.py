"""Runs that were made by agent_call: how they are told from others, and how a call that nobody waits for ends."""

from collections.abc import Sequence
from uuid import UUID

from kernel.commands.aftermath import Aftermath
from kernel.commands.fencing import set_fence
from kernel.domain.fences import Fence, FenceScope
from kernel.store import tools
from kernel.store.engine import ReadSession, WriteSession
from kernel.store.runs import Run
from kernel.store.trees import LockedTree

TIMED_OUT = "agent_call_timed_out"
ABANDONED = "agent_call_abandoned"

KEY_PREFIX = "agent_call:"


def spawn_key(slug: str, key: str) -> str:
    """The spawn key of a call: of its own kind, so that a call and a spawn with equal keys are two things."""
    return f"{KEY_PREFIX}{slug}:{key}"


async def among(session: ReadSession, tenant_id: UUID, run_ids: Sequence[UUID]) -> set[UUID]:
    """Which of some runs were made by agent_call."""
    return await tools.with_key_prefix(session, tenant_id, run_ids, KEY_PREFIX) if run_ids else set()


async def cancel_call(session: WriteSession, tree: LockedTree, run: Run, *, reason: str) -> tuple[Fence, Aftermath]:
    """Set a fence on an active run of a locked tree; the caller writes the tree's counters back.

    Its deadline goes: the fence's drain ends the run, and tells its worker why.
    """
    fence = await set_fence(session, tree, run_id=run.run_id, scope=FenceScope.RUN, reason=reason, surface=run.surface)
    await tools.drop_deadline(session, tree.tenant_id, run.run_id)
    aftermath = Aftermath()
    aftermath.fences[run.tenant_slug, reason] += 1
    return fence, aftermath
