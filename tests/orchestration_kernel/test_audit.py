"""The audit finds nothing in what the kernel wrote, and finds each kind of damage that is planted there."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import URL, make_url

from kernel.commands.cancel_subtree import CancelSubtree, CancelSubtreeCommand
from kernel.domain.principal import Principal
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.expire_leases import expire_leases
from kernel.reconcilers.time_out_joins import time_out_joins
from kernel.store import migrate
from load.audit import CHECKS, OVERDUE, audit
from load.audit.check import Check
from service.dependencies import Services
from tests.kit import Kit, Run, done, refused

SCRATCH = "audit_scratch"
ALL = (*CHECKS, *OVERDUE)

# For each check, damage that only a broken kernel could do.
DAMAGE = [
    ("children_total", "UPDATE run_trees SET children_total = children_total + 1"),
    ("children_count", "UPDATE agent_runs SET children_count = children_count - 1 WHERE children_count > 0"),
    ("status_counters", "UPDATE run_trees SET queued_runs = queued_runs + 1"),
    ("status_counters", "UPDATE agent_runs SET status = 'paused' WHERE status = 'running'"),
    ("root", "DELETE FROM agent_runs WHERE parent_run_id IS NULL"),
    ("depth", "UPDATE agent_runs SET depth = depth + 1 WHERE parent_run_id IS NOT NULL"),
    ("same_tree", "UPDATE agent_runs SET root_run_id = run_id WHERE parent_run_id IS NOT NULL"),
    ("spawn_key", "UPDATE agent_runs SET spawn_key = 'same' WHERE parent_run_id IS NOT NULL"),
    ("spawn_key", "UPDATE agent_runs SET spawn_key = NULL WHERE depth = 2"),
    ("root_key", "UPDATE root_run_keys SET run_id = gen_random_uuid()"),
    ("scopes_shrink", "UPDATE agent_runs SET effective_scopes = effective_scopes || '{admin}' WHERE depth = 2"),
    (
        "acted_after_its_end",
        (
            "UPDATE agent_runs c SET spawned_seq = p.finalized_seq + 1 FROM agent_runs p"
            " WHERE p.run_id = c.parent_run_id AND p.finalized_seq IS NOT NULL"
        ),
    ),
    ("sequence", "DELETE FROM run_events WHERE seq = 2"),
    ("sequence", "UPDATE run_events SET seq = 1 WHERE seq = 2"),
    ("sequence", "UPDATE run_trees SET seq = seq + 1"),
    ("event_without_tree", "UPDATE run_events SET root_run_id = gen_random_uuid()"),
    ("transitions_in_order", "UPDATE agent_runs SET started_seq = spawned_seq - 1 WHERE started_seq > 1"),
    ("transitions_in_order", "UPDATE agent_runs SET finalized_seq = 1000 WHERE finalized_seq IS NOT NULL"),
    ("transitions_told", "UPDATE run_events SET subjects = '{}' WHERE seq > 1"),
    *(
        (
            "status_told",
            "UPDATE run_events SET data = jsonb_set(data::jsonb, '{status}', '\"" + told + "\"')::json"
            " WHERE type = 'orchestration.child_lifecycle' AND data ->> 'status' = '" + status + "'",
        )
        for status, told in (("completed", "failed"), ("paused", "running"), ("cancelled", "completed"))
    ),
    (
        "status_told",
        (
            "UPDATE agent_runs SET status = 'running', finalized_seq = NULL, finalized_at = NULL"
            " WHERE status = 'completed'"
        ),
    ),
    ("status_told", "UPDATE agent_runs SET finalized_seq = finalized_seq + 1 WHERE status = 'failed'"),
    ("status_told", "UPDATE agent_runs SET status = 'paused' WHERE spawn_key = 'a'"),
    ("told_after_end", "UPDATE agent_runs SET finalized_seq = finalized_seq - 1 WHERE status = 'completed'"),
    ("told_after_end", "UPDATE agent_runs SET finalized_seq = started_seq + 1 WHERE spawn_key = 'doomed'"),
    ("open_fences", "UPDATE run_trees SET open_fences = open_fences + 1"),
    ("open_fences", "UPDATE cancellations SET drained_at = NULL"),
    (
        "escaped",
        (
            "UPDATE agent_runs r SET spawned_seq = c.fence_seq + 1 FROM cancellations c"
            " WHERE c.scope = 'run' AND r.parent_run_id = c.run_id"
        ),
    ),
    (
        "escaped",
        (
            "UPDATE agent_runs r SET started_seq = c.fence_seq + 1 FROM cancellations c, agent_runs p"
            " WHERE c.scope = 'children' AND p.parent_run_id = c.run_id AND p.status = 'cancelled'"
            " AND r.parent_run_id = p.run_id"
        ),
    ),
    (
        "escaped",
        (
            "UPDATE agent_runs r SET started_seq = c.fence_seq + 1 FROM cancellations c"
            " WHERE c.scope = 'group' AND r.orchestration_group_id = c.group_id AND r.status = 'cancelled'"
        ),
    ),
    (
        "escaped",
        (
            "UPDATE agent_runs r SET status = 'completed' FROM cancellations c"
            " WHERE c.scope = 'run' AND r.parent_run_id = c.run_id"
        ),
    ),
    (
        "drained",
        (
            "UPDATE agent_runs r SET status = 'queued', finalized_seq = NULL, finalized_at = NULL FROM cancellations c"
            " WHERE c.scope = 'group' AND r.orchestration_group_id = c.group_id AND r.status = 'cancelled'"
        ),
    ),
    ("fence_told", "UPDATE cancellations SET fence_seq = 1000000 WHERE scope = 'run'"),
    ("fence_told", "UPDATE run_events SET data = '{}' WHERE type = 'orchestration.cancellation_propagation'"),
    ("fence_missing", "DELETE FROM cancellations WHERE scope = 'children'"),
    *(
        (
            "told_under_fence",
            "INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)"
            " SELECT tenant_id, root_run_id, 1000, 'orchestration.child_lifecycle', surface, run_id, ARRAY[run_id], "
            + data
            + " FROM agent_runs WHERE status = 'cancelled' AND "
            + which,
        )
        for which, data in (
            ("spawn_key = 'doomed'", "json_build_object('child_run_id', run_id, 'status', 'running')"),
            ("spawn_key = 'below'", "json_build_object('child_run_id', run_id, 'status', 'paused')"),
            (
                "spawn_key = 'grandchild'",
                "json_build_object('children', ARRAY[json_build_object('child_run_id', run_id, 'status', 'running')])",
            ),
            ("spawn_key = 'first:2'", "json_build_object('child_run_id', run_id, 'status', 'running')"),
        )
    ),
    ("cancelled_uncovered", "UPDATE cancellations SET scope = 'children' WHERE scope = 'run'"),
    (
        "cancelled_uncovered",
        (
            "WITH cancelled AS (UPDATE agent_runs SET status = 'cancelled', finalized_seq = 1000, finalized_at = now()"
            " WHERE spawn_key = 'waiting' RETURNING *)"
            " INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)"
            " SELECT r.tenant_id, r.root_run_id, 1000, 'orchestration.cancellation_propagation', r.surface, r.run_id,"
            " ARRAY[r.run_id], json_build_object('count', 1, 'cancellation_id', c.cancellation_id)"
            " FROM cancelled r JOIN cancellations c ON c.root_run_id = r.root_run_id"
        ),
    ),
    ("cancelled_count", "UPDATE cancellations SET cancelled_count = cancelled_count + 100"),
    ("cancelled_count", "UPDATE cancellations SET cancelled_count = 0 WHERE grace_until IS NULL"),
    *(
        (
            check,
            (
                "UPDATE run_events e SET data = jsonb_set(e.data::jsonb, '{cancellation_id}',"
                " to_jsonb(c.cancellation_id))::json FROM cancellations c"
                " WHERE e.type = 'orchestration.child_lifecycle' AND e.data ->> 'cancellation_id' IS NOT NULL"
                " AND c.root_run_id = e.root_run_id AND c.scope = 'children'"
            ),
        )
        for check in ("cancelled_count", "cancelled_uncovered")
    ),
    ("scanned_count", "UPDATE cancellations SET scanned_count = cancelled_count - 1 WHERE cancelled_count > 0"),
    ("cancelled_sum", "UPDATE cancellations SET cancelled_count = 0 WHERE grace_until IS NOT NULL"),
    ("parent_close", "DELETE FROM cancellations WHERE reason = 'parent_closed'"),
    ("parent_close", "UPDATE cancellations SET fence_seq = 1 WHERE reason = 'parent_closed'"),
    (
        "group_size",
        "DELETE FROM agent_runs WHERE orchestration_group_id IS NOT NULL AND ordinal = 2 AND status = 'queued'",
    ),
    ("group_ordinals", "UPDATE agent_runs SET ordinal = 5 WHERE ordinal = 1"),
    ("group_members", "UPDATE agent_runs SET spawn_key = spawn_key || 'x' WHERE ordinal = 1"),
    ("group_members", "UPDATE orchestration_groups SET spawned_seq = spawned_seq - 1"),
    ("group_tally", "UPDATE orchestration_groups SET success_count = success_count + 1"),
    (
        "group_tally",
        (
            "UPDATE orchestration_groups SET failure_count = failure_count - 1, success_count = success_count + 1"
            " WHERE failure_count > 0"
        ),
    ),
    ("group_missing", "DELETE FROM orchestration_groups WHERE status = 'running'"),
    ("group_key", "UPDATE orchestration_groups SET spawn_key_prefix = 'same'"),
    ("decided_seq", "UPDATE orchestration_groups SET decided_seq = NULL"),
    ("decided_seq", "UPDATE orchestration_groups SET decided_seq = 1 WHERE decided_seq IS NOT NULL"),
    ("decided_seq", "UPDATE orchestration_groups SET decided_seq = 1000 WHERE decided_seq IS NOT NULL"),
    ("decided_seq", "UPDATE orchestration_groups SET status = 'empty'"),
    (
        "decision_of_group",
        "UPDATE orchestration_groups SET status = 'failed' WHERE status = 'completed' AND join_mode <> 'quorum'",
    ),
    (
        "decision_of_group",
        "UPDATE orchestration_groups SET decided_seq = decided_seq - 1 WHERE join_mode = 'first_success'",
    ),
    (
        "decision_of_group",
        "UPDATE orchestration_groups SET status = 'completed' WHERE status = 'completed_with_errors'",
    ),
    ("decision_of_group", "UPDATE orchestration_groups SET status = 'timed_out' WHERE decided_seq IS NOT NULL"),
    (
        "decided_late",
        "UPDATE orchestration_groups SET status = 'running', decided_seq = NULL WHERE join_mode = 'quorum'",
    ),
    (
        "decided_late",
        (
            "UPDATE agent_runs r SET finalized_seq = g.spawned_seq + 1 FROM orchestration_groups g"
            " WHERE r.orchestration_group_id = g.group_id AND g.join_mode = 'first_success' AND r.status = 'completed'"
        ),
    ),
    ("join_told", "DELETE FROM run_events WHERE type = 'orchestration.join_decision'"),
    (
        "join_told",
        (
            "UPDATE run_events SET data = jsonb_set(data::jsonb, '{complete}', 'false')::json"
            " WHERE type = 'orchestration.join_decision'"
        ),
    ),
    (
        "join_told",
        (
            "UPDATE run_events SET data = jsonb_set(data::jsonb, '{status}', '\"failed\"')::json"
            " WHERE type = 'orchestration.join_decision' AND data ->> 'mode' = 'quorum'"
        ),
    ),
    (
        "join_told",
        (
            "INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)"
            " SELECT tenant_id, root_run_id, 1000, type, surface, run_id, subjects, data FROM run_events"
            " WHERE type = 'orchestration.join_decision' AND data ->> 'mode' = 'quorum'"
        ),
    ),
    (
        "join_told",
        (
            "INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)"
            " SELECT tenant_id, root_run_id, 1000, 'orchestration.join_decision', surface, orchestrator_run_id, '{}',"
            " json_build_object('group_id', group_id, 'complete', true, 'status', status) FROM orchestration_groups"
            " WHERE status = 'cancelled'"
        ),
    ),
    ("losers_fenced", "DELETE FROM cancellations WHERE scope = 'group'"),
    (
        "losers_fenced",
        (
            "INSERT INTO cancellations (tenant_id, cancellation_id, root_run_id, run_id, scope, group_id, reason,"
            " fence_seq, drained_at) SELECT tenant_id, gen_random_uuid(), root_run_id, run_id, scope, group_id, reason,"
            " fence_seq, drained_at FROM cancellations WHERE scope = 'group'"
        ),
    ),
    (
        "losers_fenced",
        (
            "INSERT INTO cancellations (tenant_id, cancellation_id, root_run_id, run_id, scope, group_id, reason,"
            " fence_seq) SELECT tenant_id, gen_random_uuid(), root_run_id, orchestrator_run_id, 'group', group_id,"
            " 'join_timed_out', 1000 FROM orchestration_groups WHERE status = 'running'"
        ),
    ),
    ("losers_fenced", "UPDATE orchestration_groups SET propagation_reason = NULL"),
    (
        "losers_fenced",
        "UPDATE orchestration_groups SET propagation_reason = 'join_timed_out' WHERE status = 'completed_with_errors'",
    ),
    ("losers_fenced", "UPDATE cancellations SET reason = 'other' WHERE scope = 'group'"),
    ("losers_fenced", "UPDATE cancellations SET run_id = gen_random_uuid() WHERE scope = 'group'"),
    ("losers_fenced", "UPDATE cancellations SET fence_seq = 1 WHERE scope = 'group'"),
    (
        "closed_uncovered",
        "UPDATE orchestration_groups SET status = 'cancelled', decided_seq = NULL WHERE status = 'completed'",
    ),
    ("closed_uncovered", "UPDATE cancellations SET scope = 'children' WHERE scope = 'run'"),
    *(
        (
            "decided_under_fence",
            "INSERT INTO cancellations (tenant_id, cancellation_id, root_run_id, run_id, scope, reason, fence_seq,"
            " drained_at) SELECT tenant_id, gen_random_uuid(), root_run_id, root_run_id, 'run', 'x', decided_seq - 1,"
            " now() FROM orchestration_groups WHERE status = '" + status + "'",
        )
        for status in ("completed", "timed_out")
    ),
    (
        "timed_out_early",
        "UPDATE orchestration_groups SET decided_at = deadline - interval '1 ms' WHERE status = 'timed_out'",
    ),
    (
        "timed_out_early",
        "UPDATE orchestration_groups SET deadline = decided_at + interval '1 ms' WHERE status = 'timed_out'",
    ),
    ("allowed", "DELETE FROM policy_decisions WHERE action = 'spawn_group'"),
    ("allowed", "UPDATE policy_decisions SET outcome = 'deny'"),
    ("allowed", "UPDATE run_payloads SET decision_id = gen_random_uuid() WHERE decision_id IS NOT NULL"),
    ("allowed", "UPDATE policy_decisions SET caller_run_id = gen_random_uuid()"),
    (
        "allowed_for_nothing",
        "DELETE FROM run_payloads l USING agent_runs r WHERE r.run_id = l.run_id AND r.depth = 2",
    ),
    ("allowed_for_nothing", "DELETE FROM orchestration_groups WHERE status = 'running'"),
    *(
        (
            "limits",
            "UPDATE policy_decisions SET result = jsonb_set(result::jsonb, ARRAY['limits', '" + limit + "'],"
            " '1')::json WHERE action LIKE 'spawn_%' AND outcome = 'allow'",
        )
        for limit in ("max_depth", "max_fanout", "max_children_total")
    ),
    ("limits", "UPDATE policy_decisions SET result = '{}' WHERE action = 'spawn_run' AND outcome = 'allow'"),
    *(
        (
            "scopes_allowed",
            "UPDATE policy_decisions SET " + column + " = jsonb_set(" + column + "::jsonb, '" + path + "',"
            " '[\"other\"]')::json WHERE action LIKE 'spawn_%' AND outcome = 'allow'",
        )
        for column, path in (
            ("result", "{effective_scopes}"),
            ("result", "{policy,allowed_scope_subset}"),
            ("input", "{request,scopes}"),
        )
    ),
    ("decision_told", "UPDATE run_events SET data = '{}' WHERE type = 'orchestration.policy_deny'"),
    ("decision_told", "UPDATE run_events SET data = '{}' WHERE type = 'orchestration.spawn_decision'"),
    ("payload", "DELETE FROM run_payloads"),
    ("payload_of_nothing", "DELETE FROM agent_runs WHERE depth = 2"),
    ("deadline", "DELETE FROM run_deadlines"),
    (
        "deadline",
        "UPDATE agent_runs r SET status = 'failed' FROM run_deadlines d WHERE d.run_id = r.run_id",
    ),
    ("lease", "UPDATE agent_runs r SET status = 'completed' FROM run_leases l WHERE l.run_id = r.run_id"),
    ("lease_missing", "UPDATE run_leases SET lease = NULL, expires_at = NULL WHERE lease IS NOT NULL"),
    ("lease_missing", "DELETE FROM run_leases"),
    ("attempts", "UPDATE run_leases SET attempt = max_attempts + 1"),
    ("overdue", "UPDATE run_leases SET expires_at = now() - interval '61 s' WHERE lease IS NOT NULL"),
    ("overdue", "UPDATE run_deadlines SET deadline = now() - interval '61 s'"),
    ("overdue", "UPDATE orchestration_groups SET deadline = now() - interval '61 s' WHERE status = 'running'"),
    *(
        ("tree_of_side_rows", f"UPDATE {table} SET root_run_id = gen_random_uuid()")
        for table in ("run_leases", "run_deadlines", "cancellations", "orchestration_groups")
    ),
]

# What stands in the way of damage: this database has none of it.
UNPROTECT = """
DO $$
DECLARE held record;
BEGIN
  FOR held IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint c
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u') AND conparentid = 0
      AND conrelid <> 0
    ORDER BY contype = 'p'
  LOOP
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I CASCADE', held.tab, held.conname);
  END LOOP;
