"""Partitions are made ahead once, take over what came too late for them, and go when their time is over."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from asyncpg import exceptions as pg

from kernel.identifiers import new_id
from kernel.reconcilers.prune_records import PruneRecords
from kernel.store import decision_pages, partitions
from kernel.store.engine import Database
from kernel.store.partitions import TABLES, Table, week_of

DAY = timedelta(days=1)

INSERT_DECISIONS = """
INSERT INTO policy_decisions (tenant_id, decision_id, action, surface, outcome, reasons, revision, input, result,
  duration_us, created_at)
SELECT $1, gen_random_uuid(), 'spawn_run', 'option_b_runtime_primitives', 'allow', '[]', 'r', '{}', '{}', 1, $2
FROM generate_series(1, $3)
"""
INSERT_EVENT = """
INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data, created_at)
VALUES ($1, $2, $3, 't', 's', $2, '{}', '{}', $4)
"""


async def insert_decisions(database: Database, moment: datetime, count: int = 1) -> UUID:
    """Decisions of a tenant of their own, which is returned."""
    tenant_id = uuid4()
    async with database.write() as session:
        await session.driver.execute(INSERT_DECISIONS, tenant_id, moment, count)
    return tenant_id


async def count_of(database: Database, tenant_id: UUID, source: str = "policy_decisions") -> int:
    async with database.read() as session:
        count: int = await session.driver.fetchval(f"SELECT count(*) FROM {source} WHERE tenant_id = $1", tenant_id)
    return count


async def make_partition(database: Database, table: Table, moment: datetime) -> str:
    week = week_of(table, moment)
    async with database.write() as session:
        await session.driver.execute(
            f"CREATE TABLE {week.name} PARTITION OF {table}"
            f" FOR VALUES FROM ('{week.lower.isoformat()}') TO ('{week.upper.isoformat()}')"
        )
    return week.name


async def names_of(database: Database, table: Table) -> list[str]:
    return [partition.name for partition in await partitions.partitions_of(database, table)]


@pytest.mark.parametrize(
    ("moment", "name", "monday"),
    [
        (datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC), "run_events_2026w47", datetime(2026, 11, 16, tzinfo=UTC)),
        (datetime(2026, 11, 23, tzinfo=UTC), "run_events_2026w48", datetime(2026, 11, 23, tzinfo=UTC)),
        (datetime(2027, 1, 2, tzinfo=UTC), "run_events_2026w53", datetime(2026, 12, 28, tzinfo=UTC)),
        (datetime(2024, 12, 31, tzinfo=UTC), "run_events_2025w01", datetime(2024, 12, 30, tzinfo=UTC)),
        (
            datetime.fromisoformat("2026-11-23T05:00:00+09:00"),
            "run_events_2026w47",
            datetime(2026, 11, 16, tzinfo=UTC),
        ),
    ],
)
def test_a_partition_is_an_iso_week_in_utc(moment: datetime, name: str, monday: datetime) -> None:
    week = week_of("run_events", moment)
    assert (week.name, week.lower, week.upper) == (name, monday, monday + 7 * DAY)


async def test_eight_processes_make_each_partition_once(own_database: Database) -> None:
    done = await asyncio.gather(*(partitions.ensure(own_database) for _ in range(8)))
    assert sum(ensured.created for ensured in done) == 10
    assert not any(ensured.postponed for ensured in done)
    now = datetime.now(UTC)
    for table in TABLES:
        found = await partitions.partitions_of(own_database, table)
        assert found == [week_of(table, now + week * 7 * DAY) for week in range(5)]
    assert await partitions.ensure(own_database) == partitions.Ensured()


async def test_a_partition_has_the_keys_and_checks_of_its_table(own_database: Database) -> None:
    await partitions.ensure(own_database)
    name = week_of("policy_decisions", datetime.now(UTC)).name
    tenant_id = await insert_decisions(own_database, datetime.now(UTC))
    assert await count_of(own_database, tenant_id, name) == 1
    async with own_database.read() as session:
        indexes = "SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass"
        assert await session.driver.fetchval(indexes, name) == await session.driver.fetchval(
            indexes, "policy_decisions_default"
        )
    with pytest.raises(pg.CheckViolationError):
        async with own_database.write() as session:
            await session.driver.execute(INSERT_DECISIONS.replace("'allow'", "'maybe'"), uuid4(), datetime.now(UTC), 1)


async def test_what_came_too_early_for_a_partition_is_moved_into_it(own_database: Database) -> None:
    now = datetime.now(UTC)
    this_week = await insert_decisions(own_database, now, 30)
    long_ago = await insert_decisions(own_database, now - 100 * DAY, 3)
    done = await partitions.ensure(own_database)
    assert done.moved == 30
    assert await count_of(own_database, this_week, week_of("policy_decisions", now).name) == 30
    assert await count_of(own_database, this_week) == 30
    assert await count_of(own_database, long_ago, "policy_decisions_default") == 3


async def test_an_operators_own_partitions_are_heeded(own_database: Database) -> None:
    now = datetime.now(UTC)
    async with own_database.write() as session:
        await session.driver.execute(
            "CREATE TABLE past PARTITION OF policy_decisions FOR VALUES FROM (MINVALUE) TO ('2001-01-01')"
        )
        await session.driver.execute(
            "CREATE TABLE future PARTITION OF policy_decisions"
            f" FOR VALUES FROM ('{week_of('policy_decisions', now + 14 * DAY).lower.isoformat()}') TO ('infinity')"
        )
    done = await partitions.ensure(own_database)
    assert (done.created, done.postponed) == (5 + 2, 0)
    assert len(await names_of(own_database, "policy_decisions")) == 4
    assert (await PruneRecords(own_database, decision_retention_days=30).run_once()).dropped == 1
    assert "past" not in await names_of(own_database, "policy_decisions")


async def test_a_detached_partition_is_left_as_it_is(own_database: Database) -> None:
    await partitions.ensure(own_database)
    name = week_of("run_events", datetime.now(UTC)).name
    async with own_database.write() as session:
        await session.driver.execute(f"ALTER TABLE run_events DETACH PARTITION {name}")
    done = await partitions.ensure(own_database, attempts=1)
    assert (done.created, done.postponed) == (0, 1)
    async with own_database.write() as session:
        await session.driver.execute(INSERT_EVENT, uuid4(), uuid4(), 1, datetime.now(UTC))


async def test_writers_lose_nothing_while_partitions_are_made(own_database: Database) -> None:
    tenant_id, root_run_id = uuid4(), uuid4()
    begun, made = asyncio.Event(), asyncio.Event()

    async def write() -> int:
        written = 0
        while not made.is_set() or written < 50:
            async with own_database.write() as session:
                await session.driver.execute(INSERT_EVENT, tenant_id, root_run_id, written + 1, datetime.now(UTC))
            written += 1
            if written == 20:
                begun.set()
        return written

    async def read() -> None:
        seen = 0
        while not made.is_set():
            async with own_database.read() as session:
                numbers = await session.driver.fetch(
                    "SELECT seq FROM run_events WHERE tenant_id = $1 AND root_run_id = $2 ORDER BY seq",
                    tenant_id,
                    root_run_id,
                )
            assert [row["seq"] for row in numbers] == list(range(1, len(numbers) + 1))
            assert len(numbers) >= seen
            seen = len(numbers)

    writer, reader = asyncio.create_task(write()), asyncio.create_task(read())
    await begun.wait()
    done = await partitions.ensure(own_database)
    made.set()
    written, _ = await asyncio.gather(writer, reader)
    assert done.moved >= 20
    assert done.postponed == 0
    assert await count_of(own_database, tenant_id, "run_events") == written
    assert await count_of(own_database, tenant_id, "run_events_default") == 0


async def test_a_long_reader_postpones_a_partition_and_stops_no_writer(own_database: Database) -> None:
    async with own_database.write() as session:
        await session.driver.fetch("SELECT 1 FROM run_events")
        done = await partitions.ensure(own_database, weeks_ahead=0, attempts=1)
        assert (done.created, done.postponed) == (1, 1)
        async with asyncio.timeout(2), own_database.write() as other:
            await other.driver.execute(INSERT_EVENT, uuid4(), uuid4(), 1, datetime.now(UTC))
    assert (await partitions.ensure(own_database, weeks_ahead=0)).created == 1


async def test_a_large_default_partition_is_left_alone_and_reported(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "MAX_DEFAULT_BYTES", 8192)
    tenant_id = await insert_decisions(own_database, datetime.now(UTC), 500)
    done = await partitions.ensure(own_database, weeks_ahead=0, attempts=1)
    assert (done.created, done.postponed, done.moved) == (1, 1, 0)
    assert await count_of(own_database, tenant_id) == 500


async def test_decisions_go_when_they_are_older_than_what_is_kept(own_database: Database) -> None:
    now = datetime.now(UTC)
    whole = await make_partition(own_database, "policy_decisions", now - 60 * DAY)
    boundary = await make_partition(own_database, "policy_decisions", now - 30 * DAY)
    old = await insert_decisions(own_database, now - 60 * DAY, 5)
    just_old = await insert_decisions(own_database, now - 30 * DAY - timedelta(minutes=1), 2_345)
    just_kept = await insert_decisions(own_database, now - 30 * DAY + timedelta(minutes=10), 7)
    old_by_default = await insert_decisions(own_database, now - 200 * DAY, 4)
    kept_by_default = await insert_decisions(own_database, now - 20 * DAY, 6)
    new = await insert_decisions(own_database, now, 3)

    counts = await PruneRecords(own_database, decision_retention_days=30).run_once()

    assert (counts.dropped, counts.deleted, counts.postponed) == (1, 2_345 + 4, 0)
    assert whole not in await names_of(own_database, "policy_decisions")
    assert boundary in await names_of(own_database, "policy_decisions")
    for tenant_id, left in (
        (old, 0),
        (just_old, 0),
        (just_kept, 7),
        (old_by_default, 0),
        (kept_by_default, 6),
        (new, 3),
    ):
        assert await count_of(own_database, tenant_id) == left
    assert (await PruneRecords(own_database, decision_retention_days=30).run_once()).total == 0


async def test_a_pass_that_looks_at_a_part_goes_on_from_there(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.reconcilers.prune_records.STRETCH_PAGES", 2)
    monkeypatch.setattr("kernel.reconcilers.prune_records.MAX_STRETCHES", 3)
    tenant_id = await insert_decisions(own_database, datetime.now(UTC) - 50 * DAY, 1_000)
    prune = PruneRecords(own_database, decision_retention_days=30)
    passes = [await prune.run_once() for _ in range(12)]
    assert sum(counts.deleted for counts in passes) == 1_000
    assert sum(counts.deleted > 0 for counts in passes) > 2
    assert await count_of(own_database, tenant_id) == 0


async def test_two_processes_prune_at_once(own_database: Database) -> None:
    now = datetime.now(UTC)
    await make_partition(own_database, "policy_decisions", now - 60 * DAY)
    await insert_decisions(own_database, now - 60 * DAY)
    await insert_decisions(own_database, now - 50 * DAY, 2_000)
    both = await asyncio.gather(*(PruneRecords(own_database, decision_retention_days=30).run_once() for _ in range(2)))
    assert sum(counts.deleted for counts in both) == 2_000
    assert sum(counts.postponed for counts in both) == 0
    async with own_database.read() as session:
        assert await session.driver.fetchval("SELECT count(*) FROM policy_decisions") == 0


async def test_events_are_kept_unless_told_otherwise_and_while_their_tree_is_active(own_database: Database) -> None:
    now = datetime.now(UTC)
    old = [await make_partition(own_database, "run_events", now - days * DAY) for days in (80, 60)]
    boundary = await make_partition(own_database, "run_events", now - 30 * DAY)
    tenant_id, active, ended = uuid4(), new_id(), new_id()
    async with own_database.write() as session:
        await session.driver.execute("INSERT INTO tenants (tenant_id, slug, name) VALUES ($1, 't', 't')", tenant_id)
        await session.driver.executemany(
            "INSERT INTO run_trees (tenant_id, root_run_id, running_runs) VALUES ($1, $2, $3)",
            [(tenant_id, active, 1), (tenant_id, ended, 0)],
        )
        await session.driver.executemany(
            INSERT_EVENT,
            [
                (tenant_id, ended, 1, now - 80 * DAY),
                (tenant_id, ended, 2, now - 60 * DAY),
                (tenant_id, active, 1, now - 60 * DAY),
                (tenant_id, active, 2, now - 30 * DAY - timedelta(minutes=1)),
            ],
        )

    kept = await PruneRecords(own_database, decision_retention_days=30).run_once()
    assert kept.dropped == 0
    assert await count_of(own_database, tenant_id, "run_events") == 4

    prune = PruneRecords(own_database, decision_retention_days=30, event_retention_days=30)
    counts = await prune.run_once()
    assert (counts.dropped, counts.deleted, counts.postponed) == (1, 0, 1)
    left = await names_of(own_database, "run_events")
    assert old[0] not in left
    assert {old[1], boundary} <= set(left)
    assert await count_of(own_database, tenant_id, "run_events") == 3

    async with own_database.write() as session:
        await session.driver.execute("UPDATE run_trees SET running_runs = 0")
    assert (await prune.run_once()).dropped == 1
    assert await count_of(own_database, tenant_id, "run_events") == 1


async def test_a_look_up_by_id_touches_the_partitions_of_its_time_only(own_database: Database) -> None:
    await partitions.ensure(own_database)
    now = datetime.now(UTC)
    for days in (7, 14, 21, 28):
        await make_partition(own_database, "policy_decisions", now - days * DAY)
    decision_id = new_id()
    async with own_database.write() as session:
        plan = await session.driver.fetch(f"EXPLAIN {decision_pages.ONE}", uuid4(), decision_id, now - DAY, now + DAY)
    text = "\n".join(row[0] for row in plan)
    touched = {
        name for name in [*await names_of(own_database, "policy_decisions"), "policy_decisions_default"] if name in text
    }
    assert week_of("policy_decisions", now).name in touched
    assert len(touched) <= 2
    assert "policy_decisions_default" not in touched
    assert "Index Scan" in text
    assert "Seq Scan" not in text


@pytest.mark.parametrize(
    "wanted",
    [
        decision_pages.DecisionFilter(),
        decision_pages.DecisionFilter(run_id=uuid4()),
        decision_pages.DecisionFilter(outcome="deny"),
        decision_pages.DecisionFilter(reason="max_depth_exceeded"),
        decision_pages.DecisionFilter(action="retrieve", since=datetime.now(UTC) - 3 * DAY),
    ],
)
async def test_a_page_comes_straight_from_indexes(
    own_database: Database, wanted: decision_pages.DecisionFilter
) -> None:
    await partitions.ensure(own_database)
    tenant_id = uuid4()
    async with own_database.write() as session:
        await session.driver.execute(FILL, tenant_id)
        await session.driver.execute("ANALYZE policy_decisions")
        statement, arguments = decision_pages.compose(tenant_id, wanted, before=new_id(), limit=100)
        plan = "\n".join(row[0] for row in await session.driver.fetch(f"EXPLAIN {statement}", *arguments))
    # An empty partition is read as it is; the one with the rows is not.
    assert f"Seq Scan on {week_of('policy_decisions', datetime.now(UTC)).name}" not in plan, plan
    # Those of the next weeks are out of the question: the page before was of now.
    assert week_of("policy_decisions", datetime.now(UTC) + 14 * DAY).name not in plan, plan


FILL = """
INSERT INTO policy_decisions (tenant_id, decision_id, action, surface, outcome, reasons, revision, caller_run_id,
  root_run_id, input, result, duration_us)
SELECT CASE n % 2 WHEN 0 THEN $1 ELSE gen_random_uuid() END, uuidv7(), 'spawn_run', 's',
  CASE n % 10 WHEN 0 THEN 'deny' ELSE 'allow' END, '[]', 'r', gen_random_uuid(), gen_random_uuid(), '{}', '{}', 1
FROM generate_series(1, 20000) AS n
"""
