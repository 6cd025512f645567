"""The judge finds what was acknowledged and is not there, and what the audit of a storm is for."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from load.storms.judge import judge
from load.storms.ledger import NAME, Ledger
from load.storms.verdict import OBSERVED, Verdict
from tests.faults.remit import Remit
from tests.kit import Api, Kit, done, refused
from tests.load.observed import NOTHING_SEEN

pytestmark = pytest.mark.xdist_group("storms")

CANCEL = "/internal/orchestration/cancel-subtree"
DONE = {"intended": 1, "missed": 0, "idle": 0, "done": 1, "refused": 0, "intended_per_s": 1, "achieved_per_s": 1}
LATENCIES = {"p50_ms": 1, "p95_ms": 1, "p99_ms": 1, "p99_from_sending_ms": 1}


async def acknowledge(remit: Remit, directory: Path) -> None:
    """A little of everything, and a storm's ledger of it."""
    ledger = Ledger(directory)
    async with httpx2.AsyncClient(base_url=remit.url, timeout=30.0) as client:
        kit = await Kit.make(Api(client, remit.admin_token))
        root, _ = await kit.team(max_depth=5, max_fanout=50, max_children_total=100)
        tenant = kit.tenant_id
        ledger.wrote("start", tenant, run=root.run_id)
        single = done(await kit.spawn(root, "single"))["spawned_run_ids"][0]
        ledger.wrote("spawn", tenant, run=single, caller=root.run_id, key="single")
        group = done(await kit.spawn_group(root, "group", 3, join_mode="first_success"))
        group_id = group["orchestration_group_id"]
        ledger.wrote("group", tenant, group=group_id, caller=root.run_id, key="group", runs=group["spawned_run_ids"])
        claimed = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 4}))["runs"]
        runs, attempts = [run["run_id"] for run in claimed], [run["attempt"] for run in claimed]
        ledger.wrote("claim", tenant, runs=runs, attempts=attempts)
        member = next(run for run in claimed if run["run_id"] in group["spawned_run_ids"])
        body = {"run_id": member["run_id"], "lease": member["lease"], "status": "completed"}
        ended = done(await kit.api.post("/work/complete", body))
        ledger.wrote("end", tenant, run=ended["run_id"], status=ended["status"])
        joined = done(
            await kit.api.post(
                "/internal/orchestration/join", {"caller_run_id": root.run_id, "orchestration_group_id": group_id}
            )
        )
        ledger.wrote("join", tenant, group=group_id, status=joined["status"], decided_seq=joined["decided_seq"])
        denied = refused(await kit.spawn(root, "denied", scope_subset=["other"]), 403, "policy_denied")
        ledger.wrote("deny", tenant, decision=denied["decision_id"])
        cancel = {"caller_run_id": root.run_id, "run_id": single, "wait_s": 10}
        # The second time it is answered with the fence that is there, whatever it asks for.
        for include_root, reused in ((True, False), (False, True)):
            fence = done(await kit.api.post(CANCEL, {**cancel, "include_root": include_root}))
            ledger.wrote(
                "cancel",
                tenant,
                cancellation=fence["cancellation_id"],
                run=single,
                fence_seq=fence["fence_seq"],
                include_root=fence["include_root"],
                reused=reused,
            )
    ledger.close()
    observed = NOTHING_SEEN | {
        "acknowledged_calls": ledger.lines,
        "ended": datetime.now(UTC).isoformat(),
        "scenarios": scenario(),
    }
    (directory / OBSERVED).write_bytes(orjson.dumps(observed))


def scenario(*, findings: Sequence[str] = (), errors: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "calm": {
            "arrivals": {"spawn": DONE | LATENCIES},
            "answers": [],
            "errors": list(errors),
            "findings": list(findings),
            "notes": {},
        }
    }


