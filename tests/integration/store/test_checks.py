"""The database itself refuses a state that no state machine has, whoever writes it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import product
from uuid import UUID, uuid4

import pytest
from asyncpg import exceptions as pg

from kernel.domain.joins import GroupStatus
from kernel.domain.run import TERMINAL, RunStatus
from kernel.store.engine import Database, ReadSession

NOW = datetime(2026, 11, 20, tzinfo=UTC)

DECIDED = {GroupStatus.COMPLETED, GroupStatus.COMPLETED_WITH_ERRORS, GroupStatus.FAILED, GroupStatus.TIMED_OUT}
MUST_HAVE_STARTED = {RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.COMPLETED}

TENANT, AGENT, ROOT, GROUP = (UUID(int=number) for number in range(1, 5))

ROOT_RUN: Mapping[str, object] = {
    "tenant_id": TENANT,
    "run_id": ROOT,
    "root_run_id": ROOT,
    "depth": 0,
    "agent_id": AGENT,
    "surface": "option_b_runtime_primitives",
    "status": "queued",
    "background": True,
    "effective_scopes": [],
    "failure_policy": "best_effort",
    "spawned_seq": 1,
}

# A legal row of each table that has states, in the world that `build` makes.
LEGAL: Mapping[str, Mapping[str, object]] = {
    "tenants": {"tenant_id": UUID(int=9), "slug": "another", "name": "another"},
    "agents": {"tenant_id": TENANT, "agent_id": UUID(int=9), "slug": "another", "name": "another", "kind": "external"},
    "orchestrator_policies": {
        "tenant_id": TENANT,
        "agent_id": AGENT,
        "max_depth": 0,
        "max_fanout": 0,
        "max_children_total": 0,
        "join_timeout_s": 1,
        "default_failure_policy": "best_effort",
        "enforce_published_only": True,
        "allowed_scope_subset": [],
        "parent_close_policy": "continue",
        "is_active": True,
    },
    "orchestrator_allowlist": {"tenant_id": TENANT, "agent_id": AGENT, "ordinal": 0, "capability_tag": "tag"},
    "run_trees": {"tenant_id": TENANT, "root_run_id": UUID(int=9)},
    "agent_runs": {
        **ROOT_RUN,
        "run_id": UUID(int=9),
        "parent_run_id": ROOT,
        "depth": 1,
        "spawn_key": "key",
        "spawned_seq": 2,
    },
    "orchestration_groups": {
        "tenant_id": TENANT,
        "group_id": UUID(int=9),
        "root_run_id": ROOT,
        "orchestrator_run_id": ROOT,
        "spawn_key_prefix": "another",
        "surface": "option_b_runtime_primitives",
        "status": "running",
        "join_mode": "all",
        "failure_policy": "best_effort",
        "timeout_s": 60,
        "size": 3,
        "spawned_seq": 2,
        "deadline": NOW,
        "decision_id": UUID(int=9),
        "request_digests": "{}",
        "policy_snapshot": "{}",
        "effective_scopes": [],
    },
    "run_leases": {
        "tenant_id": TENANT,
        "run_id": ROOT,
        "root_run_id": ROOT,
        "attempt": 1,
        "granted": UUID(int=9),
        "lease": UUID(int=9),
        "expires_at": NOW,
        "token_expires_at": NOW,
    },
    "cancellations": {
        "tenant_id": TENANT,
        "cancellation_id": UUID(int=9),
        "root_run_id": ROOT,
        "run_id": ROOT,
        "scope": "run",
        "reason": "reason",
        "fence_seq": 3,
    },
    "policy_decisions": {
        "tenant_id": TENANT,
        "decision_id": UUID(int=9),
        "action": "spawn_run",
        "surface": "option_b_runtime_primitives",
        "outcome": "deny",
        "reasons": "[]",
        "revision": "r",
        "input": "{}",
        "result": "{}",
        "duration_us": 1,
    },
}

ILLEGAL: list[tuple[str, dict[str, object]]] = [
    ("tenants", {"max_active_runs": 0}),
    ("agents", {"kind": "robot"}),
    ("agents", {"status": "retired"}),
    ("agents", {"graph_definition": "{}"}),
    ("orchestrator_policies", {"max_depth": -1}),
    ("orchestrator_policies", {"max_fanout": -1}),
    ("orchestrator_policies", {"max_children_total": -1}),
    ("orchestrator_policies", {"join_timeout_s": 0}),
    ("orchestrator_policies", {"default_failure_policy": "shrug"}),
    ("orchestrator_policies", {"parent_close_policy": "shrug"}),
    ("orchestrator_allowlist", {"capability_tag": None}),
    ("orchestrator_allowlist", {"target_agent_slug": "slug"}),
    ("orchestrator_allowlist", {"target_agent_id": AGENT}),
    ("run_trees", {"children_total": -1}),
    ("run_trees", {"seq": -1}),
    ("run_trees", {"open_fences": -1}),
    ("run_trees", {"queued_runs": -1}),
    ("run_trees", {"running_runs": -1}),
    ("run_trees", {"paused_runs": -1}),
    ("agent_runs", {"status": "lost"}),
    ("agent_runs", {"surface": "option_c"}),
    ("agent_runs", {"failure_policy": "shrug"}),
    ("agent_runs", {"depth": 0}),
    ("agent_runs", {"spawn_key": None}),
    ("agent_runs", {"run_id": ROOT}),
    ("agent_runs", {"parent_run_id": None}),
    ("agent_runs", {"parent_run_id": None, "depth": 0}),
    ("agent_runs", {"parent_run_id": None, "run_id": ROOT}),
    ("agent_runs", {"children_count": -1}),
    ("agent_runs", {"replan_attempts": -1}),
    ("agent_runs", {"timeout_s": 0}),
    ("agent_runs", {"status": "running", "started_seq": 3}),
    ("agent_runs", {"status": "running", "started_at": NOW}),
    ("agent_runs", {"status": "cancelled", "finalized_seq": 3}),
    ("agent_runs", {"status": "cancelled", "finalized_at": NOW}),
    ("orchestration_groups", {"status": "lost", "decided_at": NOW}),
    ("orchestration_groups", {"join_mode": "most"}),
    ("orchestration_groups", {"failure_policy": "shrug"}),
    ("orchestration_groups", {"join_mode": "quorum"}),
    ("orchestration_groups", {"join_mode": "quorum", "quorum_threshold": 0}),
    ("orchestration_groups", {"join_mode": "quorum", "quorum_threshold": 4}),
    ("orchestration_groups", {"timeout_s": 0}),
    ("orchestration_groups", {"size": -1}),
    ("orchestration_groups", {"success_count": -1}),
    ("orchestration_groups", {"failure_count": -1}),
    ("orchestration_groups", {"success_count": 2, "failure_count": 2}),
    ("run_leases", {"attempt": 0}),
    ("run_leases", {"max_attempts": 0}),
    ("run_leases", {"lease": None}),
    ("run_leases", {"expires_at": None}),
    ("run_leases", {"lease": UUID(int=8)}),
    ("cancellations", {"scope": "tree"}),
    ("cancellations", {"scope": "group"}),
    ("cancellations", {"group_id": GROUP}),
    ("cancellations", {"scope": "children", "group_id": GROUP}),
    ("cancellations", {"cancelled_count": -1}),
    ("cancellations", {"scanned_count": -1}),
    ("policy_decisions", {"outcome": "maybe"}),
]

# One for each CHECK that ties marks to a status.
MISMARKED: list[tuple[str, dict[str, object]]] = [
    ("agent_runs", {"status": "running"}),
    ("agent_runs", {"finalized_seq": 3, "finalized_at": NOW}),
    ("orchestration_groups", {"decided_seq": 3}),
    ("orchestration_groups", {"decided_at": NOW}),
]

# No size below 0 is reached: the counts, none below 0, are not above it.
IMPLIED = {("orchestration_groups", "orchestration_groups_size_check")}

CHECKS = """
SELECT c.conrelid::regclass::text, c.conname FROM pg_constraint c
WHERE c.contype = 'c' AND c.conrelid::regclass::text = ANY ($1::text[])
"""

RUN_STATES = [
    pytest.param(status, started, finalized, id=f"{status}{'-started' * started}{'-finalized' * finalized}")
    for status, started, finalized in product(RunStatus, (False, True), (False, True))
]
GROUP_STATES = [
    pytest.param(status, numbered, dated, id=f"{status}{'-numbered' * numbered}{'-dated' * dated}")
    for status, numbered, dated in product(GroupStatus, (False, True), (False, True))
]


@pytest.mark.parametrize("table", sorted(LEGAL))
async def test_a_legal_row_is_taken(database: Database, table: str) -> None:
    assert await accepts(database, table, {})


@pytest.mark.parametrize(
    ("table", "change"),
    [
        pytest.param(table, change, id=f"{table}-{'-'.join(change)}-{index}")
        for index, (table, change) in enumerate(ILLEGAL)
    ],
)
async def test_an_illegal_row_is_refused(database: Database, table: str, change: Mapping[str, object]) -> None:
    assert not await accepts(database, table, change)


@pytest.mark.parametrize(("status", "started", "finalized"), RUN_STATES)
async def test_a_run_has_the_marks_of_its_status_and_no_others(
    database: Database, status: RunStatus, started: bool, finalized: bool
) -> None:
    marks = {
        "started_seq": 3 if started else None,
        "started_at": NOW if started else None,
        "finalized_seq": 4 if finalized else None,
        "finalized_at": NOW if finalized else None,
    }
    legal = (status in TERMINAL) == finalized and (started or status not in MUST_HAVE_STARTED)
    assert await accepts(database, "agent_runs", {"status": status.value, **marks}) == legal


@pytest.mark.parametrize(("status", "numbered", "dated"), GROUP_STATES)
async def test_a_group_has_the_marks_of_its_status_and_no_others(
    database: Database, status: GroupStatus, numbered: bool, dated: bool
) -> None:
    marks = {"decided_seq": 3 if numbered else None, "decided_at": NOW if dated else None}
    legal = (status in DECIDED) == numbered and (status != GroupStatus.RUNNING) == dated
    assert await accepts(database, "orchestration_groups", {"status": status.value, **marks}) == legal


async def test_every_check_of_these_tables_refuses_something(database: Database) -> None:
    async with database.read() as session:
        checks = {tuple(row) for row in await session.driver.fetch(CHECKS, list(LEGAL))}
    refusing = set()
    for table, change in [*ILLEGAL, *MISMARKED]:
        refusal = await refusal_of(database, (table, {**LEGAL[table], **change}))
        assert isinstance(refusal, pg.CheckViolationError)
        refusing.add((table, constraint_of(refusal)))
    assert checks - refusing == IMPLIED


async def test_a_spawn_key_makes_one_run(database: Database) -> None:
    run = LEGAL["agent_runs"]
    refusal = await refusal_of(database, ("agent_runs", run), ("agent_runs", {**run, "run_id": uuid4()}))
    assert isinstance(refusal, pg.UniqueViolationError)
    assert constraint_of(refusal) == "agent_runs_spawn_key"


async def test_a_run_cannot_belong_to_another_tenants_tree(database: Database) -> None:
    other: Mapping[str, object] = {"tenant_id": UUID(int=7), "slug": "other", "name": "other"}
    run = {**LEGAL["agent_runs"], "tenant_id": other["tenant_id"]}
    refusal = await refusal_of(database, ("tenants", other), ("agent_runs", run))
    assert isinstance(refusal, pg.ForeignKeyViolationError)


async def accepts(database: Database, table: str, change: Mapping[str, object]) -> bool:
    """Whether the database takes a row, or a CHECK refuses it."""
    refusal = await refusal_of(database, (table, {**LEGAL[table], **change}))
    assert refusal is None or isinstance(refusal, pg.CheckViolationError)
    return refusal is None


async def refusal_of(
    database: Database, *rows: tuple[str, Mapping[str, object]]
) -> pg.IntegrityConstraintViolationError | None:
    """Why the database refuses rows, in the world that `build` makes; nothing of them stays."""
    async with database.read() as session:
        transaction = session.driver.transaction()
        await transaction.start()
        try:
            await build(session)
            for table, row in rows:
                await insert(session, table, row)
            await session.driver.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except pg.IntegrityConstraintViolationError as error:
            return error
        finally:
            await transaction.rollback()
    return None


def constraint_of(refusal: pg.IntegrityConstraintViolationError) -> str:
    return str(refusal.constraint_name)  # type: ignore[attr-defined] # asyncpg sets it from the server's message


async def build(session: ReadSession) -> None:
    """A tenant with an agent, a tree, its root run and a group."""
    await insert(session, "tenants", {"tenant_id": TENANT, "slug": "of-checks", "name": "of checks"})
    await insert(
        session,
        "agents",
        {"tenant_id": TENANT, "agent_id": AGENT, "slug": "agent", "name": "agent", "kind": "external"},
    )
    await insert(session, "run_trees", {"tenant_id": TENANT, "root_run_id": ROOT})
    await insert(session, "agent_runs", ROOT_RUN)
    await insert(
        session,
        "orchestration_groups",
        {**LEGAL["orchestration_groups"], "group_id": GROUP, "spawn_key_prefix": "prefix"},
    )


async def insert(session: ReadSession, table: str, row: Mapping[str, object]) -> None:
    places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
    await session.driver.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())
