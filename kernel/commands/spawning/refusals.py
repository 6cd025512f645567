"""How spawns are refused, told and counted; the other commands refuse alike."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from kernel import metrics
from kernel.domain.errors import FactsChangedError, LeaseLostError, PolicyDeniedError, RemitError, RunCancelledError
from kernel.domain.fences import Fence
from kernel.policy.contract import Decision, DecisionInput
from kernel.policy.records import DecisionRecord
from kernel.store import drains, runs
from kernel.store.engine import ReadSession

# How often the catalog may change under a call before it is told so.
MAX_ATTEMPTS = 3
OUTCOMES = ("allow", "deny", "error")


def facts_changed() -> FactsChangedError:
    """The refusal of an order under which the catalog would not hold still."""
    return FactsChangedError(
        f"the policy, the allowlist or a target changed {MAX_ATTEMPTS} times while this spawn was decided; try again"
    )


def under_fence(run_id: UUID, fence: Fence) -> RunCancelledError:
    """The refusal of a call on behalf of a run that a fence covers."""
    return RunCancelledError(
        f"run {run_id} was cancelled: {fence.reason}",
        run_id=str(run_id),
        cancellation_id=str(fence.cancellation_id),
        reason=fence.reason,
    )


async def cancelled(
    session: ReadSession, tenant_id: UUID, ends: Mapping[UUID, tuple[UUID, int]], *, field: str | None = None
) -> dict[UUID, RunCancelledError]:
    """The refusals of calls on behalf of runs that have ended as cancelled, with the reasons.

    Args:
        session: what the reasons are looked up with.
        tenant_id: whose the runs are.
        ends: for each run its root, and the number of its end.
        field: the name on the wire of what named the run, where the refusal is to name it.
    """
    refusals: dict[UUID, RunCancelledError] = {}
    reasons = await drains.reasons_of_ends(session, tenant_id, ends)
    for run_id in ends:
        # None where nobody but its runtime cancelled it.
        reason = reasons.get(run_id)
        where, why = f"{field}: " if field else "", f": {reason}" if reason else ""
        refusals[run_id] = RunCancelledError(
            f"{where}run {run_id} was cancelled{why}", run_id=str(run_id), reason=reason
        )
    return refusals


async def cancelled_callers(
    session: ReadSession, callers: Iterable[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], RunCancelledError]:
    """As `cancelled`, for calling runs given with their tenants."""
    of_tenants: dict[UUID, set[UUID]] = {}
    for tenant_id, run_id in callers:
        of_tenants.setdefault(tenant_id, set()).add(run_id)
    refusals: dict[tuple[UUID, UUID], RunCancelledError] = {}
    for tenant_id, run_ids in of_tenants.items():
        known = await runs.load(session, tenant_id, sorted(run_ids))
        ends = {run_id: (run.root_run_id, run.finalized_seq or 0) for run_id, run in known.items()}
        found = await cancelled(session, tenant_id, ends, field="caller_run_id")
        refusals |= {(tenant_id, run_id): refusal for run_id, refusal in found.items()}
    return refusals


def denied(record: DecisionRecord) -> PolicyDeniedError:
    """The refusal that a record of a denial stands for."""
    said = "; ".join(str(reason["message"]) for reason in record.reasons) or "policy gives no reason"
    return PolicyDeniedError(f"{record.action} refused: {said}", decision_id=record.decision_id, reasons=record.reasons)


def denial_data(record: DecisionRecord) -> dict[str, object]:
    """The data of a `policy_deny` event."""
    return {
        "action": record.action,
        "reason": record.reasons[0]["code"] if record.reasons else None,
        "reasons": record.reasons,
        "decision_id": str(record.decision_id),
    }


def count_decisions(decided: Sequence[DecisionRecord]) -> None:
    """Count decisions that are on record."""
    for record in decided:
        label = metrics.tenant_label(record.tenant_slug)
        for outcome in OUTCOMES:
            # The others at 0: a series that begins with its first event hides that event from every rate.
            metrics.DECISIONS.labels(label, record.action, record.surface, outcome).inc(outcome == record.outcome)
        if record.outcome != "allow":
            for reason in record.reasons:
                metrics.DENIALS.labels(label, record.action, record.surface, str(reason["code"])).inc()


def count_refusal(error: RemitError, tenant_slug: str, action: str) -> None:
    """Count a call that was refused because of a fence, or for want of the lease; others are counted elsewhere."""
    if isinstance(error, RunCancelledError):
        metrics.FENCED_CALLS.labels(metrics.tenant_label(tenant_slug), action).inc()
    elif isinstance(error, LeaseLostError):
        metrics.LEASES_LOST.labels(metrics.tenant_label(tenant_slug), action).inc()


def count_surface(question: DecisionInput, decision: Decision | None) -> None:
    """Count a request by its surface, and by whether that is on; once, however often policy is asked.

    Of a tenant that has set no flags only a decision tells.
    """
    label, surface = metrics.tenant_label(question.tenant.slug), question.surface.value
    enabled = getattr(question.tenant.flags, surface)
    if enabled is None and decision is not None:
        enabled = decision.surface_enabled
    if enabled is None:
        metrics.SURFACE_REQUESTS.labels(label, surface, "unknown").inc()
        return
    for each in (True, False):
        # The other one at 0, as with decisions.
        metrics.SURFACE_REQUESTS.labels(label, surface, str(each).lower()).inc(each == enabled)
