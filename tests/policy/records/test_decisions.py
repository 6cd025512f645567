"""Every decision can be looked up: by its id, by its run, by what came of it and why; by its tenant only."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from kernel.identifiers import new_id
from kernel.policy.contract import Decision, DecisionInput
from kernel.store import decision_pages
from kernel.store.decision_pages import first_id_at
from kernel.store.engine import Database
from tests.kit import Kit, Run, done, refused

ITEM = {
    "decision_id",
    "action",
    "surface",
    "outcome",
    "reasons",
    "revision",
    "caller_run_id",
    "root_run_id",
    "duration_us",
    "created_at",
}

INSERT = """
INSERT INTO policy_decisions (tenant_id, decision_id, action, surface, outcome, reasons, revision, input, result,
  duration_us, created_at)
VALUES ($1, $2, $3, 'option_b_runtime_primitives', $4, $5, 'r', '{}', 'null', 1, $6)
"""


async def listed(kit: Kit, query: str = "") -> list[dict[str, Any]]:
    """All the decisions that a query finds, over as many pages as there are."""
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        following = f"&cursor={cursor}" if cursor else ""
        page = done(await kit.api.get(f"/policies/decisions?{query}{following}"))
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


async def insert(
    database: Database,
    kit: Kit,
    *,
    action: str = "spawn_run",
    outcome: str = "allow",
    codes: tuple[str, ...] = (),
    age: timedelta = timedelta(),
    decision_id: uuid.UUID | None = None,
) -> str:
    """A record straight in the table, with the id of its time unless another is given."""
    moment = datetime.now(UTC) - age
    if decision_id is None:
        decision_id = uuid.UUID(int=(first_id_at(moment).int | (new_id().int & (2**80 - 1))))
    reasons = orjson.dumps([{"code": code, "message": code} for code in codes]).decode()
    async with database.write() as session:
        await session.driver.execute(INSERT, uuid.UUID(kit.tenant_id), decision_id, action, outcome, reasons, moment)
    return str(decision_id)


async def denied_and_granted(kit: Kit) -> tuple[Run, str, str]:
    """A root run, the id of the decision that let it spawn, and of the one that did not."""
    root, _ = await kit.team(max_fanout=1)
    granted = done(await kit.spawn(root, "a"))["decision_id"]
    denied = refused(await kit.spawn(root, "b"), 403, "policy_denied")["decision_id"]
    return root, granted, denied


async def test_a_denial_can_be_looked_up_in_full(kit: Kit) -> None:
    root, _, denied = await denied_and_granted(kit)
    record = done(await kit.api.get(f"/policies/decisions/{denied}"))
    assert set(record) == ITEM | {"input", "result"}
    assert record["decision_id"] == denied
    assert (record["action"], record["outcome"]) == ("spawn_run", "deny")
    assert record["surface"] == "option_b_runtime_primitives"
    assert [reason["code"] for reason in record["reasons"]] == ["max_fanout_exceeded"]
    assert record["caller_run_id"] == record["root_run_id"] == root.run_id
    assert record["input"]["caller"]["children_count"] == 1
    assert record["result"]["allow"] is False
    assert record["revision"]
    assert record["duration_us"] > 0
    assert datetime.fromisoformat(record["created_at"]).utcoffset() == timedelta()


async def test_a_record_is_what_explaining_it_needs(kit: Kit) -> None:
    _, granted, denied = await denied_and_granted(kit)
    for decision_id in (granted, denied):
        record = done(await kit.api.get(f"/policies/decisions/{decision_id}"))
        question = DecisionInput.model_validate_json(orjson.dumps(record["input"]))
        assert question.action == "spawn_run"
        assert Decision.model_validate(record["result"]).allow == (record["outcome"] == "allow")


async def test_the_list_shows_the_newest_first_without_what_was_asked(kit: Kit) -> None:
    root, granted, denied = await denied_and_granted(kit)
    items = await listed(kit)
    assert [item["decision_id"] for item in items][:2] == [denied, granted]
    assert all(set(item) == ITEM for item in items)
    ids = [item["decision_id"] for item in items]
    assert ids == sorted(ids, reverse=True)
    assert {item["action"] for item in items} == {"spawn_run", "start_run"}
    assert items[0]["caller_run_id"] == root.run_id


async def test_a_run_finds_what_it_asked_and_a_root_all_of_its_tree(kit: Kit) -> None:
    first, _, _ = await denied_and_granted(kit)
    root = await kit.root(first.agent_id)
    answer = done(
        await kit.spawn(root, "o", "orchestrator", scope_subset=["agents.execute", "read"], start_background=False)
    )
    child_id = answer["spawned_run_ids"][0]
    done(await kit.spawn(Run(child_id, answer["run_tokens"][child_id], first.agent_id), "grandchild"))
    refused(await kit.spawn(root, "too many"), 403, "policy_denied")

    below = await listed(kit, f"run={child_id}")
    assert [(item["caller_run_id"], item["root_run_id"]) for item in below] == [(child_id, root.run_id)]
    tree = await listed(kit, f"run={root.run_id}")
    assert [item["caller_run_id"] for item in tree] == [root.run_id, child_id, root.run_id]
    assert await listed(kit, f"run={root.run_id}&limit=1") == tree
    assert [item["outcome"] for item in await listed(kit, f"run={root.run_id}&outcome=deny")] == ["deny"]
    assert {item["caller_run_id"] for item in await listed(kit, f"run={first.run_id}")} == {first.run_id}
    assert await listed(kit, f"run={uuid.uuid4()}") == []


async def test_decisions_are_found_by_action_outcome_and_reason(kit: Kit, database: Database) -> None:
    allowed = await insert(database, kit)
    joined = await insert(database, kit, action="join")
    deep = await insert(database, kit, outcome="deny", codes=("max_depth_exceeded", "max_fanout_exceeded"))
    wide = await insert(database, kit, outcome="deny", codes=("max_fanout_exceeded",))
    failed = await insert(database, kit, action="join", outcome="error", codes=("policy_unavailable",))

    async def found(query: str) -> list[str]:
        return [item["decision_id"] for item in await listed(kit, query)]

    assert await found("") == [failed, wide, deep, joined, allowed]
    assert await found("action=join") == [failed, joined]
    assert await found("outcome=allow") == [joined, allowed]
    assert await found("outcome=deny") == [wide, deep]
    assert await found("outcome=error") == [failed]
    assert await found("reason=max_fanout_exceeded") == [wide, deep]
    assert await found("reason=max_depth_exceeded&outcome=deny") == [deep]
    assert await found("reason=policy_unavailable&action=join") == [failed]
    assert await found("reason=policy_unavailable&action=spawn_run") == []
    assert await found("reason=max_fanout_exceeded&limit=1") == [wide, deep]


async def test_a_failure_of_the_engine_has_no_result(kit: Kit, database: Database) -> None:
    failed = await insert(database, kit, outcome="error", codes=("policy_unavailable",))
    record = done(await kit.api.get(f"/policies/decisions/{failed}"))
    assert record["result"] is None
    assert record["outcome"] == "error"


async def test_decisions_are_found_by_time(kit: Kit, database: Database) -> None:
    new = await insert(database, kit)
    week_old = await insert(database, kit, age=timedelta(days=7))
    month_old = await insert(database, kit, age=timedelta(days=28))

    async def found(query: str) -> list[str]:
        return [item["decision_id"] for item in await listed(kit, query)]

    days_ago = {days: stamp(datetime.now(UTC) - timedelta(days=days)) for days in (6, 8, 27)}
    assert await found("") == [new, week_old, month_old]
    assert await found(f"since={days_ago[6]}") == [new]
    assert await found(f"until={days_ago[6]}") == [week_old, month_old]
    assert await found(f"since={days_ago[8]}&until={days_ago[6]}") == [week_old]
    assert await found(f"since={days_ago[27]}&limit=1") == [new, week_old]
    assert await found("since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z") == [new, week_old, month_old]
    made = done(await kit.api.get(f"/policies/decisions/{week_old}"))["created_at"]
    assert await found(f"since={made}&until={days_ago[6]}") == [week_old]
    assert await found(f"until={made}") == [month_old]


async def test_clocks_may_differ(kit: Kit, database: Database) -> None:
    fast = uuid.UUID(int=first_id_at(datetime.now(UTC) + timedelta(hours=20)).int | (new_id().int & (2**80 - 1)))
    slow = uuid.UUID(int=first_id_at(datetime.now(UTC) - timedelta(hours=20)).int | (new_id().int & (2**80 - 1)))
    for decision_id in (fast, slow):
        await insert(database, kit, decision_id=decision_id)
        assert done(await kit.api.get(f"/policies/decisions/{decision_id}"))["decision_id"] == str(decision_id)
    since = stamp(datetime.now(UTC) - timedelta(minutes=1))
    assert [item["decision_id"] for item in await listed(kit, f"since={since}")] == [str(fast), str(slow)]


async def test_pages_neither_lose_nor_repeat_while_decisions_arrive(kit: Kit, database: Database) -> None:
    expected = [await insert(database, kit, age=timedelta(minutes=minute)) for minute in range(25)]
    first = done(await kit.api.get("/policies/decisions?limit=10"))
    await insert(database, kit)
    second = done(await kit.api.get(f"/policies/decisions?limit=10&cursor={first['next_cursor']}"))
    third = done(await kit.api.get(f"/policies/decisions?limit=10&cursor={second['next_cursor']}"))
    pages = [first, second, third]
    assert [item["decision_id"] for page in pages for item in page["items"]] == expected
    assert [len(page["items"]) for page in pages] == [10, 10, 5]
    assert third["next_cursor"] is None


async def test_a_page_that_is_full_at_the_end_is_the_last(kit: Kit, database: Database) -> None:
    for minute in range(4):
        await insert(database, kit, age=timedelta(minutes=minute))
    page = done(await kit.api.get("/policies/decisions?limit=4"))
    assert len(page["items"]) == 4
    assert page["next_cursor"] is None


async def test_a_rare_match_is_found_over_short_pages(
    kit: Kit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_pages, "MAX_SCANNED", 5)
    rare = [await insert(database, kit, action="retrieve", age=timedelta(minutes=minute)) for minute in (3, 14, 17)]
    for minute in range(18):
        if minute not in {3, 14, 17}:
            await insert(database, kit, age=timedelta(minutes=minute))
    first = done(await kit.api.get("/policies/decisions?action=retrieve"))
    assert [item["decision_id"] for item in first["items"]] == rare[:1]
    assert first["next_cursor"] is not None
    assert [item["decision_id"] for item in await listed(kit, "action=retrieve")] == rare
    assert [item["decision_id"] for item in await listed(kit, "action=retrieve&limit=1")] == rare


async def test_another_tenants_decisions_are_nowhere(kit: Kit) -> None:
    other = await Kit.make(kit.admin)
    foreign_root, granted, denied = await denied_and_granted(other)
    _, mine, _ = await denied_and_granted(kit)
    for decision_id in (granted, denied):
        refused(await kit.api.get(f"/policies/decisions/{decision_id}"), 404, "not_found")
    unknown = refused(await kit.api.get(f"/policies/decisions/{new_id()}"), 404, "not_found")
    foreign = refused(await kit.api.get(f"/policies/decisions/{denied}"), 404, "not_found")
    assert {**unknown, "detail": ""} == {**foreign, "detail": ""}
    theirs = {item["decision_id"] for item in await listed(other)}
    assert {granted, denied} < theirs
    queries = (
        "",
        "outcome=deny",
        "reason=max_fanout_exceeded",
        "action=spawn_run",
        f"run={foreign_root.run_id}",
        "limit=1",
    )
    for query in queries:
        assert theirs.isdisjoint(item["decision_id"] for item in await listed(kit, query))
    assert await listed(kit, f"run={foreign_root.run_id}") == []
    # A cursor of another tenant's is but a point in time.
    assert mine not in {item["decision_id"] for item in await listed(kit, f"cursor={granted}")}
    assert theirs.isdisjoint(item["decision_id"] for item in await listed(kit, f"cursor={denied}"))


async def test_the_admin_names_the_tenant(kit: Kit) -> None:
    _, _, denied = await denied_and_granted(kit)
    refused(await kit.admin.get("/policies/decisions"), 403, "forbidden")
    refused(await kit.admin.get(f"/policies/decisions/{denied}"), 403, "forbidden")
    named = {"X-Tenant-ID": kit.tenant_id}
    assert done(await kit.admin.call("GET", f"/policies/decisions/{denied}", headers=named))["outcome"] == "deny"
    page = done(await kit.admin.call("GET", "/policies/decisions", headers=named))
    assert page["items"][0]["decision_id"] == denied


async def test_reading_decisions_takes_the_scope_and_is_not_for_runs(kit: Kit) -> None:
    root, _, denied = await denied_and_granted(kit)
    body = {"scopes": ["agents.execute", "catalog.write", "policy.write", "runs.read"]}
    blind = done(await kit.admin.post(f"/tenants/{kit.tenant_id}/tokens", body))["token"]
    reading_run = await kit.root(root.agent_id, ["agents.execute", "policy.read"])
    for token in (blind, root.token, reading_run.token):
        api = kit.api.acting_with(token)
        refused(await api.get("/policies/decisions"), 403, "forbidden")
        refused(await api.get(f"/policies/decisions/{denied}"), 403, "forbidden")
    refused(await kit.api.acting_with("nonsense").get("/policies/decisions"), 401, "unauthenticated")


async def test_what_agents_are_given_is_in_no_record(kit: Kit, database: Database) -> None:
    root, _ = await kit.team(max_fanout=1)
    payload = {"password": "hunter2", "note": "between us"}
    done(await kit.spawn(root, "a", mapped_input_payload=payload))
    refused(await kit.spawn(root, "b", mapped_input_payload=payload), 403, "policy_denied")
    for item in await listed(kit):
        record = await kit.api.get(f"/policies/decisions/{item['decision_id']}")
        for secret in ("hunter2", "between us", root.token, kit.api.token):
            assert secret not in record.text
    async with database.read() as session:
        stored = await session.driver.fetch(
            "SELECT d::text FROM policy_decisions d WHERE tenant_id = $1", uuid.UUID(kit.tenant_id)
        )
    assert len(stored) == 3
    assert not any("hunter2" in row[0] for row in stored)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("run=nonsense", "run"),
        ("action=dance", "action"),
        ("outcome=maybe", "outcome"),
        ("reason=", "reason"),
        ("reason=%00", "reason"),
        ("since=yesterday", "since"),
        ("since=2026-11-20T00:00:00", "since"),
        ("until=nonsense", "until"),
        ("cursor=nonsense", "cursor"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("resaon=max_depth_exceeded", "resaon"),
    ],
)
async def test_a_bad_query_is_told_by_its_field(kit: Kit, query: str, field: str) -> None:
    problem = refused(await kit.api.get(f"/policies/decisions?{query}"), 400, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize("decision_id", [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.uuid4()])
async def test_an_id_without_a_time_is_no_decisions(kit: Kit, decision_id: uuid.UUID) -> None:
    refused(await kit.api.get(f"/policies/decisions/{decision_id}"), 404, "not_found")
    done(await kit.api.get(f"/policies/decisions?cursor={decision_id}"))


def stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