@pytest.fixture(scope="module")
async def acknowledged(stormed: Remit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("acknowledged")
    await acknowledge(stormed, directory)
    return directory


async def verdict_after(damage: str, stormed: Remit, directory: Path) -> Verdict:
    """The verdict on a database with damage in it, which is then taken back."""
    async with stormed.database() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            # Foreign keys would not have it.
            await connection.execute("SET LOCAL session_replication_role = replica")
            told = await connection.execute(damage)
            assert not told.endswith(" 0"), "the damage hit nothing"
            return await judge(connection, directory, drain_s=0.1, max_rss_mib=300)
        finally:
            await transaction.rollback()


async def test_a_service_in_order_passes(stormed: Remit, acknowledged: Path) -> None:
    verdict = await verdict_after("SELECT 1", stormed, acknowledged)
    assert verdict.faults == []


LAST_TREE = "(SELECT root_run_id FROM run_trees ORDER BY created_at DESC LIMIT 1)"
OF_LAST = f"root_run_id = {LAST_TREE}"
ROOT = f"run_id = {LAST_TREE}"
NO_FANOUT = '{"limits": {"max_depth": 9, "max_fanout": 1, "max_children_total": 99}}'
SINGLE = f"(SELECT run_id FROM agent_runs WHERE spawn_key = 'single' AND {OF_LAST})"


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (f"DELETE FROM agent_runs WHERE spawn_key = 'single' AND {OF_LAST}", "acknowledged_run"),
        (f"DELETE FROM agent_runs WHERE spawn_key = 'group:2' AND {OF_LAST}", "acknowledged_run"),
        (f"UPDATE agent_runs SET spawn_key = 'other' WHERE spawn_key = 'single' AND {OF_LAST}", "acknowledged_run"),
        (f"DELETE FROM agent_runs WHERE run_id = {LAST_TREE}", "acknowledged_run"),
        (f"DELETE FROM orchestration_groups WHERE {OF_LAST}", "acknowledged_group"),
        (f"UPDATE agent_runs SET started_seq = NULL, started_at = NULL, status = 'cancelled' WHERE run_id = {SINGLE}",
         "acknowledged_start"),
        (f"DELETE FROM run_leases WHERE {OF_LAST}", "acknowledged_start"),
        (f"UPDATE agent_runs SET status = 'failed' WHERE status = 'completed' AND {OF_LAST}", "acknowledged_end"),
        (f"DELETE FROM cancellations WHERE scope = 'run' AND {OF_LAST}", "acknowledged_fence"),
        (f"UPDATE cancellations SET scope = 'children' WHERE scope = 'run' AND {OF_LAST}", "acknowledged_fence"),
        (f"UPDATE cancellations SET run_id = root_run_id WHERE scope = 'run' AND {OF_LAST}", "acknowledged_fence"),
        (f"UPDATE cancellations SET fence_seq = fence_seq - 1 WHERE scope = 'run' AND {OF_LAST}",
         "acknowledged_fence"),
        (f"DELETE FROM policy_decisions WHERE outcome = 'deny' AND {OF_LAST}", "acknowledged_denial"),
        (f"UPDATE orchestration_groups SET status = 'failed' WHERE {OF_LAST}", "acknowledged_join"),
        (f"UPDATE orchestration_groups SET decided_seq = decided_seq - 1 WHERE {OF_LAST}", "acknowledged_join"),
        (f"UPDATE cancellations SET drained_at = NULL WHERE {OF_LAST}", "open_fence"),
        (f"UPDATE agent_runs SET started_seq = finalized_seq WHERE run_id = {SINGLE}", "escaped"),
        (f"UPDATE run_trees SET children_total = children_total + 1 WHERE {OF_LAST}", "children_total"),
        (f"DELETE FROM run_events WHERE seq = 2 AND {OF_LAST}", "sequence"),
        (f"INSERT INTO run_deadlines SELECT tenant_id, run_id, {LAST_TREE}, '2000-01-01' FROM agent_runs WHERE {ROOT}",
         "overdue"),
        (f"UPDATE policy_decisions SET result = '{NO_FANOUT}' WHERE action = 'spawn_group' AND {OF_LAST}", "limits"),
    ],
)  # fmt: skip
async def test_damage_is_a_fault(damage: str, finding: str, stormed: Remit, acknowledged: Path) -> None:
    verdict = await verdict_after(damage, stormed, acknowledged)
    assert not verdict.passed
    assert [fault for fault in verdict.faults if fault.startswith(f"audit: {finding}: ")], verdict.faults


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        ({"scenarios": scenario(errors=["spawn-run: 503 policy_unavailable"])}, "calm: unexpected: spawn-run: 503"),
        ({"scenarios": scenario(findings=["escape: a run"])}, "calm: escape: a run"),
        ({"acknowledged_calls": 0}, "audit: ledger: holds 9 calls, and 0 were written"),
        ({"scenarios": {}}, "nothing was done"),
        (
            {
                "service": {
                    "rss_mib_max": 301.0,
                    "rss_mib_first": 1,
                    "rss_mib_last": 1,
                    "api_cpu_s": 1,
                    "postgres_and_opa_cpu_s": 1,
                }
            },
            "audit: memory: the service took 301 MiB, limit 300",
        ),
    ],
)
async def test_what_the_clients_saw_is_a_fault(
    seen: dict[str, Any], fault: str, stormed: Remit, acknowledged: Path, tmp_path: Path
) -> None:
    observed = orjson.loads((acknowledged / OBSERVED).read_bytes()) | seen
    (tmp_path / OBSERVED).write_bytes(orjson.dumps(observed))
    (tmp_path / NAME).write_bytes((acknowledged / NAME).read_bytes())
    verdict = await verdict_after("SELECT 1", stormed, tmp_path)
    assert not verdict.passed
    assert [each for each in verdict.faults if each.startswith(fault)], verdict.faults
    assert fault in verdict.text()
    assert "FAILED" in verdict.page()


