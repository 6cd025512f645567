"""Makes the partitions of the next weeks, and lets records go that are older than what is kept."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from kernel.store import partitions
from kernel.store.engine import Database
from kernel.store.partitions import Partition, PostponedError, Table

# How much of a partition is looked through in a pass; the next one goes on from there.
MAX_STRETCHES = 64
STRETCH_PAGES = 128
# The interval between passes for which this is written, in seconds: a pass that finds nothing to do costs some
# look-ups in the catalog, and reads at most 64 MiB.
INTERVAL_S = 300.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PruneCounts:
    """What a pass has done: partitions made and dropped, rows moved to where they belong and rows deleted.

    `postponed` are the partitions that could be neither made nor dropped without holding up others.
    """

    created: int = 0
    moved: int = 0
    dropped: int = 0
    deleted: int = 0
    postponed: int = 0

    @property
    def total(self) -> int:
        """Whether the next pass should follow at once, as a number; what is postponed can wait."""
        return self.created + self.moved + self.dropped + self.deleted


class PruneRecords:
    """A control loop's body; several processes may run it at once.

    Decisions are kept for `decision_retention_days`, to the row. Events are kept for ever unless
    `event_retention_days` is set; then a week of them goes when all of it is older than that and every tree that it
    tells of has ended.

    Args:
        decision_retention_days: in days of 24 hours.
        event_retention_days: likewise.
    """

    def __init__(
        self, database: Database, *, decision_retention_days: int, event_retention_days: int | None = None
    ) -> None:
        self._database = database
        self._keep: dict[Table, timedelta | None] = {
            "policy_decisions": timedelta(days=decision_retention_days),
            "run_events": None if event_retention_days is None else timedelta(days=event_retention_days),
        }
        self._positions: dict[str, int] = {}

    async def run_once(self) -> PruneCounts:
        """Make and drop partitions, and delete up to a bounded number of old decisions."""
        made = await partitions.ensure(self._database)
        dropped, deleted, postponed = 0, 0, made.postponed
        for table, keep in self._keep.items():
            if keep is None:
                continue
            cutoff = await self._now() - keep
            for partition in await partitions.partitions_of(self._database, table):
                if partition.upper <= cutoff:
                    gone = await self._drop(table, partition)
                    dropped += gone
                    postponed += not gone
                elif partition.lower < cutoff and table == "policy_decisions":
                    deleted += await self._delete(partition.name, cutoff)
            if table == "policy_decisions":
                deleted += await self._delete(partitions.default_of(table), cutoff)
        return PruneCounts(made.created, made.moved, dropped, deleted, postponed)

    async def _now(self) -> datetime:
        """By the clock that the rows were dated by."""
        async with self._database.read() as session:
            now: datetime = await session.driver.fetchval("SELECT clock_timestamp()")
        return now

    async def _drop(self, table: Table, partition: Partition) -> bool:
        try:
            await partitions.drop(self._database, table, partition)
        except PostponedError as error:
            log.warning("a partition is not dropped yet", partition=partition.name, cause=str(error))
            return False
        self._positions.pop(partition.name, None)
        log.info("a partition was dropped", partition=partition.name, upper=partition.upper.isoformat())
        return True

    async def _delete(self, name: str, cutoff: datetime) -> int:
        """Delete a partition's old rows, a short transaction at a time, going round it from pass to pass.

        By place and not by an index: none has the time in front, and rows lie about in the order in which they came.
        """
        async with self._database.read() as session:
            pages = await partitions.count_pages(session, name)
        deleted = 0
        position = self._positions.get(name, 0)
        for _ in range(min(MAX_STRETCHES, -(-pages // STRETCH_PAGES))):
            if position >= pages:
                position = 0
            while True:
                async with self._database.write() as session:
                    gone = await partitions.delete_older(session, name, position, position + STRETCH_PAGES, cutoff)
                deleted += gone
                if gone < partitions.MAX_DELETED:
                    break
            position += STRETCH_PAGES
        self._positions[name] = position
        return deleted
