"""What a transaction has to tell once it has committed: counters to raise, and waiters to wake."""

from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from kernel import metrics
from kernel.wakeups import Wakeups


@dataclass(slots=True)
class Aftermath:
    """Gathered within a transaction; nothing of it is true before the commit.

    Attributes:
        transitions: runs by `(tenant slug, status)`.
        joins: groups by `(tenant slug, mode, outcome)`.
        fences: fences by `(tenant slug, reason)`.
        cancelled: runs cancelled under a fence, by tenant slug.
        expired: leases that ran out, by tenant slug.
        groups: groups that were decided or closed, as `(tenant_id, group_id)`.
        runs: runs that have ended, as `(tenant_id, run_id)`.
        queued: the agents with work that came back to the queue, as `(tenant_id, agent_id)`.
    """

    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    joins: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    fences: Counter[tuple[str, str]] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    expired: Counter[str] = field(default_factory=Counter)
    groups: set[tuple[UUID, UUID]] = field(default_factory=set)
    runs: set[tuple[UUID, UUID]] = field(default_factory=set)
    queued: Counter[tuple[UUID, UUID]] = field(default_factory=Counter)

    def add(self, other: "Aftermath") -> None:
        """Take over what another part of the same transaction has to tell."""
        self.transitions.update(other.transitions)
        self.joins.update(other.joins)
        self.fences.update(other.fences)
        self.cancelled.update(other.cancelled)
        self.expired.update(other.expired)
        self.groups |= other.groups
        self.runs |= other.runs
        self.queued.update(other.queued)

    def tell(self, wakeups: Wakeups | None = None) -> None:
        """Raise the counters and wake whoever waits in this process; to be called after the commit."""
        for (slug, status), count in self.transitions.items():
            metrics.RUN_TRANSITIONS.labels(metrics.tenant_label(slug), status).inc(count)
        for (slug, mode, outcome), count in self.joins.items():
            metrics.JOINS.labels(metrics.tenant_label(slug), mode, outcome).inc(count)
        for (slug, reason), count in self.fences.items():
            metrics.CANCELLATIONS.labels(metrics.tenant_label(slug), reason).inc(count)
        for slug, count in self.cancelled.items():
            metrics.CANCELLED_RUNS.labels(metrics.tenant_label(slug)).inc(count)
        for slug, count in self.expired.items():
            metrics.LEASES_EXPIRED.labels(metrics.tenant_label(slug)).inc(count)
        if wakeups is not None:
            self._wake(wakeups)

    def _wake(self, wakeups: Wakeups) -> None:
        for tenant_id, group_id in self.groups:
            wakeups.group_closed(tenant_id, group_id)
        for tenant_id, run_id in self.runs:
            wakeups.run_ended(tenant_id, run_id)
        for (tenant_id, agent_id), count in self.queued.items():
            wakeups.work_arrived(tenant_id, [agent_id] * count)
        if self.fences:
            wakeups.fence_set()
