"""No statement reads more than what it is asked for, whatever the planner has counted by then.

The plans are the generic ones, which is what our sessions run.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

import kernel.store
from kernel import wakeups
from kernel.store import drains, lineage, migrate, partitions, retrieval
from kernel.store.engine import Database

Plan = dict[str, Any]

# The tables that grow with what is done, and not with what is set up.
GROWING = re.compile(
    r"agent_runs|run_payloads|run_leases|run_deadlines|run_trees|orchestration_groups|cancellations|root_run_keys"
    r"|run_events.*|policy_decisions.*"
)

# What is asked by the clock, of all tenants: it reads what is active, due or open, or the first of it.
OF_ALL_TENANTS = {
    "drains.OPEN",
    "groups.NEXT_DEADLINE",
    "leases.NEXT_EXPIRY",
    "totals.ACTIVE_RUNS",
}
# Its schema is made by another library; partitions are read through by place.
NOT_PLANNED = {"graph_runs.LEFT_BEHIND", "partitions"}

FILL = """
INSERT INTO tenants (tenant_id, slug, name) SELECT uuidv7(), 't-' || n, 't' FROM generate_series(1, 3) AS n;
INSERT INTO agents (tenant_id, agent_id, slug, name, kind)
SELECT tenant_id, uuidv7(), 'a', 'a', 'external' FROM tenants;
INSERT INTO run_trees (tenant_id, root_run_id)
SELECT tenant_id, uuidv7() FROM tenants CROSS JOIN generate_series(1, 1000) WHERE slug <> 't-3';
INSERT INTO agent_runs (tenant_id, run_id, root_run_id, depth, agent_id, surface, status, background, effective_scopes,
  failure_policy, spawned_seq)
SELECT t.tenant_id, t.root_run_id, t.root_run_id, 0, a.agent_id, 'option_b_runtime_primitives', 'queued', true, '{}',
  'best_effort', 1
FROM run_trees t JOIN agents a ON a.tenant_id = t.tenant_id;
INSERT INTO agent_runs (tenant_id, run_id, root_run_id, parent_run_id, spawn_key, depth, agent_id, surface, status,
  background, effective_scopes, failure_policy, spawned_seq)
SELECT r.tenant_id, uuidv7(), r.run_id, r.run_id, n::text, 1, r.agent_id, r.surface, 'queued', true, '{}',
  'best_effort', n + 1
