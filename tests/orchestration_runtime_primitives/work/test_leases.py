"""Leases: how a worker keeps them, hears of a cancellation, and loses them."""

import asyncio
from datetime import datetime
from http import HTTPStatus
from uuid import UUID, uuid4

import pytest

from kernel import metrics
from kernel.commands.heartbeat import Heartbeat, HeartbeatCommand, LeaseRef
from kernel.domain.principal import Principal
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.reconcilers.expire_leases import expire_leases
from kernel.store import drains, trees
from kernel.store.engine import Database
from load.audit import audit as audit_all
from service.dependencies import Services
from tests.kit import Kit, done, refused
from tests.orchestration_runtime_primitives.work.crew import (
    PLENTY,
    WELL_BEFORE_S,
    audit,
    claim,
    claim_one,
    complete,
    fence,
    heartbeat,
    lease_row,
    let_expire,
    report,
    row,
    spawn_one,
)


async def test_a_heartbeat_extends_what_is_held_and_never_shortens_it(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit, lease_s=30)
    (kept,) = await heartbeat(kit, run, extend_s=600)
    assert kept["status"] == "continue"
    assert kept["expires_at"] > run["deadline"]
    assert "run_token" not in kept
    (again,) = await heartbeat(kit, run, extend_s=1)
    assert again["expires_at"] == kept["expires_at"]
    await audit(database, kit)


async def test_leases_are_answered_in_the_order_in_which_they_were_named(kit: Kit) -> None:
    root, _ = await kit.team()
    for key in "abc":
        await spawn_one(kit, root, key)
    runs = await claim(kit, max_runs=3)
    stranger = {"run_id": str(uuid4()), "lease": str(uuid4())}
    superseded = {"run_id": runs[0]["run_id"], "lease": str(uuid4())}
    told = await heartbeat(kit, runs[2], stranger, runs[1], runs[0])
    assert [lease["status"] for lease in told] == ["continue", "lost", "continue", "continue"]
    assert [lease["run_id"] for lease in told] == [
        runs[2]["run_id"],
        stranger["run_id"],
        *(run["run_id"] for run in (runs[1], runs[0])),
    ]
    assert (await heartbeat(kit, superseded))[0]["status"] == "lost"


@pytest.mark.parametrize("stale_first", [True, False])
async def test_a_stale_lease_named_beside_the_current_one_of_its_run_neither_renews_nor_loses_it(
    kit: Kit, *, stale_first: bool
) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    stale = {**run, "lease": str(uuid4())}
    told = await heartbeat(kit, *((stale, run) if stale_first else (run, stale)))
    assert [lease["status"] for lease in told] == (["lost", "continue"] if stale_first else ["continue", "lost"])
    assert (await complete(kit, run)).status_code == HTTPStatus.OK


