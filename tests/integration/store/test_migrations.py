"""The schema comes up, goes down, and is what the code and the invariants take it for."""

import pytest
from sqlalchemy import Connection, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from kernel.store import migrate, partitions
from kernel.store.engine import Database
from kernel.store.tables import metadata

OBJECTS = """
SELECT c.relkind::text || ' ' || c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'function ' || p.proname::text FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'type ' || t.typname::text FROM pg_type t
WHERE t.typnamespace = 'public'::regnamespace AND t.typrelid = 0 AND t.typelem = 0
ORDER BY 1
"""

# Every primary key, unique key and foreign key (both its ends), and every other unique index, by its first column.
KEYS = """
SELECT c.conrelid::regclass || '.' || c.conname AS name, a.attname AS leading
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
WHERE c.contype IN ('p', 'u', 'f') AND c.connamespace = 'public'::regnamespace
UNION ALL
SELECT c.conrelid::regclass || '.' || c.conname || ' (referred to)', a.attname
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = c.confkey[1]
WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
UNION ALL
SELECT i.indexrelid::regclass::text, a.attname
FROM pg_index i
JOIN pg_class r ON r.oid = i.indrelid AND r.relnamespace = 'public'::regnamespace
LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indisunique
"""

# A tenant's name is unique among all tenants; the version's table is Alembic's.
NOT_OF_A_TENANT = {"tenants.tenants_slug_key", "tenants_slug_key"}
VERSION_TABLE = migrate.VERSION_TABLE

INDEXES_OF_RUNS = "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'agent_runs'::regclass"

WITHOUT_TENANT = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> $1
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.attnotnull)
"""


async def objects_in(url: str) -> list[str]:
    database = Database(url, pool_size=1)
    try:
        async with database.read() as session:
            return [row[0] for row in await session.driver.fetch(OBJECTS)]
    finally:
        await database.close()


async def test_the_schema_goes_down_without_a_trace_and_up_again_alike(empty_url: str) -> None:
    await migrate.upgrade(empty_url)
    first = await objects_in(empty_url)
    assert await migrate.current_revision(empty_url) == migrate.head_revision()
    await partitions.ensure_partitions(empty_url)

    await migrate.downgrade(empty_url, "base")
    assert await migrate.current_revision(empty_url) is None
    assert {name for name in await objects_in(empty_url) if VERSION_TABLE not in name} == set()

    await migrate.upgrade(empty_url)
    assert await objects_in(empty_url) == first


async def test_a_second_upgrade_changes_nothing(empty_url: str) -> None:
    await migrate.upgrade(empty_url)
    first = await objects_in(empty_url)
    await migrate.upgrade(empty_url)
    assert await objects_in(empty_url) == first


@pytest.mark.parametrize("table", sorted(metadata.tables))
async def test_the_tables_in_the_code_are_those_of_the_schema(database: Database, table: str) -> None:
    def reflect(connection: Connection) -> dict[str, tuple[str, bool]]:
        return {
            column["name"]: (spelt(column["type"]), column["nullable"])
            for column in inspect(connection).get_columns(table)
        }

    async with database.read() as session:
        reflected = await session.core.run_sync(reflect)
    declared = {column.name: (spelt(column.type), bool(column.nullable)) for column in metadata.tables[table].columns}
    assert declared == reflected


@pytest.mark.parametrize("table", sorted(metadata.tables))
async def test_the_primary_keys_in_the_code_are_those_of_the_schema(database: Database, table: str) -> None:
    def reflect(connection: Connection) -> list[str]:
        return inspect(connection).get_pk_constraint(table)["constrained_columns"]

    async with database.read() as session:
        reflected = await session.core.run_sync(reflect)
    assert [column.name for column in metadata.tables[table].primary_key] == reflected


async def test_the_tenant_leads_every_key(own_database: Database) -> None:
    await partitions.ensure(own_database)
    async with own_database.read() as session:
        keys = await session.driver.fetch(KEYS)
    assert len(keys) > 50
    astray = {row["name"]: row["leading"] for row in keys if row["leading"] != "tenant_id"}
    assert {name for name in astray if VERSION_TABLE not in name} == NOT_OF_A_TENANT


async def test_every_row_is_a_tenants(own_database: Database) -> None:
    await partitions.ensure(own_database)
    async with own_database.read() as session:
        assert await session.driver.fetch(WITHOUT_TENANT, VERSION_TABLE) == []


async def test_runs_have_at_most_five_indexes(database: Database) -> None:
    async with database.read() as session:
        indexes = [row[0] for row in await session.driver.fetch(INDEXES_OF_RUNS)]
    assert len(indexes) <= 5, indexes


def spelt(column_type: TypeEngine[object]) -> str:
    return column_type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]
