"""The reconcilers of a process, and how often each looks."""

from collections.abc import Callable

from kernel.reconcilers import prune_records
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.expire_leases import ExpiredLeases
from kernel.reconcilers.loop import Loop, Pass
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


def loops_of(
    settings: Settings,
    database: Database,
    wakeups: Wakeups,
    body_of: Callable[[str, Pass], Pass] = lambda _name, body: body,
) -> list[Loop]:
    """The loops, not started yet; `body_of` makes of each one's body what is run, such as one that is traced."""
    dues = (ExpiredLeases(), OverdueRuns(), OverdueGroups())
    drain = DrainCancellations(database, wakeups)
    prune = PruneRecords(
        database,
        decision_retention_days=settings.decision_retention_days,
        event_retention_days=settings.event_retention_days,
    )
    every: list[tuple[str, Pass, float]] = [
        ("prune_records", prune, prune_records.INTERVAL_S),
        *((due.name, Sweep(database, due, wakeups), SWEEP_INTERVAL_S) for due in dues),
    ]
    return [
        Loop(
            "drain_cancellations",
            body_of("drain_cancellations", drain),
            interval_s=DRAIN_INTERVAL_S,
            wake=wakeups.fences,
        ),
        *(Loop(name, body_of(name, body), interval_s=interval_s) for name, body, interval_s in every),
    ]
