"""spawn-run over HTTP: what is granted, what is refused and why, and what a repeat answers."""

import asyncio
from uuid import uuid4

import pytest

from tests.kit import Kit, done, reason_codes, refused


async def test_a_child_is_spawned_with_the_scopes_asked_for(kit: Kit) -> None:
    root, worker = await kit.team()
    answer = done(await kit.spawn(root, "a", mapped_input_payload={"x": 1}))
    assert len(answer["spawned_run_ids"]) == 1
    assert answer["effective_scope_subset"] == ["read"]
    assert answer["idempotent"] is False
    assert answer["lineage"] == {
        "root_run_id": root.run_id,
        "parent_run_id": root.run_id,
        "parent_node_id": None,
        "depth": 1,
        "spawn_key": "a",
        "orchestration_group_id": None,
    }
    assert answer["accepted_policy_snapshot"]["max_depth"] == 3
    assert worker


async def test_a_repeat_answers_with_the_first_run_also_when_the_limit_is_used_up(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=1)
    first = done(await kit.spawn(root, "a"))
    refused(await kit.spawn(root, "b"), 403, "policy_denied")
    response = await kit.spawn(root, "a")
    again = done(response)
    assert again["spawned_run_ids"] == first["spawned_run_ids"]
    assert again["idempotent"] is True
    assert response.headers["X-Idempotency-Reused"] == "true"
    assert {**again, "idempotent": False} == first


async def test_a_repeat_with_another_payload_names_what_differs(kit: Kit) -> None:
    root, _ = await kit.team()
    done(await kit.spawn(root, "a"))
    problem = refused(await kit.spawn(root, "a", mapped_input_payload={"x": 1}, timeout_s=5), 409, "spawn_key_conflict")
    assert problem["fields"] == ["mapped_input_payload", "timeout_s"]
    other = await kit.agent("other")
    by_slug = await kit.spawn(root, "a", "other")
    by_id = await kit.spawn(root, "a", target_agent_slug=None, target_agent_id=other)
    assert refused(by_slug, 409, "spawn_key_conflict")["fields"] == ["target_agent_slug"]
    assert refused(by_id, 409, "spawn_key_conflict")["fields"] == ["target_agent_id"]


async def test_a_target_named_by_id_and_by_slug_is_the_same_target(kit: Kit) -> None:
    root, worker = await kit.team()
    first = done(await kit.spawn(root, "a"))
    body = {
        "caller_run_id": root.run_id,
        "target_agent_id": worker,
        "scope_subset": ["read"],
        "idempotency_key": "a",
    }
    again = done(await kit.api.post("/internal/orchestration/spawn-run", body))
    assert again["spawned_run_ids"] == first["spawned_run_ids"]


async def test_every_reason_of_a_denial_is_told_not_only_the_first(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=0, max_children_total=0, max_depth=0, allowed_scope_subset=["read"])
    await kit.agent("stranger", publish=False)
    problem = refused(await kit.spawn(root, "a", "stranger", scope_subset=["other"]), 403, "policy_denied")
    assert reason_codes(problem) == [
        "max_children_total_exceeded",
        "max_depth_exceeded",
        "max_fanout_exceeded",
        "scope_exceeds_caller",
        "scope_exceeds_policy",
        "target_not_allowlisted",
        "target_not_published",
    ]
    by_code = {reason["code"]: reason for reason in problem["reasons"]}
    assert by_code["max_fanout_exceeded"] | {"message": ""} == {
        "code": "max_fanout_exceeded",
        "message": "",
        "limit": 0,
        "observed": 0,
        "requested": 1,
    }
    assert by_code["target_not_published"]["target"] == "stranger"
    assert by_code["scope_exceeds_caller"]["scopes"] == ["other"]


async def test_an_empty_allowlist_permits_nothing(kit: Kit) -> None:
    await kit.agent("worker")
    root = await kit.root(await kit.orchestrator())
    assert reason_codes(refused(await kit.spawn(root, "a"), 403, "policy_denied")) == ["allowlist_empty"]


async def test_scopes_are_needed(kit: Kit) -> None:
    root, _ = await kit.team()
    problem = refused(await kit.spawn(root, "a", scope_subset=[]), 403, "policy_denied")
    assert reason_codes(problem) == ["scope_required"]


async def test_a_surface_that_is_off_denies_new_work(kit: Kit) -> None:
    root, _ = await kit.team()
    done(await kit.api.put(f"/tenants/{kit.tenant_id}/flags", {"option_b_runtime_primitives": False}))
    assert reason_codes(refused(await kit.spawn(root, "a"), 403, "policy_denied")) == ["surface_disabled"]
    done(await kit.api.put(f"/tenants/{kit.tenant_id}/flags", {"option_b_runtime_primitives": True}))
    done(await kit.spawn(root, "a"))


async def test_chains_end_at_the_maximum_depth(kit: Kit) -> None:
    root, _ = await kit.team(max_depth=2)
    caller = root.run_id
    for depth in (1, 2):
        answer = done(await kit.spawn(caller, "down", "orchestrator"))
        assert answer["lineage"]["depth"] == depth
        caller = answer["spawned_run_ids"][0]
    problem = refused(await kit.spawn(caller, "down", "orchestrator"), 403, "policy_denied")
    assert problem["reasons"] == [
        {
            "code": "max_depth_exceeded",
            "message": problem["reasons"][0]["message"],
            "limit": 2,
            "observed": 2,
            "requested": 3,
        }
    ]


