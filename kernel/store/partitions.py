"""The partitions of the tables that grow with time: a week each, made ahead, beside one for whatever has none.

Nothing that is done here may hold up a spawn: every lock is asked for with a short patience, and what could not be had
is left for the next pass. The default partition takes the rows of a week whose partition is late, so no insert fails.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import structlog
from asyncpg import exceptions as pg

from kernel.domain.errors import LockTimeoutError
from kernel.store import planning
from kernel.store.engine import Database, ReadSession, WriteSession

Table = Literal["run_events", "policy_decisions"]
TABLES: tuple[Table, ...] = ("run_events", "policy_decisions")

WEEKS_AHEAD = 4
WEEK = timedelta(days=7)

# Several processes make partitions one after the other.
ADVISORY_LOCK = 0x52454D4954_5057
# While a strong lock is waited for, everybody else waits behind it.
LOCK_PATIENCE = "200ms"
ATTEMPTS = 3
RETRY_S = 0.5

MAX_DELETED = 1_000

# Attaching a partition reads the default one through, under a lock that keeps readers and its own inserts out.
MAX_DEFAULT_BYTES = 64 * 1024 * 1024

log = structlog.get_logger()

# A range without an end, whichever way it says so, ends where the calendar does.
PARTITIONS = """
SELECT p.oid::regclass::text AS name, b.lower_bound, b.upper_bound
FROM pg_inherits i
JOIN pg_class p ON p.oid = i.inhrelid
CROSS JOIN LATERAL (SELECT pg_get_expr(p.relpartbound, p.oid) AS expression) e
CROSS JOIN LATERAL (SELECT
  GREATEST(substring(e.expression FROM 'FROM \\(''([^'']+)''\\)')::timestamptz, '0001-01-02 00:00Z') AS lower_bound,
  LEAST(substring(e.expression FROM 'TO \\(''([^'']+)''\\)')::timestamptz, '9999-12-30 00:00Z') AS upper_bound) b
WHERE i.inhparent = $1::text::regclass AND e.expression <> 'DEFAULT'
ORDER BY b.lower_bound
"""

# The rows that came while the week had no partition. They are copied with the locks that any DELETE takes: until the
# commit, readers see them where they were.
MOVE = """
WITH moved AS (
  DELETE FROM {table}_default WHERE created_at >= '{start}' AND created_at < '{end}' RETURNING *
)
INSERT INTO {name} SELECT * FROM moved
"""

HAS_EVENTS_OF_ACTIVE_TREES = """
SELECT EXISTS (
  SELECT FROM run_trees t WHERE t.is_active AND EXISTS (
    SELECT FROM {name} e WHERE e.tenant_id = t.tenant_id AND e.root_run_id = t.root_run_id))
"""

PAGES = "SELECT pg_relation_size(to_regclass($1::text)) / current_setting('block_size')::int"

DELETE_OLDER = """
DELETE FROM {name} WHERE ctid = ANY (ARRAY (
  SELECT ctid FROM {name}
  WHERE ctid >= '({first},0)' AND ctid < '({end},0)' AND created_at < $1 LIMIT {limit}))
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a range of time: from `lower`, up to but without `upper`."""

    name: str
    lower: datetime
    upper: datetime


@dataclass(frozen=True, slots=True)
class Ensured:
    """What making partitions came to: those made, rows moved from the default one, and weeks that have to wait."""

    created: int = 0
    moved: int = 0
    postponed: int = 0

    def __add__(self, other: "Ensured") -> "Ensured":
        return Ensured(self.created + other.created, self.moved + other.moved, self.postponed + other.postponed)


class PostponedError(Exception):
    """It cannot be done now without holding up others; the message says why."""


def week_of(table: str, moment: datetime) -> Partition:
    """The partition for a moment: the ISO week in UTC that it falls in."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monday = day - timedelta(days=day.weekday())
    year, week, _ = monday.isocalendar()
    return Partition(f"{table}_{year}w{week:02}", monday, monday + WEEK)


async def ensure_partitions(url: str) -> Ensured:
    """Make the partitions of a migrated database, for a process that has no pool yet."""
    database = Database(url, pool_size=1)
    try:
        return await ensure(database)
    finally:
        await database.close()


async def ensure(database: Database, *, weeks_ahead: int = WEEKS_AHEAD, attempts: int = ATTEMPTS) -> Ensured:
    """Make the partitions of this week and the next ones, as far as they are missing.

    Any number of processes may do so at once. A week that cannot be had now keeps to the default partition, and is
    reported; nothing is raised for it.

    Args:
        weeks_ahead: how many weeks beyond this one.
        attempts: how often a lock that others hold is asked for.
    """
    done = Ensured()
    for table in TABLES:
        for wanted in await _missing(database, table, weeks_ahead):
            done += await _make_patiently(database, table, wanted, attempts)
    return done


async def partitions_of(database: Database, table: Table) -> list[Partition]:
    """The partitions of a table by time, without the default one."""
    async with database.read() as session:
        return [Partition(*row.values()) for row in await session.driver.fetch(PARTITIONS, table)]