END $$
"""

# Partitions are reached by their parents; a generated column makes itself.
TABLES = """
SELECT c.relname AS name,
  array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND EXISTS (SELECT 1 FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attname = 'tenant_id')
GROUP BY c.relname
"""


async def report(kit: Kit, run_id: str, status: str) -> None:
    done(await kit.api.post(f"/agents/runs/{run_id}/status", {"status": status}))


async def fill(kit: Kit, services: Services) -> None:
    """Trees with every kind of row that the checks look at."""
    admitted = {"allowed_scope_subset": ["read", "write", "agents.execute"]}
    root, _ = await kit.team(max_depth=9, max_fanout=99, max_children_total=999, **admitted)
    await kit.agent("draft", publish=False)
    foreground: dict[str, Any] = {"start_background": False, "scope_subset": ["agents.execute", "read"]}

    async def spawn(caller: Run | str, key: str, **more: Any) -> str:
        run_id: str = done(await kit.spawn(caller, key, **more))["spawned_run_ids"][0]
        return run_id

    async def group(prefix: str, size: int = 3, **more: Any) -> list[str]:
        members: list[str] = done(await kit.spawn_group(root, prefix, size, **more))["spawned_run_ids"]
        return members

    await spawn(root, "waiting", timeout_s=3600)
    middle = await spawn(root, "middle", target="orchestrator", **foreground)
    for key in ("a", "b"):
        await spawn(middle, key, start_background=False)
    await report(kit, middle, "paused")
    resumed = await spawn(root, "resumed", start_background=False)
    for status in ("paused", "running"):
        await report(kit, resumed, status)
    ended = await spawn(root, "ended", target="orchestrator", **foreground)
    await spawn(ended, "left")
    await report(kit, ended, "completed")
    refused(await kit.spawn(root, "denied", "draft"), 403, "policy_denied")

    errors = await group("errors", start_background=False)
    for run_id, status in zip(errors, ("completed", "failed", "completed"), strict=True):
        await report(kit, run_id, status)
    first = await group("first", start_background=False, join_mode="first_success")
    await report(kit, first[0], "failed")
    await report(kit, first[1], "completed")
    quorum = await group("quorum", start_background=False, join_mode="quorum", quorum_threshold=2)
    await report(kit, quorum[0], "completed")
    await report(kit, quorum[1], "completed")
    await group("undecided")
    await group("empty", 0)
    late = await group("late", start_background=False)
    await report(kit, late[0], "completed")
    await time_out(services, kit, "late")

    other = await kit.root(root.agent_id, idempotency_key="other")
    doomed = await spawn(other, "doomed", target="orchestrator", **foreground)
    await spawn(doomed, "below")
    done(await kit.spawn_group(doomed, "closed", 2))
    parent = await spawn(other, "parent", target="orchestrator", **foreground)
    child = await spawn(parent, "child", target="orchestrator", **foreground)
    await spawn(child, "grandchild", start_background=False)
    claimed = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "lease_s": 3600}))
    assert claimed["runs"]

    principal = Principal(kind="tenant", tenant_id=UUID(kit.tenant_id), scopes=frozenset({"agents.execute"}))
    cancel = CancelSubtreeCommand(services.database, services.engine, services.wakeups)
    await cancel.execute(principal, CancelSubtree(UUID(other.run_id), UUID(doomed)))
    await cancel.execute(principal, CancelSubtree(UUID(other.run_id), UUID(parent), include_root=False))
    await close_parents(kit, services)
    await acknowledge(kit, services, other, cancel)
    await DrainCancellations(services.database, services.wakeups).run_once()


async def time_out(services: Services, kit: Kit, prefix: str) -> None:
    """Let the time of a group be up."""
    async with services.database.write() as session:
        await session.driver.execute(
            "UPDATE orchestration_groups SET deadline = created_at WHERE tenant_id = $1 AND spawn_key_prefix = $2",
            UUID(kit.tenant_id),
            prefix,
        )
    await time_out_joins(services.database).run_once()


async def close_parents(kit: Kit, services: Services) -> None:
    """Two parents end whose policy cancels what is active below them: above one something is."""
    closer = await kit.orchestrator("closer", may_spawn=["worker"], parent_close_policy="cancel")
    async with services.database.write() as session:
        # A policy that was changed just now may not be the one that ended them.
        await session.driver.execute(
            "UPDATE orchestrator_policies SET updated_at = updated_at - interval '1 hour' WHERE tenant_id = $1",
            UUID(kit.tenant_id),
        )
    busy, quiet = await kit.root(closer), await kit.root(closer)
    done(await kit.spawn(busy, "left behind"))
    over = done(await kit.spawn(quiet, "over", start_background=False))["spawned_run_ids"][0]
    await report(kit, over, "failed")
    for parent in (busy, quiet):
        await report(kit, parent.run_id, "completed")


async def acknowledge(kit: Kit, services: Services, root: Run, cancel: CancelSubtreeCommand) -> None:
    """A worker loses a lease, gets another one, and acknowledges that its run is cancelled."""
    graced = done(await kit.spawn(root, "graced", "orchestrator"))["spawned_run_ids"][0]
    claim = {"agent_slugs": ["orchestrator"], "lease_s": 3600}
    (first,) = done(await kit.api.post("/work/claim", claim))["runs"]
    async with services.database.write() as session:
        await session.driver.execute(
            "UPDATE run_leases SET expires_at = now() WHERE tenant_id = $1 AND lease = $2",
            UUID(kit.tenant_id),
            UUID(first["lease"]),
        )
    await expire_leases(services.database).run_once()
    (again,) = done(await kit.api.post("/work/claim", claim))["runs"]
    assert (first["run_id"], again["run_id"], again["attempt"]) == (graced, graced, 2)
    principal = Principal(kind="tenant", tenant_id=UUID(kit.tenant_id), scopes=frozenset({"agents.execute"}))
    await cancel.execute(principal, CancelSubtree(UUID(root.run_id), UUID(graced), grace_s=600))
    done(await kit.api.post("/work/complete", {"run_id": graced, "lease": again["lease"], "status": "cancelled"}))


@asynccontextmanager
async def connect(url: URL, database: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(
        host=str(url.query["host"]),
        port=int(str(url.query["port"])),
        user=url.username,
        database=database or url.database,
    )
    try:
        yield connection
    finally:
        await connection.close()


async def copy(source: asyncpg.Connection, target: asyncpg.Connection, tenant_id: UUID) -> None:
    """Take one tenant's rows over."""
    for table in await source.fetch(TABLES):
        columns = ", ".join(table["columns"])
        rows = io.BytesIO()
        query = f"SELECT {columns} FROM {table['name']} WHERE tenant_id = $1"
        await source.copy_from_query(query, tenant_id, output=rows)
        rows.seek(0)
        await target.copy_to_table(table["name"], source=rows, columns=table["columns"])