async def test_an_expired_lease_is_lost_even_before_anybody_took_it_back(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    await let_expire(database, run["run_id"])
    assert (await heartbeat(kit, run))[0]["status"] == "lost"
    refused(await complete(kit, run), 409, "lease_lost")
    assert (await row(database, run["run_id"]))["status"] == "running"


async def test_under_a_fence_a_worker_is_told_to_stop_and_its_lease_is_not_renewed(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit, lease_s=300)
    cancellation_id = await fence(database, kit, root.run_id, root.run_id, reason="wrong turn", grace_s=90)
    (told,) = await heartbeat(kit, run, extend_s=3_000)
    assert (told["status"], told["reason"]) == ("cancel", "wrong turn")
    assert told["cancellation_id"] == str(cancellation_id)
    assert 80 < told["grace_s"] <= 90
    lease = await lease_row(database, run["run_id"])
    assert lease["expires_at"].timestamp() < lease["token_expires_at"].timestamp() - 3_000
    # Of overlapping graces the one that ends first counts.
    await fence(database, kit, root.run_id, run["run_id"], reason="at once")
    (told,) = await heartbeat(kit, run)
    assert (told["reason"], told["grace_s"]) == ("wrong turn", 0)


async def test_a_grace_lasts_no_longer_than_the_lease_which_is_not_renewed(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit, lease_s=60)
    await fence(database, kit, root.run_id, root.run_id, grace_s=600)
    (told,) = await heartbeat(kit, run, extend_s=3_000)
    assert told["status"] == "cancel"
    assert 30 < told["grace_s"] <= 60


async def test_after_the_drain_a_worker_is_told_still_and_hears_why(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    await fence(database, kit, root.run_id, root.run_id, reason="wrong turn")
    await DrainCancellations(database).run_once()
    assert (await row(database, run["run_id"]))["status"] == "cancelled"
    (told,) = await heartbeat(kit, run)
    assert (told["status"], told["reason"], told["grace_s"]) == ("cancel", "wrong turn", 0)
    problem = refused(await complete(kit, run), 409, "run_cancelled")
    assert problem["reason"] == "wrong turn"


async def test_whoever_has_acknowledged_or_was_given_up_is_told_the_reason_too(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    for key in "ab":
        await spawn_one(kit, root, key)
    acknowledged, given_up = await claim(kit, max_runs=2)
    await fence(database, kit, root.run_id, root.run_id, reason="wrong turn", grace_s=600)
    done(await complete(kit, acknowledged, "cancelled"))
    await let_expire(database, given_up["run_id"])
    await expire_leases(database).run_once()
    for run in (acknowledged, given_up):
        assert (await row(database, run["run_id"]))["status"] == "cancelled"
        (told,) = await heartbeat(kit, run)
        assert (told["status"], told["reason"], told["grace_s"]) == ("cancel", "wrong turn", 0)
        assert refused(await complete(kit, run), 409, "run_cancelled")["reason"] == "wrong turn"


async def test_why_many_were_given_up_is_asked_once_for_all_of_them(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn_group(root, "g", 10))
    held = await claim(kit, max_runs=10)
    await fence(database, kit, root.run_id, root.run_id, reason="wrong turn", grace_s=600)
    await let_expire(database, *(run["run_id"] for run in held))
    await expire_leases(database).run_once()
    ends = {UUID(run["run_id"]): await row(database, run["run_id"]) for run in held}
    asked: list[str] = []
    async with database.read() as session:
        with session.driver.query_logger(lambda query: asked.append(query.query)):
            reasons = await drains.reasons_of_ends(
                session,
                UUID(kit.tenant_id),
                {run_id: (ended["root_run_id"], ended["finalized_seq"]) for run_id, ended in ends.items()},
            )
            # The loop calls the logger in its next turn.
            await asyncio.sleep(0)
    assert reasons == dict.fromkeys(ends, "wrong turn")
    # The events of the ends name the fence.
    assert len(asked) == 1


async def test_a_run_that_its_worker_cancelled_was_not_cancelled_by_a_later_fence(kit: Kit) -> None:
    root, _ = await kit.team()
    run_id = await spawn_one(kit, root)
    run = await claim_one(kit)
    done(await complete(kit, run, "cancelled"))
    body = {"caller_run_id": root.run_id, "run_id": root.run_id, "reason": "later"}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    (told,) = await heartbeat(kit, run)
    assert told["status"] == "cancel"
    assert "reason" not in told
    assert done(await kit.api.get(f"/agents/runs/{run_id}"))["cancellation"] is None


async def test_a_fresh_token_comes_when_a_tenth_of_the_old_ones_life_is_left(
    kit: Kit, database: Database, services: Services
) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    life_s = services.settings.run_token_ttl_s
    for left_s, fresh in ((life_s // 9, False), (life_s // 11, True)):
        async with database.write() as session:
            await session.driver.execute(
                "UPDATE run_leases SET token_expires_at = clock_timestamp() + make_interval(secs => $2)"
                " WHERE run_id = $1",
                UUID(run["run_id"]),
                left_s,
            )
        (kept,) = await heartbeat(kit, run)
        assert ("run_token" in kept) is fresh
        if fresh:
            assert services.tokens.verify(kept["run_token"]).run_id == UUID(run["run_id"])
    assert "run_token" not in (await heartbeat(kit, run))[0]


async def test_many_trees_are_renewed_in_parts(kit: Kit, services: Services) -> None:
    await kit.agent("worker")
    orchestrator = await kit.orchestrator(may_spawn=["worker"])
    roots = await asyncio.gather(*(kit.root(orchestrator) for _ in range(40)))
    await asyncio.gather(*(spawn_one(kit, root) for root in roots))
    runs = []
    while more := await claim(kit, max_runs=100):
        runs.extend(more)
    assert len(runs) == 40
    principal = Principal(kind="tenant", tenant_id=UUID(kit.tenant_id), scopes=frozenset({"agents.execute"}))
    command = HeartbeatCommand(services.database, services.tokens, token_s=3600)
    refs = tuple(LeaseRef(UUID(run["run_id"]), UUID(run["lease"])) for run in runs)
    answers = await command.execute(principal, Heartbeat(refs, 60))
    assert [answer.status for answer in answers] == ["continue"] * 40


@pytest.mark.parametrize("held_up", [0, 1, 2])
async def test_a_heartbeat_that_waits_for_a_tree_keeps_no_lock_on_another(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch, held_up: int
) -> None:
    monkeypatch.setattr("kernel.commands.heartbeat.PATIENCE_S", 60)
    root, _ = await kit.team()
    roots = [root, await kit.root(root.agent_id), await kit.root(root.agent_id)]
    roots.sort(key=lambda one: UUID(one.run_id))
    members = [await spawn_one(kit, one) for one in roots]
    held = await claim(kit, max_runs=3, lease_s=40)
    before = {run["run_id"]: (await lease_row(database, run["run_id"]))["expires_at"] for run in held}
    others = [run for run in held if run["run_id"] != members[held_up]]
    async with database.write() as session:
        await trees.lock_one(session, UUID(kit.tenant_id), UUID(roots[held_up].run_id))
        beating = asyncio.create_task(heartbeat(kit, *held, extend_s=600))
        async with asyncio.timeout(8):
            for run in others:
                # Renewed already, and in a tree that anybody may change.
                while (await lease_row(database, run["run_id"]))["expires_at"] == before[run["run_id"]]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                done(await complete(kit, run))
        assert not beating.done()
    assert [told["status"] for told in await beating] == ["continue"] * 3


async def test_what_is_in_a_tree_that_somebody_keeps_locked_stands_as_it_is(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.commands.heartbeat.PATIENCE_S", 0.2)
    root, _ = await kit.team(max_depth=3, max_fanout=5)
    roots = [root, *[await kit.root(root.agent_id) for _ in range(3)]]
    for one in roots[:3]:
        await spawn_one(kit, one)
    await spawn_one(kit, roots[3], "lost")
    runs = {run["context"]["root_run_id"]: run for run in await claim(kit, max_runs=4, lease_s=600)}
    free, held, fenced, lost = [runs[one.run_id] for one in roots]
    before = {run["run_id"]: (await lease_row(database, run["run_id"]))["expires_at"] for run in runs.values()}
    await fence(database, kit, roots[2].run_id, roots[2].run_id, reason="wrong turn", grace_s=300)
    await let_expire(database, lost["run_id"])
    async with database.write() as session:
        await trees.lock(session, [(UUID(kit.tenant_id), UUID(one.run_id)) for one in roots[1:]])
        async with asyncio.timeout(WELL_BEFORE_S):
            told = await heartbeat(kit, free, held, fenced, lost, extend_s=900)
        assert [one["status"] for one in told] == ["continue", "continue", "cancel", "lost"]
        expiries = [datetime.fromisoformat(one["expires_at"]) for one in told[:2]]
        # What a worker is told is what it has: the one was renewed, the other runs out when it did.
        assert expiries[0] > before[free["run_id"]]
        assert expiries[1] == before[held["run_id"]]
        assert (told[2]["reason"], told[2]["grace_s"] > 0) == ("wrong turn", True)
    (again,) = await heartbeat(kit, held, extend_s=900)
    assert datetime.fromisoformat(again["expires_at"]) > before[held["run_id"]]


async def test_a_runs_token_keeps_its_own_lease_only(kit: Kit) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root, "a", target="orchestrator", scope_subset=["agents.execute"])
    await spawn_one(kit, root, "b", target="orchestrator", scope_subset=["agents.execute"])
    mine, other = await claim(kit, "orchestrator", max_runs=2)
    api = kit.api.acting_with(mine["run_token"])
    body = {"leases": [{"run_id": mine["run_id"], "lease": mine["lease"]}], "extend_s": 30}
    assert done(await api.post("/work/heartbeat", body))["leases"][0]["status"] == "continue"
    body["leases"] = [{"run_id": other["run_id"], "lease": other["lease"]}]
    refused(await api.post("/work/heartbeat", body), 403, "forbidden")


async def test_an_expired_lease_puts_the_run_back_in_the_queue_for_another_attempt(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    first = await claim_one(kit)
    await let_expire(database, first["run_id"])
    expired = metrics.LEASES_EXPIRED.labels(metrics.tenant_label(kit.slug))._value.get()
    assert (await expire_leases(database).run_once()).settled >= 1
    # Tenants of other tests may be under the same label, and their leases may end with this one.
    assert metrics.LEASES_EXPIRED.labels(metrics.tenant_label(kit.slug))._value.get() >= expired + 1
    assert (await row(database, first["run_id"]))["status"] == "queued"
    second = await claim_one(kit)
    assert (second["run_id"], second["attempt"]) == (first["run_id"], 2)
    assert second["lease"] != first["lease"]
    # Whoever held it before changes nothing any more.
    refused(await complete(kit, first), 409, "lease_lost")
    assert (await heartbeat(kit, first))[0]["status"] == "lost"
    assert done(await complete(kit, second))["status"] == "completed"
    await audit(database, kit)


async def test_a_run_that_no_worker_keeps_has_failed_after_its_last_attempt(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    group = done(await kit.spawn_group(root, "g", 1))
    for attempt in (1, 2, 3):
        run = await claim_one(kit)
        assert run["attempt"] == attempt
        await let_expire(database, run["run_id"])
        await expire_leases(database).run_once()
    stored = await row(database, group["spawned_run_ids"][0])
    assert stored["status"] == "failed"
    assert stored["error"]["code"] == "lease_expired"
    assert stored["error"]["attempts"] == 3
    async with database.read() as session:
        decided = await session.driver.fetchrow(
            "SELECT status, decided_seq FROM orchestration_groups WHERE group_id = $1",
            UUID(group["orchestration_group_id"]),
        )
    assert tuple(decided) == ("completed_with_errors", stored["finalized_seq"])
    await audit(database, kit)


async def test_a_lease_that_expires_under_a_grace_is_cancelled_and_not_queued_again(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    cancellation_id = await fence(database, kit, root.run_id, run["run_id"], grace_s=90)
    await let_expire(database, run["run_id"])
    await expire_leases(database).run_once()
    assert (await row(database, run["run_id"]))["status"] == "cancelled"
    async with database.read() as session:
        counted = await session.driver.fetchval(
            "SELECT cancelled_count FROM cancellations WHERE cancellation_id = $1", cancellation_id
        )
    assert counted == 1
    await audit(database, kit)


async def test_what_a_pass_decides_cancels_what_it_would_queue_again(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    members = done(await kit.spawn_group(root, "g", 3, join_mode="fail_fast"))["spawned_run_ids"]
    await claim(kit, max_runs=3)
    async with database.write() as session:
        await session.driver.execute("UPDATE run_leases SET attempt = max_attempts WHERE run_id = $1", UUID(members[1]))
    await let_expire(database, *members)
    await expire_leases(database).run_once()
    statuses = [(await row(database, member))["status"] for member in members]
    assert statuses == ["cancelled", "failed", "cancelled"]
    await DrainCancellations(database).run_once()
    async with database.read() as session:
        assert await audit_all(session.driver, tenant_id=kit.tenant_id) == []


async def test_a_renewed_lease_does_not_expire_under_a_pass_that_found_it_earlier(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit, lease_s=1)
    sweep = expire_leases(database)
    # What a pass found is held against the clock again under the lock.
    await heartbeat(kit, run, extend_s=60)
    assert await sweep._settle((UUID(kit.tenant_id), UUID(root.run_id)), [UUID(run["run_id"])]) == 0
    assert (await row(database, run["run_id"]))["status"] == "running"


@pytest.mark.parametrize("attempt", range(3))
async def test_completion_and_expiry_at_once_have_one_winner_and_the_worker_is_told_who(
    kit: Kit, database: Database, attempt: int
) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn_group(root, "g", 30))
    runs = await claim(kit, max_runs=100, lease_s=1)

    async def expire() -> None:
        for run in runs:
            await let_expire(database, run["run_id"])
            await expire_leases(database).run_once()

    responses, _ = await asyncio.gather(asyncio.gather(*(complete(kit, run) for run in reversed(runs))), expire())
    for run, response in zip(reversed(runs), responses, strict=True):
        status = (await row(database, run["run_id"]))["status"]
        if response.is_success:
            assert status == "completed"
        else:
            refused(response, 409, "lease_lost")
            assert status == "queued"
    await audit(database, kit)


async def test_several_reconcilers_at_once_take_a_lease_back_once(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(**PLENTY)
    done(await kit.spawn_group(root, "g", 20))
    runs = await claim(kit, max_runs=100)
    await let_expire(database, *(run["run_id"] for run in runs))
    expired = metrics.LEASES_EXPIRED.labels(metrics.tenant_label(kit.slug))._value.get()
    await asyncio.gather(*(expire_leases(database).run_once() for _ in range(4)))
    assert metrics.LEASES_EXPIRED.labels(metrics.tenant_label(kit.slug))._value.get() == expired + 20
    assert [run["attempt"] for run in await claim(kit, max_runs=100)] == [2] * 20
    await audit(database, kit)


async def test_a_leased_run_is_paused_kept_resumed_and_completed_by_its_holder(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    started = (await row(database, run["run_id"]))["started_seq"]
    done(await report(kit.api, run["run_id"], "paused", lease=run["lease"]))
    assert (await heartbeat(kit, run))[0]["status"] == "continue"
    assert await claim(kit) == []
    await audit(database, kit)
    done(await report(kit.api, run["run_id"], "running", lease=run["lease"]))
    assert (await row(database, run["run_id"]))["started_seq"] == started
    assert done(await complete(kit, run))["status"] == "completed"
    await audit(database, kit)


async def test_a_paused_run_whose_worker_is_gone_is_queued_again(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    await spawn_one(kit, root)
    run = await claim_one(kit)
    done(await report(kit.api, run["run_id"], "paused", lease=run["lease"]))
    await let_expire(database, run["run_id"])
    await expire_leases(database).run_once()
    assert (await claim_one(kit))["attempt"] == 2
    await audit(database, kit)