def claimed(line: dict[str, Any], **other: object) -> list[dict[str, Any]]:
    return [{**line, **other}] if line["call"] == "claim" else [line]


@pytest.mark.parametrize(
    ("told", "finding"),
    [
        (lambda line: claimed(line, attempts=[2] * len(line.get("runs", ()))), "acknowledged_start"),
        (lambda line: claimed(line) * (1 + (line["call"] == "claim")), "acknowledged_twice"),
    ],
)
async def test_a_claim_that_was_answered_otherwise_is_a_fault(
    told: Callable[[dict[str, Any]], list[dict[str, Any]]],
    finding: str,
    stormed: Remit,
    acknowledged: Path,
    tmp_path: Path,
) -> None:
    lines = [orjson.loads(line) for line in (acknowledged / NAME).read_bytes().splitlines()]
    (tmp_path / NAME).write_bytes(b"".join(orjson.dumps(each) + b"\n" for line in lines for each in told(line)))
    (tmp_path / OBSERVED).write_bytes((acknowledged / OBSERVED).read_bytes())
    verdict = await verdict_after("SELECT 1", stormed, tmp_path)
    assert [fault for fault in verdict.faults if fault.startswith(f"audit: {finding}: ")], verdict.faults


async def test_a_ledger_without_attempts_is_judged_as_well(stormed: Remit, acknowledged: Path, tmp_path: Path) -> None:
    lines = [orjson.loads(line) for line in (acknowledged / NAME).read_bytes().splitlines()]
    known = ("attempts", "fence_seq", "include_root", "reused")
    kept = [{name: value for name, value in line.items() if name not in known} for line in lines]
    (tmp_path / NAME).write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in kept))
    (tmp_path / OBSERVED).write_bytes((acknowledged / OBSERVED).read_bytes())
    assert (await verdict_after("SELECT 1", stormed, tmp_path)).faults == []
