"""The reconcilers of a process."""

from kernel.store.engine import Database
from kernel.wakeups import Wakeups


def loops_of(database: Database, wakeups: Wakeups) -> list:
    return []
