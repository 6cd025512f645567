"""What tests of work say in a line: claims, heartbeats and reports over HTTP, and what the database holds of it."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import httpx2

from kernel.commands.fencing import set_fence
from kernel.domain.events import Surface
from kernel.domain.fences import FenceScope
from kernel.store import trees
from kernel.store.engine import Database
from tests.kit import Api, Kit, Run, done

PLENTY: dict[str, Any] = {"max_fanout": 100_000, "max_children_total": 100_000}
# Whoever waits for twenty seconds and is woken has its answer by then, on the slowest machine.
WELL_BEFORE_S = 10


async def claim(kit: Kit, *slugs: str, **more: object) -> list[dict[str, Any]]:
    """The runs that a claim brings, by default for `worker`."""
    body = {"agent_slugs": list(slugs or ("worker",)), **more}
    runs: list[dict[str, Any]] = done(await kit.api.post("/work/claim", body))["runs"]
    return runs


async def claim_one(kit: Kit, **more: object) -> dict[str, Any]:
    (run,) = await claim(kit, **more)
    return run


async def complete(kit: Kit, run: dict[str, Any], status: str = "completed", **more: object) -> httpx2.Response:
    body = {"run_id": run["run_id"], "lease": run["lease"], "status": status, **more}
    return await kit.api.post("/work/complete", body)


async def heartbeat(kit: Kit, *held: dict[str, Any], **more: object) -> list[dict[str, Any]]:
    body = {"leases": [{"run_id": run["run_id"], "lease": run["lease"]} for run in held], "extend_s": 60, **more}
    leases: list[dict[str, Any]] = done(await kit.api.post("/work/heartbeat", body))["leases"]
    return leases


async def report(api: Api, run_id: str, status: str, **more: object) -> httpx2.Response:
    return await api.post(f"/agents/runs/{run_id}/status", {"status": status, **more})


async def spawn_one(kit: Kit, caller: Run | str, key: str = "a", **more: Any) -> str:
    run_id: str = done(await kit.spawn(caller, key, **more))["spawned_run_ids"][0]
    return run_id


async def row(database: Database, run_id: str) -> asyncpg.Record:
    """A run with what it gave back."""
    async with database.read() as session:
        found: asyncpg.Record = await session.driver.fetchrow(
            "SELECT r.*, l.output, l.error FROM agent_runs r JOIN run_payloads l USING (tenant_id, run_id)"
            " WHERE r.run_id = $1",
            UUID(run_id),
        )
    return found


async def lease_row(database: Database, run_id: str) -> asyncpg.Record:
    async with database.read() as session:
        found: asyncpg.Record = await session.driver.fetchrow(
            "SELECT * FROM run_leases WHERE run_id = $1", UUID(run_id)
        )
    return found


async def let_expire(database: Database, *run_ids: str) -> None:
    """Move the ends of leases into the past."""
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 second'"
            " WHERE lease IS NOT NULL AND run_id = ANY ($1::uuid[])",
            [UUID(run_id) for run_id in run_ids],
        )


async def fence(  # its drain is left to whoever tests it
    database: Database, kit: Kit, root_run_id: str, run_id: str, *, reason: str = "stop", grace_s: int = 0
) -> UUID:
    """Set a fence on a run without draining it."""
    async with database.write() as session:
        tree = await trees.lock_one(session, UUID(kit.tenant_id), UUID(root_run_id))
        made = await set_fence(
            session,
            tree,
            run_id=UUID(run_id),
            scope=FenceScope.RUN,
            reason=reason,
            surface=Surface.RUNTIME_PRIMITIVES,
            grace_s=grace_s,
        )
        await trees.advance(session, tree)
    return made.cancellation_id


async def audit(database: Database, kit: Kit) -> None:
    """Check what an operator's audit would: no gap in any sequence, and counters that count what is there."""
    async with database.read() as session:
        tenant_id = UUID(kit.tenant_id)
        held = await session.driver.fetch("SELECT * FROM run_trees WHERE tenant_id = $1", tenant_id)
        runs = await session.driver.fetch("SELECT * FROM agent_runs WHERE tenant_id = $1", tenant_id)
        seqs = await session.driver.fetch(
            "SELECT root_run_id, array_agg(seq ORDER BY seq) AS seqs FROM run_events WHERE tenant_id = $1 GROUP BY 1",
            tenant_id,
        )
        groups = await session.driver.fetch("SELECT * FROM orchestration_groups WHERE tenant_id = $1", tenant_id)
    counts = Counter((run["root_run_id"], run["status"]) for run in runs)
    by_tree = {event["root_run_id"]: event["seqs"] for event in seqs}
    for tree in held:
        root = tree["root_run_id"]
        assert by_tree[root] == list(range(1, tree["seq"] + 1))
        for status in ("queued", "running", "paused"):
            assert tree[f"{status}_runs"] == counts[root, status], status
        assert tree["children_total"] == sum(run["root_run_id"] == root and run["depth"] > 0 for run in runs)
    for group in groups:
        ended = [run["status"] for run in runs if run["orchestration_group_id"] == group["group_id"]]
        assert group["success_count"] == ended.count("completed")
        assert group["failure_count"] == ended.count("failed") + ended.count("cancelled")


async def until_nobody_borrows(database: Database, attempts: int = 1_000) -> None:
    """Give what is under way time to return its connections."""
    for _ in range(attempts):
        if not database.in_use():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("connections are borrowed still")


def ids(runs: Sequence[dict[str, Any]]) -> list[str]:
    return [run["run_id"] for run in runs]
