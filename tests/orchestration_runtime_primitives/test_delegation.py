"""The tokens of runs: what they say, and that they never reach beyond their run."""

import asyncio
from typing import Any
from uuid import UUID

import jwt

from kernel.commands.run_tokens import SIGNED_AT_ONCE, Issued, tokens_of_children
from kernel.commands.spawning.order import ChildOrder, JoinOrder, SpawnOrder, TargetRef
from kernel.domain.events import Surface
from kernel.domain.principal import Principal
from kernel.policy.contract import Action
from kernel.reconcilers.drain_cancellations import DrainCancellations
from kernel.store.engine import Database
from service.dependencies import Services
from tests.kit import Kit, Run, done, refused
from tests.orchestration_runtime_primitives.work.crew import fence


async def chain_of_runs(kit: Kit, length: int) -> list[Run]:
    """A root and below it a chain of runs, each executed by the one above."""
    root, _ = await kit.team(max_depth=length)
    runs = [root]
    for depth in range(1, length + 1):
        answer = done(
            await kit.spawn(
                runs[-1], f"d{depth}", "orchestrator", start_background=False, scope_subset=["agents.execute", "read"]
            )
        )
        run_id = answer["spawned_run_ids"][0]
        runs.append(Run(run_id, answer["run_tokens"][run_id], root.agent_id))
    return runs


async def test_a_token_names_its_run_and_the_chain_of_actors_above_it(kit: Kit) -> None:
    runs = await chain_of_runs(kit, 3)
    claims = jwt.decode(runs[3].token, options={"verify_signature": False})
    assert claims["run"] == runs[3].run_id
    assert claims["root"] == runs[0].run_id
    assert claims["ten"] == kit.tenant_id
    assert claims["agt"] == runs[0].agent_id
    assert claims["scp"] == ["agents.execute", "read"]
    assert claims["dep"] == 3
    chain, act = [], claims["act"]
    while act:
        chain.append(act["sub"])
        act = act.get("act")
    assert chain == [f"run:{run.run_id}" for run in reversed(runs[:3])]
    assert jwt.get_unverified_header(runs[3].token)["alg"] == "EdDSA"


async def test_a_claimed_run_has_the_same_chain(kit: Kit) -> None:
    runs = await chain_of_runs(kit, 2)
    done(await kit.spawn(runs[1], "work"))
    work = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "wait_s": 10}))["runs"][0]
    claims = jwt.decode(work["run_token"], options={"verify_signature": False})
    assert claims["act"] == {"sub": f"run:{runs[1].run_id}", "act": {"sub": f"run:{runs[0].run_id}"}}


