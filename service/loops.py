"""The reconcilers of a process, and how often each looks."""

from kernel.reconcilers import prune_records
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.expire_leases import ExpiredLeases
from kernel.reconcilers.loop import Loop
from kernel.reconcilers.prune_records import PruneRecords
from kernel.reconcilers.sweep import Sweep
from kernel.reconcilers.time_out_joins import OverdueGroups
from kernel.reconcilers.time_out_runs import OverdueRuns
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.settings import Settings

# A deadline is acted on within a second of its time.
SWEEP_INTERVAL_S = 0.5
# The drain is woken by the fences of its own process; this is how soon it sees those of others.
DRAIN_INTERVAL_S = 0.5


def loops_of(settings: Settings, database: Database, wakeups: Wakeups) -> list[Loop]:
    """The loops, not started yet."""
    dues = (ExpiredLeases(), OverdueRuns(), OverdueGroups())
    return [
        Loop(
            "drain_cancellations",
            DrainCancellations(database, wakeups),
            interval_s=DRAIN_INTERVAL_S,
            wake=wakeups.fences,
        ),
        Loop(
            "prune_records",
            PruneRecords(
                database,
                decision_retention_days=settings.decision_retention_days,
                event_retention_days=settings.event_retention_days,
            ),
            interval_s=prune_records.INTERVAL_S,
        ),
        *(Loop(due.name, Sweep(database, due, wakeups), interval_s=SWEEP_INTERVAL_S) for due in dues),
    ]