@pytest.fixture(scope="module")
async def scratch(api: object, services: Services, database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A database of its own, filled by the kernel, without the constraints that keep damage out."""
    kit = await Kit.make(api)  # type: ignore[arg-type] # the fixture is an Api
    await fill(kit, services)
    url = make_url(database_url)
    name = f"{SCRATCH}_{url.database}"
    async with connect(url) as source:
        await source.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await source.execute(f'CREATE DATABASE "{name}"')
        await migrate.upgrade(url.set(database=name).render_as_string(hide_password=False))
        async with connect(url, name) as connection:
            await connection.execute(UNPROTECT)
            await copy(source, connection, UUID(kit.tenant_id))
            await connection.execute("ANALYZE")
            yield connection
        await source.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_what_the_kernel_wrote_is_in_order(scratch: asyncpg.Connection) -> None:
    assert await scratch.fetchval("SELECT count(*) FROM agent_runs") >= 25
    assert await audit(scratch, checks=ALL) == []


@pytest.mark.parametrize(("check", "damage"), DAMAGE, ids=[f"{check}-{n}" for n, (check, _) in enumerate(DAMAGE)])
async def test_damage_is_found(scratch: asyncpg.Connection, check: str, damage: str) -> None:
    transaction = scratch.transaction()
    await transaction.start()
    try:
        done_to = await scratch.execute(damage)
        findings = await audit(scratch, checks=ALL)
    finally:
        await transaction.rollback()
    assert not done_to.endswith(" 0"), "the damage hit nothing"
    assert [finding for finding in findings if finding.startswith(f"{check}: ")], findings


def test_every_check_has_its_damage() -> None:
    assert {check for check, _ in DAMAGE} == {check.name for check in ALL}


async def test_findings_are_told_of_the_tenant_asked_about(scratch: asyncpg.Connection) -> None:
    transaction = scratch.transaction()
    await transaction.start()
    try:
        tenant_id = await scratch.fetchval("SELECT tenant_id FROM run_trees LIMIT 1")
        await scratch.execute("UPDATE run_trees SET children_total = 77")
        assert await audit(scratch, tenant_id=tenant_id)
        assert await audit(scratch, tenant_id=UUID(int=1)) == []
    finally:
        await transaction.rollback()


async def test_many_findings_of_one_kind_hide_no_other(scratch: asyncpg.Connection) -> None:
    transaction = scratch.transaction()
    await transaction.start()
    try:
        await scratch.execute("DELETE FROM run_payloads")
        await scratch.execute("UPDATE run_trees SET open_fences = 7")
        findings = await audit(scratch, most=2)
        runs = await scratch.fetchval("SELECT count(*) FROM agent_runs")
    finally:
        await transaction.rollback()
    payload = [finding for finding in findings if finding.startswith("payload: ")]
    assert len(payload) == 3
    assert payload[-1] == f"payload: and {runs - 2} more"
    assert [finding for finding in findings if finding.startswith("open_fences: tree")]


async def test_the_audit_is_planned_for_whole_tables_whoever_lends_the_connection(kit: Kit, services: Services) -> None:
    names = ("enable_seqscan", "plan_cache_mode")
    said = " || ' ' || ".join(f"current_setting('{name}')" for name in names)
    settings = Check("settings", f"SELECT tenant_id, {said} AS finding FROM tenants")
    async with services.database.read() as session:
        before = [await session.driver.fetchval(f"SHOW {name}") for name in names]
        found = await audit(session.driver, tenant_id=kit.tenant_id, checks=[settings])
        after = [await session.driver.fetchval(f"SHOW {name}") for name in names]
    assert found == ["settings: on force_custom_plan"]
    assert before == after == ["off", "force_generic_plan"]