async def test_racers_never_exceed_the_fan_out(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=5, max_children_total=100)
    answers = await asyncio.gather(*(kit.spawn(root, f"k{number}") for number in range(40)))
    granted = [answer for answer in answers if answer.status_code == 200]
    assert len(granted) == 5
    for answer in answers:
        if answer.status_code != 200:
            problem = refused(answer, 403, "policy_denied")
            assert problem["reasons"][0] | {"message": ""} == {
                "code": "max_fanout_exceeded",
                "message": "",
                "limit": 5,
                "observed": 5,
                "requested": 1,
            }


async def test_one_key_sent_sixteen_times_at_once_is_one_run(kit: Kit) -> None:
    root, _ = await kit.team()
    answers = [done(answer) for answer in await asyncio.gather(*(kit.spawn(root, "same") for _ in range(16)))]
    assert len({answer["spawned_run_ids"][0] for answer in answers}) == 1
    assert sum(not answer["idempotent"] for answer in answers) == 1


async def test_a_dry_run_tells_the_headroom_and_writes_nothing(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=3)
    body = {
        "caller_run_id": root.run_id,
        "target_agent_slug": "worker",
        "scope_subset": ["read"],
        "idempotency_key": "a",
    }
    for _ in range(2):
        preview = done(await kit.api.post("/internal/orchestration/spawn-run?dry_run=true", body))
        assert preview["allow"] is True
        assert preview["headroom"] == {"depth": 2, "fanout": 2, "children_total": 31}
    assert done(await kit.spawn(root, "a"))["idempotent"] is False


async def test_a_dry_run_of_a_group_meets_the_keys_that_the_call_would_meet(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=4)
    done(await kit.spawn(root, "a:2"))
    path = "/internal/orchestration/spawn-group"

    def group(size: int) -> dict[str, object]:
        return {
            "caller_run_id": root.run_id,
            "targets": [{"target_agent_slug": "worker"}] * size,
            "scope_subset": ["read"],
            "idempotency_key_prefix": "a",
        }

    # Policy comes first, as it does in the call.
    denied = done(await kit.api.post(f"{path}?dry_run=true", group(4)))
    assert (denied["allow"], reason_codes(denied)) == (False, ["max_fanout_exceeded"])
    assert reason_codes(refused(await kit.api.post(path, group(4)), 403, "policy_denied")) == ["max_fanout_exceeded"]
    assert done(await kit.api.post(f"{path}?dry_run=true", group(2)))["allow"] is True
    conflicts = [
        refused(await kit.api.post(path + query, group(3)), 409, "spawn_key_conflict")
        for query in ("?dry_run=true", "")
    ]
    assert conflicts[0]["fields"] == conflicts[1]["fields"] == ["idempotency_key_prefix"]
    assert conflicts[0]["detail"] == conflicts[1]["detail"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"idempotency_key": None}, "idempotency_key"),
        ({"caller_run_id": "nonsense"}, "caller_run_id"),
        ({"scope_subset": "read"}, "scope_subset"),
        ({"scope_subset": ["with space"]}, "scope_subset[0]"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"failure_policy": "whatever"}, "failure_policy"),
        ({"mapped_input_payload": {"x": "nul \x00"}}, "mapped_input_payload"),
        ({"idempotency_key": "nul \x00"}, "idempotency_key"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"target_agent_slug": None}, "body"),
    ],
)
async def test_bad_input_is_told_by_its_field(kit: Kit, change: dict[str, object], field: str) -> None:
    body = {
        "caller_run_id": str(uuid4()),
        "target_agent_slug": "worker",
        "scope_subset": ["read"],
        "idempotency_key": "a",
    }
    problem = refused(await kit.api.post("/internal/orchestration/spawn-run", body | change), 400, "invalid_request")
    assert field in {error["field"] for error in problem["errors"]}


async def test_a_run_acts_as_itself_only(kit: Kit) -> None:
    root, _ = await kit.team()
    child = done(await kit.spawn(root, "a", start_background=False, scope_subset=["agents.execute"]))
    token = child["run_tokens"][child["spawned_run_ids"][0]]
    body = {
        "caller_run_id": root.run_id,
        "target_agent_slug": "worker",
        "scope_subset": ["read"],
        "idempotency_key": "b",
    }
    refused(await kit.api.acting_with(token).post("/internal/orchestration/spawn-run", body), 403, "forbidden")


async def test_another_tenants_run_and_agent_do_not_exist(kit: Kit, api: object) -> None:
    other = await Kit.make(kit.admin)
    foreign_root, foreign_worker = await other.team()
    refused(await kit.spawn(foreign_root.run_id, "a"), 404, "not_found")
    root, _ = await kit.team()
    body = {
        "caller_run_id": root.run_id,
        "target_agent_id": foreign_worker,
        "scope_subset": ["read"],
        "idempotency_key": "a",
    }
    refused(await kit.api.post("/internal/orchestration/spawn-run", body), 404, "not_found")