async def drop(database: Database, table: Table, partition: Partition) -> None:
    """Drop a partition with all that is in it. Takes the table's strongest lock, for as long as the catalog's change.

    Raises:
        PostponedError: when the lock cannot be had at once, or (events) a tree that is told of is still active.
    """
    # DETACH … CONCURRENTLY is not to be had beside a default partition. Another process may have been faster.
    with suppress(pg.UndefinedTableError):
        async with _impatiently(database) as session:
            if table == "run_events" and await session.driver.fetchval(
                HAS_EVENTS_OF_ACTIVE_TREES.format(name=partition.name)
            ):
                raise PostponedError("it holds events of trees that are active")
            await session.driver.execute(f"DROP TABLE {partition.name}")


def default_of(table: Table) -> str:
    """The name of a table's default partition."""
    return f"{table}_default"


async def count_pages(session: ReadSession, name: str) -> int:
    """How many pages a partition has; none when it has just been dropped."""
    return await session.driver.fetchval(PAGES, name) or 0


async def delete_older(session: WriteSession, name: str, first_page: int, end_page: int, cutoff: datetime) -> int:
    """Delete rows that are older than a moment from a stretch of a partition's pages; answers how many.

    At most `MAX_DELETED` at once: as many say that there may be more.
    """
    statement = DELETE_OLDER.format(name=name, first=first_page, end=end_page, limit=MAX_DELETED)
    try:
        return _count(await session.driver.execute(statement, cutoff))
    except pg.UndefinedTableError:
        # Another process has dropped the partition.
        return 0


async def _missing(database: Database, table: Table, weeks_ahead: int) -> list[Partition]:
    async with database.read() as session:
        now: datetime = await session.driver.fetchval("SELECT clock_timestamp()")
    present = await partitions_of(database, table)
    weeks = [week_of(table, now + ahead * WEEK) for ahead in range(weeks_ahead + 1)]
    return [week for week in weeks if not _covered(week, present)]


def _covered(week: Partition, present: Sequence[Partition]) -> bool:
    return any(other.lower < week.upper and week.lower < other.upper for other in present)


async def _make_patiently(database: Database, table: Table, wanted: Partition, attempts: int) -> Ensured:
    for attempt in range(attempts):
        try:
            # Backs off: what holds the lock is a statement of somebody else's, which tells nobody of its end.
            await asyncio.sleep(RETRY_S * attempt)
            return await _make(database, table, wanted)
        except PostponedError as error:
            log.warning("a partition has to wait", partition=wanted.name, attempt=attempt + 1, cause=str(error))
    return Ensured(postponed=1)


async def _make(database: Database, table: Table, wanted: Partition) -> Ensured:
    """Make one partition, with the rows for it that are in the default one, in one transaction.

    Made apart and attached, for `CREATE TABLE … PARTITION OF` locks the whole table, and this the default partition
    only; unless rows may move. Then readers wait at the table itself, or one that already knew of the default partition
    alone would look there for what has left it.
    """
    start, end = wanted.lower.isoformat(), wanted.upper.isoformat()
    async with _impatiently(database, after="SELECT pg_advisory_xact_lock($1)", key=ADVISORY_LOCK) as session:
        execute = session.driver.execute
        rows = await session.driver.fetch(PARTITIONS, table)
        if _covered(wanted, [Partition(*row.values()) for row in rows]):
            return Ensured()
        size = await session.driver.fetchval("SELECT pg_table_size($1::text::regclass)", default_of(table))
        if size > MAX_DEFAULT_BYTES:
            raise PostponedError(
                f"{default_of(table)} has {size} bytes, and is not read through under a lock above {MAX_DEFAULT_BYTES}"
            )
        await execute(f"CREATE TABLE {wanted.name} (LIKE {table} INCLUDING ALL)")
        await planning.say_of(session, wanted.name)
        move = MOVE.format(table=table, name=wanted.name, start=start, end=end)
        moved = _count(await execute(move))
        may_hold_rows = moved > 0 or await session.driver.fetchval("SELECT clock_timestamp() >= $1", wanted.lower)
        mode = "ACCESS EXCLUSIVE" if may_hold_rows else "SHARE UPDATE EXCLUSIVE"
        # In the order in which everybody else takes them.
        await execute(f"LOCK TABLE ONLY {table} IN {mode} MODE")
        await execute(f"LOCK TABLE {default_of(table)} IN ACCESS EXCLUSIVE MODE")
        moved += _count(await execute(move))
        await execute(f"ALTER TABLE {table} ATTACH PARTITION {wanted.name} FOR VALUES FROM ('{start}') TO ('{end}')")
    log.debug("a partition was made", partition=wanted.name, moved=moved)
    return Ensured(created=1, moved=moved)


@asynccontextmanager
async def _impatiently(
    database: Database, *, after: str | None = None, key: int | None = None
) -> AsyncIterator[WriteSession]:
    """A transaction that waits for no lock longer than `LOCK_PATIENCE`, once it has taken its turn.

    Raises:
        PostponedError: when it would have to, or the block makes a table that is there.
    """
    try:
        async with database.write() as session:
            if after is not None:
                await session.driver.execute(after, key)
            await session.driver.execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'")
            yield session
    except LockTimeoutError as error:
        raise PostponedError("others hold a lock on it") from error
    except pg.DeadlockDetectedError as error:
        raise PostponedError("others held a lock on it") from error
    except pg.DuplicateTableError as error:
        # An operator has detached it, perhaps to keep what is in it.
        raise PostponedError("a table of its name is there already, and is no partition") from error


def _count(tag: str) -> int:
    """How many rows a statement changed, by its command tag."""
    return int(tag.rsplit(" ", 1)[-1])
