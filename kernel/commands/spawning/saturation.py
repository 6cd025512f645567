"""How much a tenant has in flight, and how much active; and when that is too much for more.

The bound of what is active is soft: the totals are sums of the trees' counters, refreshed each second, so a burst may
overshoot by what it makes in a second. The limits that policy returns are the hard ones.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from kernel import metrics
from kernel.domain.errors import TenantSaturatedError
from kernel.store import totals
from kernel.store.engine import Database

RETRY_AFTER_S = 1
STATUSES = ("queued", "running", "paused")


@dataclass(frozen=True, slots=True)
class Active:
    """A tenant's active runs, and its bound."""

    runs: int
    bound: int


class InFlight:
    """How many spawns, dry runs and starts of each tenant this process works on.

    Args:
        bound: of one tenant; one more is refused at once.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._counts: Counter[UUID] = Counter()

    def enter(self, tenant_id: UUID) -> None:
        """Count one more, until it leaves.

        Raises:
            TenantSaturatedError: when the tenant has as many as it may.
        """
        observed = self._counts[tenant_id]
        if observed >= self._bound:
            raise TenantSaturatedError(
                f"the tenant has {observed} requests in flight here, and may have {self._bound}",
                retry_after_s=RETRY_AFTER_S,
                limit=self._bound,
                observed=observed,
            )
        self._counts[tenant_id] += 1

    def leave(self, tenant_id: UUID) -> None:
        """Count one less. A tenant with nothing left is forgotten."""
        self._counts[tenant_id] -= 1
        if not self._counts[tenant_id]:
            del self._counts[tenant_id]

    @contextmanager
    def one_of(self, tenant_id: UUID) -> Iterator[None]:
        """Count one more for as long as the block lasts; see `enter`."""
        self.enter(tenant_id)
        try:
            yield
        finally:
            self.leave(tenant_id)


class ActiveRuns:
    """The totals of all tenants with something active, as of the last refresh.

    Args:
        default_bound: of tenants that have no bound of their own.
    """

    def __init__(self, database: Database, *, default_bound: int) -> None:
        self._database = database
        self._default_bound = default_bound
        self._totals: Mapping[UUID, Active] = {}
        self._shown: set[str] = set()

    async def refresh(self) -> None:
        """Read the totals; gauges and bounds follow."""
        async with self._database.read() as session:
            rows = await totals.active_runs(session)
        self._totals = {
            row["tenant_id"]: Active(
                row["queued"] + row["running"] + row["paused"], row["max_active_runs"] or self._default_bound
            )
            for row in rows
        }
        self._show(rows)

    def check(self, tenant_id: UUID) -> None:
        """Check that a tenant may have more.

        Raises:
            TenantSaturatedError: when it has as much active as it may.
        """
        active = self._totals.get(tenant_id)
        if active is not None and active.runs >= active.bound:
            raise TenantSaturatedError(
                f"the tenant has {active.runs} active runs, and may have {active.bound}; let some end",
                retry_after_s=RETRY_AFTER_S,
                limit=active.bound,
                observed=active.runs,
            )

    def _show(self, rows: list[totals.Row]) -> None:
        sums: dict[tuple[str, str], int] = {}
        for row in rows:
            label = metrics.tenant_label(row["slug"])
            for status in STATUSES:
                sums[label, status] = sums.get((label, status), 0) + row[status]
        # A tenant that has nothing active any more says so, instead of showing its last number for ever.
        labels = {label for label, _ in sums}
        for label in self._shown - labels:
            for status in STATUSES:
                metrics.RUNS_ACTIVE.labels(label, status).set(0)
        for (label, status), count in sums.items():
            metrics.RUNS_ACTIVE.labels(label, status).set(count)
        self._shown |= labels
