"""The script that distributes the schema names what is in the schema, in an order in which Citus takes it."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernel.store.engine import Database
from kernel.store.migrate import VERSION_TABLE

SCRIPT = Path(__file__).parents[3] / "deploy" / "citus" / "distribute.sql"

TABLES = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""
FOREIGN_KEYS = """
SELECT c.conname, c.conrelid::regclass::text AS child, c.confrelid::regclass::text AS parent,
  (SELECT array_agg(a.attname ORDER BY k.place) FROM unnest(c.conkey) WITH ORDINALITY AS k (number, place)
    JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number) AS columns,
  pg_get_constraintdef(c.oid) AS definition
FROM pg_constraint c JOIN pg_class p ON p.oid = c.conrelid
WHERE c.contype = 'f' AND p.relnamespace = 'public'::regnamespace AND NOT p.relispartition
"""
UNIQUE_WITHOUT_TENANT = """
SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
WHERE i.indisunique AND t.relnamespace = 'public'::regnamespace AND t.relname = ANY ($1::text[])
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attname = 'tenant_id'
    AND a.attnum = ANY (i.indkey))
"""


@dataclass(frozen=True)
class Key:
    child: str
    parent: str
    columns: list[str]
    definition: str


@pytest.fixture(scope="module")
def script() -> str:
    return "\n".join(line for line in SCRIPT.read_text().splitlines() if not line.startswith("--"))


@pytest.fixture(scope="module")
async def keys(database: Database) -> dict[str, Key]:
    async with database.read() as session:
        rows = await session.driver.fetch(FOREIGN_KEYS)
    return {row["conname"]: Key(row["child"], row["parent"], row["columns"], row["definition"]) for row in rows}


def distributed(script: str) -> list[str]:
    return re.findall(r"create_distributed_table\('(\w+)', 'tenant_id'", script)


def referenced(script: str) -> list[str]:
    return re.findall(r"create_reference_table\('(\w+)'\)", script)


async def test_every_table_of_the_schema_is_named_once_and_no_other(script: str, database: Database) -> None:
    async with database.read() as session:
        tables = {row["relname"] for row in await session.driver.fetch(TABLES)}
    named = [*referenced(script), *distributed(script)]
    assert sorted(named) == sorted(tables - {VERSION_TABLE})


async def test_what_a_foreign_key_refers_to_comes_first_unless_the_key_is_off_meanwhile(
    script: str, keys: dict[str, Key]
) -> None:
    place = {table: number for number, table in enumerate([*referenced(script), *distributed(script)])}
    before, after = script.split("create_distributed_table", 1)[0], script.rsplit("create_distributed_table", 1)[1]
    dropped = set(re.findall(r"DROP CONSTRAINT (\w+)", before))
    assert dropped == set(re.findall(r"ADD CONSTRAINT (\w+)", after))
    late = {name for name, key in keys.items() if place[key.parent] > place[key.child]}
    assert late == dropped


async def test_the_key_that_is_put_back_is_the_one_that_was_there(script: str, keys: dict[str, Key]) -> None:
    added = re.findall(r"ALTER TABLE (\w+)\s+ADD CONSTRAINT (\w+)\s+(FOREIGN KEY[^;]+);", script)
    assert added
    for table, name, definition in added:
        assert keys[name].child == table
        same = " ".join(definition.split()).removesuffix(" INITIALLY IMMEDIATE")
        assert same == keys[name].definition


async def test_every_key_is_one_that_citus_can_hold(script: str, keys: dict[str, Key], database: Database) -> None:
    references, tables = set(referenced(script)), distributed(script)
    for name, key in keys.items():
        assert key.child not in references, f"{name}: a reference table refers to nothing that is distributed"
        assert key.columns[0] == "tenant_id", name
    async with database.read() as session:
        assert await session.driver.fetch(UNIQUE_WITHOUT_TENANT, tables) == []
