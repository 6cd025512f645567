"""The status that readers see: what is active and under an open fence is cancelled already.

The fences are read before the runs. So a fence that was there when the read began is either seen open, or was drained
before the runs were read, which then say so themselves.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from kernel.domain.fences import Fence, FenceScope, Step
from kernel.domain.lineage import Ancestry
from kernel.domain.run import ACTIVE, RunStatus
from kernel.store import fences
from kernel.store.engine import ReadSession

# The way up from the runs $2 of the tenant $1: each ancestor once, however many of the runs share it. OFFSET 0 holds
# the planner to one descent of the primary key per step.
WAY_UP = """
up AS (
  SELECT r.run_id, r.parent_run_id, r.orchestration_group_id, r.spawned_seq, r.finalized_seq
  FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = ANY ($2::uuid[])
  UNION
  SELECT p.run_id, p.parent_run_id, p.orchestration_group_id, p.spawned_seq, p.finalized_seq
  FROM up u
  CROSS JOIN LATERAL (
    SELECT r.run_id, r.parent_run_id, r.orchestration_group_id, r.spawned_seq, r.finalized_seq
    FROM agent_runs r WHERE r.tenant_id = $1 AND r.run_id = u.parent_run_id OFFSET 0
  ) p
)
"""

ANCESTRY = f"""
WITH RECURSIVE {WAY_UP}
SELECT run_id, parent_run_id, orchestration_group_id, spawned_seq, finalized_seq FROM up
"""


async def ancestry(session: ReadSession, tenant_id: UUID, root_run_id: UUID) -> Ancestry:
    """The open fences of a tree, with nobody held against them yet. Read this before the runs."""
    found = await fences.open_fences(session, [(tenant_id, root_run_id)])
    return Ancestry(found.get((tenant_id, root_run_id), []))


async def climb(session: ReadSession, tenant_id: UUID, known: Ancestry, run_ids: Iterable[UUID]) -> None:
    """Learn the way up from runs, where it is not known yet."""
    wanted = [run_id for run_id in set(run_ids) if run_id not in known.steps]
    if wanted:
        rows = await session.driver.fetch(ANCESTRY, tenant_id, wanted)
        known.add(Step(*row.values()) for row in rows)


async def cover(
    session: ReadSession, tenant_id: UUID, root_run_id: UUID, known: Ancestry, run_ids: Sequence[UUID]
) -> dict[UUID, Fence]:
    """Which of some runs are under an open fence, and under which."""
    if not known.fences:
        return {}
    whole = whole_tree(known, root_run_id)
    if whole is not None:
        return dict.fromkeys(run_ids, whole)
    await climb(session, tenant_id, known, run_ids)
    return {run_id: fence for run_id in run_ids if (fence := known.fence_of(run_id)) is not None}


def whole_tree(known: Ancestry, root_run_id: UUID) -> Fence | None:
    """The open fence that covers the whole tree, if there is one."""
    return next(
        (fence for fence in known.fences if fence.scope is FenceScope.RUN and fence.run_id == root_run_id), None
    )


def status(stored: str, fence: Fence | None) -> str:
    """The effective status of a run with a stored one, under a fence or under none."""
    return RunStatus.CANCELLED.value if fence is not None and RunStatus(stored) in ACTIVE else stored


def stored_statuses(wanted: str) -> list[str]:
    """The stored statuses that may read as a certain effective one."""
    return [wanted, *sorted(ACTIVE)] if wanted == RunStatus.CANCELLED else [wanted]