async def test_a_run_that_has_ended_repeats_and_reads_but_acts_no_more(kit: Kit) -> None:
    root, _ = await kit.team()
    first = done(await kit.spawn(root, "a"))
    as_run = kit.api.acting_with(root.token)
    done(await as_run.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"}))
    assert done(await kit.spawn(root, "a"))["spawned_run_ids"] == first["spawned_run_ids"]
    assert done(await as_run.get(f"/agents/runs/{root.run_id}"))["status"] == "completed"
    refused(await kit.spawn(root, "b"), 409, "caller_not_active")


async def test_a_run_that_was_cancelled_repeats_but_acts_no_more(kit: Kit) -> None:
    root, _ = await kit.team()
    first = done(await kit.spawn(root, "a"))
    body = {"caller_run_id": root.run_id, "run_id": root.run_id}
    done(await kit.api.post("/internal/orchestration/cancel-subtree", body))
    assert done(await kit.spawn(root, "a"))["spawned_run_ids"] == first["spawned_run_ids"]
    refused(await kit.spawn(root, "b"), 409, "run_cancelled")


async def test_a_spawn_is_refused_with_the_reason_for_which_its_caller_was_cancelled(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team(max_depth=5)
    branch = done(await kit.spawn(root, "branch", "orchestrator"))["spawned_run_ids"][0]
    cancellation_id = await fence(database, kit, root.run_id, branch, reason="wrong turn")
    covered = refused(await kit.spawn(branch, "a"), 409, "run_cancelled")
    assert covered["cancellation_id"] == str(cancellation_id)
    assert (covered["reason"], covered["run_id"]) == ("wrong turn", branch)
    await DrainCancellations(database).run_once()
    # Written down, it is refused alike: alone, in a group, where it is only tried, and a judgement, too.
    body = {
        "caller_run_id": branch,
        "target_agent_slug": "worker",
        "scope_subset": ["read"],
        "idempotency_key": "a",
    }
    for response in (
        await kit.spawn(branch, "a"),
        await kit.spawn_group(branch, "g", 2),
        await kit.api.post("/internal/orchestration/spawn-run?dry_run=true", body),
        await kit.api.post("/internal/orchestration/evaluate-and-replan", {"caller_run_id": branch, "run_id": branch}),
    ):
        problem = refused(response, 409, "run_cancelled")
        assert problem["detail"] == f"caller_run_id: run {branch} was cancelled: wrong turn"
        assert (problem["reason"], problem["run_id"]) == ("wrong turn", branch)


async def test_a_spawn_whose_caller_acknowledged_its_cancellation_is_refused_with_its_reason(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    branch = done(await kit.spawn(root, "branch", "orchestrator", start_background=False))["spawned_run_ids"][0]
    await fence(database, kit, root.run_id, root.run_id, reason="wrong turn")
    done(await kit.api.post(f"/agents/runs/{branch}/status", {"status": "cancelled"}))
    await DrainCancellations(database).run_once()
    assert refused(await kit.spawn(branch, "a"), 409, "run_cancelled")["reason"] == "wrong turn"


async def test_a_run_without_the_scope_cannot_call_the_primitives(kit: Kit) -> None:
    root, _ = await kit.team()
    answer = done(await kit.spawn(root, "a", "orchestrator", start_background=False, scope_subset=["read"]))
    run_id = answer["spawned_run_ids"][0]
    refused(await kit.spawn(Run(run_id, answer["run_tokens"][run_id], ""), "b"), 403, "forbidden")


async def test_a_runs_token_starts_no_tree_of_its_own(kit: Kit) -> None:
    root, _ = await kit.team()
    body: dict[str, object] = {"requested_scopes": []}
    refused(await kit.api.acting_with(root.token).post(f"/agents/{root.agent_id}/runs", body), 403, "forbidden")


async def test_a_root_holds_what_the_tenants_token_may_delegate_and_no_more(kit: Kit) -> None:
    agent_id = await kit.orchestrator()
    token = done(
        await kit.admin.post(
            f"/tenants/{kit.tenant_id}/tokens", {"scopes": ["agents.execute"], "delegable_scopes": ["read"]}
        )
    )["token"]
    limited = kit.api.acting_with(token)
    done(await limited.post(f"/agents/{agent_id}/runs", {"requested_scopes": ["read"]}))
    problem = refused(
        await limited.post(f"/agents/{agent_id}/runs", {"requested_scopes": ["read", "write"]}), 403, "policy_denied"
    )
    assert problem["reasons"][0]["code"] == "scope_exceeds_caller"
    assert problem["reasons"][0]["scopes"] == ["write"]


async def test_signing_for_a_large_group_gives_others_a_turn(kit: Kit, services: Services) -> None:
    root, _ = await kit.team(max_fanout=1_000, max_children_total=1_000)
    done(await kit.spawn_group(root, "g", 3 * SIGNED_AT_ONCE))
    order = SpawnOrder(
        action=Action.SPAWN_GROUP,
        surface=Surface.RUNTIME_PRIMITIVES,
        principal=Principal("tenant", UUID(kit.tenant_id), frozenset({"agents.execute"}), ("*",)),
        tenant_id=UUID(kit.tenant_id),
        caller_run_id=UUID(root.run_id),
        key="g",
        children=tuple(ChildOrder(TargetRef(slug="worker"), {"n": n}) for n in range(3 * SIGNED_AT_ONCE)),
        scopes=("read",),
        join=JoinOrder(),
    )
    spawned = await services.combiner.spawn(order)
    assert spawned.idempotent
    signed, seen = 0, set()

    class Counting:
        def issue_run(self, **claims: Any) -> Issued:
            nonlocal signed
            signed += 1
            return services.tokens.issue_run(**claims)

    async def look() -> None:
        while signed < 3 * SIGNED_AT_ONCE:
            seen.add(signed)
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    issued = await tokens_of_children(services.database, Counting(), order.tenant_id, spawned)
    await looking
    assert len(issued) == signed
    assert seen >= {SIGNED_AT_ONCE, 2 * SIGNED_AT_ONCE}