FROM agent_runs r CROSS JOIN generate_series(1, 2) AS n;
INSERT INTO run_payloads (tenant_id, run_id, input) SELECT tenant_id, run_id, '{}' FROM agent_runs;
"""

# What autovacuum would: a table without rows is never counted.
ANALYZE = "ANALYZE tenants, agents, run_trees, agent_runs, run_payloads"


def statements() -> Iterator[tuple[str, str]]:
    """The statements of the store by module and name, as far as they are constants."""
    names = [found.name for found in pkgutil.iter_modules(kernel.store.__path__) if not found.ispkg]
    modules: list[tuple[str, ModuleType]] = [
        ("wakeups", wakeups),
        *((name, importlib.import_module(f"kernel.store.{name}")) for name in names),
    ]
    for module, contents in modules:
        for name, value in vars(contents).items():
            if isinstance(value, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", value):
                yield f"{module}.{name}", value
    for scope, look in drains.LOOK.items():
        yield f"drains.LOOK.{scope}", look
    yield "drains.CANCEL", drains._CANCEL.format(chunk="$2::uuid[]")


def is_planned(name: str, sql: str) -> bool:
    """Whether a constant is a statement of its own, and not a part of one."""
    module, constant = name.split(".", maxsplit=1)
    return (
        not constant.startswith("_")
        and not {name, module} & NOT_PLANNED
        and "{" not in sql.replace("'{}'", "")
        and name != "drains.WHOLE_TREE"
    )


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def reads_too_much(node: Plan) -> bool:
    """Whether a node reads a growing table with no more to go by than the tenant."""
    table = node.get("Relation Name")
    if table is None or "Scan" not in node["Node Type"] or not GROWING.fullmatch(table):
        return False
    condition = node.get("Index Cond") or node.get("Recheck Cond") or ""
    columns = set(re.findall(r"\b(\w+) (?:=|<=|>=|<|>) ", condition)) | set(re.findall(r"ROW\((\w+)", condition))
    return not columns - {"tenant_id"}


def plans(url: str, wanted: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Plan]]:
    """The generic plans of statements, in sessions that are set as ours."""
    address = make_url(url)
    with psycopg.connect(
        host=str(address.query["host"]),
        port=int(str(address.query["port"])),
        user=address.username,
        dbname=address.database,
        options="-c jit=off -c enable_seqscan=off",
        autocommit=True,
    ) as connection:
        for name, sql in wanted:
            row = connection.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {sql}".encode()).fetchone()
            assert row is not None
            yield name, row[0][0]["Plan"]


def examine(url: str) -> list[str]:
    """The statements whose plan reads too much, each with the node that does."""
    planned = [(name, sql) for name, sql in statements() if is_planned(name, sql)]
    assert len(planned) > 100
    return [
        f"{name}: {node['Node Type']} of {node['Relation Name']} by {node.get('Index Name')},"
        f" {node.get('Index Cond')}, {node.get('Filter')}"
        for name, plan in plans(url, planned)
        for node in nodes(plan)
        if reads_too_much(node) and name not in OF_ALL_TENANTS
    ]


@pytest.mark.parametrize("filled", [False, True], ids=["nothing counted", "two tenants counted"])
async def test_no_statement_reads_all_that_a_tenant_has(own_database: Database, filled: bool) -> None:
    await partitions.ensure(own_database)
    if filled:
        async with own_database.write() as session:
            await session.driver.execute(FILL)
        async with own_database.read() as session:
            await session.driver.execute(ANALYZE)
    assert "\n".join(examine(own_database.url)) == ""


async def test_a_look_below_a_run_does_not_read_all_its_children_first(own_database: Database) -> None:
    async with own_database.write() as session:
        few_trees = FILL.replace("CROSS JOIN generate_series(1, 1000)", "CROSS JOIN generate_series(1, 4)")
        await session.driver.execute(few_trees.replace("generate_series(1, 2) AS n", "generate_series(1, 3000) AS n"))
    async with own_database.read() as session:
        await session.driver.execute(ANALYZE)
    looks = [*((f"look {scope}", sql) for scope, sql in drains.LOOK.items()), ("page", lineage.SUBTREE_PAGE)]
    for name, plan in plans(own_database.url, looks):
        steps = [node["Node Type"] for node in nodes(plan) if node.get("Relation Name") == "agent_runs"]
        assert steps, name
        assert set(steps) == {"Index Scan"}, name


async def test_a_search_goes_by_its_words(own_database: Database) -> None:
    ((_, plan),) = plans(own_database.url, [("words", retrieval.BY_WORDS)])
    assert [node["Index Name"] for node in nodes(plan) if node["Node Type"] == "Bitmap Index Scan"] == [
        "retrieval_chunks_words"
    ]


async def test_what_the_planner_is_told_of_tenants_outlasts_its_counting(own_database: Database) -> None:
    await partitions.ensure(own_database)
    async with own_database.write() as session:
        await session.driver.execute(FILL)
    async with own_database.read() as session:
        await session.driver.execute(ANALYZE)
        counted = await session.driver.fetch(
            "SELECT tablename FROM pg_stats WHERE attname = 'tenant_id' AND schemaname = 'public'"
            " AND tablename <> 'tenants' AND (n_distinct <> 1 OR most_common_vals IS NOT NULL)"
        )
        told = await session.driver.fetchval(
            "SELECT count(*) FROM pg_stats WHERE attname = 'tenant_id' AND schemaname = 'public' AND n_distinct = 1"
        )
    assert counted == []
    assert told > 20


async def test_a_second_upgrade_has_nothing_more_to_say(own_database: Database) -> None:
    await migrate.upgrade(own_database.url)
    async with own_database.read() as session:
        targets = await session.driver.fetch(
            "SELECT a.attrelid::regclass::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace"
            " AND c.relname <> 'tenants' AND a.attstattarget IS DISTINCT FROM 0"
        )
    assert targets == []


async def test_the_open_fences_are_held_against_those_passed_over_by_hash(own_database: Database) -> None:
    ((_, plan),) = plans(own_database.url, [("drains.OPEN", drains.OPEN)])
    (read,) = [node for node in nodes(plan) if node.get("Relation Name") == "cancellations"]
    assert "hashed SubPlan" in read["Filter"]
