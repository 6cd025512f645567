"""What is counted and measured. Labels are bounded: a tenant's slug for at most 200 tenants, never a run's id."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

# A series more for each one, and nobody asks when a counter was born.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library's own omission

MAX_TENANT_LABELS = 200
OTHER_TENANTS = "other"

# From a fraction of a millisecond, where decisions and fences live, to the seconds of a saturated machine.
LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DRAIN_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

DECISIONS = Counter("remit_decisions", "Policy decisions.", ["tenant", "action", "surface", "outcome"])
DENIALS = Counter("remit_denials", "Reasons for which calls were refused.", ["tenant", "action", "surface", "reason"])
DECISION_SECONDS = Histogram(
    "remit_decision_seconds", "Time the policy engine took to answer.", ["action"], buckets=LATENCY_BUCKETS
)
SURFACE_REQUESTS = Counter("remit_surface_requests", "Requests by surface.", ["tenant", "surface", "enabled"])
SPAWNED_RUNS = Counter("remit_spawned_runs", "Runs spawned.", ["tenant", "surface"])
RUN_TRANSITIONS = Counter("remit_run_transitions", "Runs that reached a status.", ["tenant", "status"])
RUNS_ACTIVE = Gauge("remit_runs_active", "Active runs.", ["tenant", "status"])
JOINS = Counter("remit_joins", "Groups decided.", ["tenant", "mode", "outcome"])
CANCELLATIONS = Counter("remit_cancellations", "Fences set.", ["tenant", "reason"])
CANCEL_FENCE_SECONDS = Histogram("remit_cancel_fence_seconds", "Time to set a fence.", buckets=LATENCY_BUCKETS)
CANCEL_DRAIN_SECONDS = Histogram(
    "remit_cancel_drain_seconds", "Time from a fence to the end of its drain.", buckets=DRAIN_BUCKETS
)
CANCELLED_RUNS = Counter("remit_cancelled_runs", "Runs cancelled by fences.", ["tenant"])
CANCEL_BACKLOG_RUNS = Gauge("remit_cancel_backlog_runs", "Runs under a fence that are not drained yet.")
LEASES_EXPIRED = Counter("remit_leases_expired", "Leases that ran out.", ["tenant"])
LEASES_LOST = Counter(
    "remit_leases_lost", "Calls by workers with a lease that is not theirs (any more).", ["tenant", "action"]
)
FENCED_CALLS = Counter(
    "remit_fenced_calls",
    "Calls refused because a fence covers the run they act as: escapes prevented.",
    ["tenant", "action"],
)
POLICY_FAILURES = Counter("remit_policy_failures", "Questions without an answer that counts, by cause.", ["cause"])
POLICY_ENGINE_UP = Gauge("remit_policy_engine_up", "1 while the policy engine answers.")
POLICY_BUNDLE_INFO = Gauge("remit_policy_bundle_info", "1 for the revision of the active bundle.", ["revision"])
HTTP_REQUEST_SECONDS = Histogram(
    "remit_http_request_seconds", "Time to answer a request.", ["method", "route", "status"], buckets=LATENCY_BUCKETS
)
DB_POOL_IN_USE = Gauge("remit_db_pool_in_use", "Database connections in use.")
RECONCILER_LAST_RUN_SECONDS = Gauge(
    "remit_reconciler_last_run_seconds", "Unix time of a loop's last success.", ["loop"]
)
RECONCILER_ROWS_SET_ASIDE = Gauge(
    "remit_reconciler_set_aside_rows",
    "Rows that a loop leaves alone for now because it failed on them, and trees that it did not get hold of.",
    ["loop"],
)

_tenant_labels: set[str] = set()
_exemplar: ContextVar[dict[str, str] | None] = ContextVar("exemplar", default=None)


@contextmanager
def exemplified(trace_id: str) -> Iterator[None]:
    """Let a trace be the example of what is measured within."""
    before = _exemplar.set({"trace_id": trace_id})
    try:
        yield
    finally:
        _exemplar.reset(before)


def exemplar() -> dict[str, str] | None:
    """The example to give with a measurement; None where nothing is traced."""
    return _exemplar.get()


def tenant_label(slug: str) -> str:
    """The label of a tenant: its slug for the first 200 seen by this process, `other` for the rest."""
    if slug in _tenant_labels:
        return slug
    if len(_tenant_labels) < MAX_TENANT_LABELS:
        _tenant_labels.add(slug)
        return slug
    return OTHER_TENANTS
