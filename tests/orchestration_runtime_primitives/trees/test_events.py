"""The events of a tree, as a stream and in pages: in order, once each, from wherever a reader left off."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest

from kernel.commands.ending import Ending, end_runs
from kernel.commands.read_events import BEGINNING, EventLog, EventReaders, ReadEvents
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.policy.opa import OpaEngine
from kernel.reconcilers.expire_leases import expire_leases
from kernel.store import trees
from kernel.store.engine import Database
from service.serving import allow_many_connections
from tests.kit import Api, Kit, Run, done, refused
from tests.orchestration_runtime_primitives.trees.forest import Forest
from tests.orchestration_runtime_primitives.work.crew import audit, claim, let_expire

CANCEL = "/internal/orchestration/cancel-subtree"
READERS = 500
# Five hundred connections are made and served by one process: that takes a slow machine its time.
PATIENCE_S = 90
MANY = 4_000


@dataclass(frozen=True)
class Received:
    """One event of a stream; a comment has neither id nor type."""

    event_id: str | None
    type: str | None
    data: Any


async def stream(api: Api, run_id: str, last_event_id: str | None = None) -> AsyncGenerator[Received, None]:
    headers = {"Authorization": f"Bearer {api.token}", "Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    async with api.client.stream("GET", f"/agents/runs/{run_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
            elif "data" in fields:
                yield Received(fields.get("id"), fields.get("event"), json.loads(fields["data"]))
                fields = {}
            else:
                fields = {}


async def until_end(api: Api, run_id: str, last_event_id: str | None = None) -> list[Received]:
    """A whole stream, without its last word."""
    received: list[Received] = []
    async with asyncio.timeout(20), aclosing(stream(api, run_id, last_event_id)) as events:
        async for event in events:
            if event.type == "end":
                return received
            received.append(event)
    raise AssertionError("the stream ended without its end")


async def all_pages(api: Api, run_id: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
    events: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        path = f"/agents/runs/{run_id}/events?limit={limit}" + (f"&after={after}" if after else "")
        page = done(await api.get(path))
        assert len(page["events"]) <= limit
        events.extend(page["events"])
        after = page["next"]
        if page["end"] or not page["events"]:
            return events, page["end"]


def order(event_id: str | None) -> tuple[int, int]:
    assert event_id is not None
    seq, _, index = event_id.partition(".")
    return int(seq), int(index)


async def busy_tree(kit: Kit) -> tuple[Run, str]:
    """A tree in which everything has happened that is told of, and that has ended."""
    root, _ = await kit.team(max_depth=5, max_fanout=20)
    branch = done(await kit.spawn(root, "branch", "orchestrator"))["spawned_run_ids"][0]
    done(await kit.spawn_group(branch, "g", 4))
    done(await kit.spawn_group(root, "h", 2, start_background=False))
    refused(await kit.spawn(root, "d", "worker", scope_subset=["admin"]), 403, "policy_denied")
    claimed = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 3}))["runs"]
    for work in claimed:
        body = {"run_id": work["run_id"], "lease": work["lease"], "status": "completed"}
        done(await kit.api.post("/work/complete", body))
    done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": branch}))
    done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id}))
    return root, branch


async def test_a_stream_tells_everything_in_order_and_ends(kit: Kit) -> None:
    root, _ = await busy_tree(kit)
    received = await until_end(kit.api, root.run_id)
    ids = [order(event.event_id) for event in received]
    assert ids == sorted(set(ids))
    seqs = {seq for seq, _ in ids}
    assert seqs == set(range(1, max(seqs) + 1))
    assert {event.type for event in received} == {
        "orchestration.spawn_decision", "orchestration.child_lifecycle", "orchestration.policy_deny",
        "orchestration.cancellation_propagation",
    }  # fmt: skip
    for event in received:
        told = event.data
        assert (told["specversion"], told["id"], told["type"]) == ("1.0", event.event_id, event.type)
        assert (told["source"], told["datacontenttype"]) == (f"/agents/runs/{root.run_id}", "application/json")
        assert told["remitsurface"] == "option_b_runtime_primitives"
        assert told["time"].endswith("Z")
        if event.type == "orchestration.child_lifecycle":
            assert set(told["data"]) == {"child_run_id", "status", "orchestration_group_id"}
            assert told["subject"] == told["data"]["child_run_id"]


async def test_pages_tell_the_same_as_the_stream(kit: Kit) -> None:
    root, branch = await busy_tree(kit)
    for run_id in (root.run_id, branch):
        streamed = [event.data for event in await until_end(kit.api, run_id)]
        for limit in (1, 3, 1000):
            assert await all_pages(kit.api, run_id, limit) == (streamed, True)


async def test_what_has_no_id_yet_begins_at_the_beginning_and_a_number_alone_stands_for_all_that_has_it(
    kit: Kit,
) -> None:
    root, _ = await busy_tree(kit)
    streamed = [event.data for event in await until_end(kit.api, root.run_id)]
    several = next(int(event["id"].split(".")[0]) for event in streamed if event["id"].endswith(".1"))
    for after, first in (("", 1), ("0", 1), (str(several), several + 1)):
        page = done(await kit.api.get(f"/agents/runs/{root.run_id}/events?after={after}&limit=1000"))
        assert page["events"] == [event for event in streamed if int(event["id"].split(".")[0]) >= first]
        assert page["end"]
        assert [event.data for event in await until_end(kit.api, root.run_id, after)] == page["events"]


async def test_a_reader_of_a_branch_hears_of_that_branch_only(kit: Kit) -> None:
    root, branch = await busy_tree(kit)
    everything = {event.event_id: event.data for event in await until_end(kit.api, root.run_id)}
    heard = await until_end(kit.api, branch)
    nodes = done(await kit.api.post("/internal/orchestration/query-tree", {"run_id": branch}))["nodes"]
    mine = {node["run_id"] for node in nodes}
    assert 0 < len(heard) < len(everything)
    for event in heard:
        data = event.data["data"]
        assert event.event_id in everything
        assert set(data.get("cancelled_run_ids", ())) <= mine
        if event.type == "orchestration.child_lifecycle":
            assert data["child_run_id"] in mine
    lifecycles = {
        event_id
        for event_id, told in everything.items()
        if told["type"] == "orchestration.child_lifecycle" and told["subject"] in mine
    }
    assert lifecycles <= {event.event_id for event in heard}


async def test_resuming_anywhere_loses_nothing_and_repeats_nothing(kit: Kit) -> None:
    root, branch = await busy_tree(kit)
    for run_id in (root.run_id, branch):
        whole = await until_end(kit.api, run_id)
        for number in random.Random(5).sample(range(len(whole)), min(6, len(whole))):
            assert await until_end(kit.api, run_id, whole[number].event_id) == whole[number + 1 :]
    assert await until_end(kit.api, root.run_id, f"{2**62}.0") == []


async def test_a_stream_that_breaks_over_and_over_while_the_tree_grows_hears_each_event_once(kit: Kit) -> None:
    root, _ = await kit.team(max_fanout=200, max_children_total=500)
    rng = random.Random(13)

    async def grow() -> None:
        for number in range(15):
            done(await kit.spawn_group(root, f"g{number}", 3))
            if number % 5 == 4:
                done(
                    await kit.api.post(
                        CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id, "include_root": False}
                    )
                )
        done(await kit.api.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"}))

    async def read() -> list[str]:
        heard: list[str] = []
        async with asyncio.timeout(30):
            while True:
                patience = rng.randint(1, 12)
                async with aclosing(stream(kit.api, root.run_id, heard[-1] if heard else None)) as events:
                    async for event in events:
                        if event.type == "end":
                            return heard
                        assert event.event_id is not None
                        heard.append(event.event_id)
                        patience -= 1
                        if not patience:
                            break

    steady = [asyncio.create_task(until_end(kit.api, root.run_id)) for _ in range(3)]
    heard, _ = await asyncio.gather(read(), grow())
    whole = [event.event_id for event in await until_end(kit.api, root.run_id)]
    assert heard == whole
    for other in await asyncio.gather(*steady):
        assert [event.event_id for event in other] == whole


async def test_a_batch_is_told_run_by_run(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    forest = Forest(database, kit)
    made = await forest.grow(root.run_id, worker, parents=[-1] * 5)
    await forest.tell_together(root.run_id, made)
    received = [
        event for event in await first(kit.api, root.run_id, 11) if event.type == "orchestration.child_lifecycle"
    ]
    batch = [event for event in received if order(event.event_id)[0] == 7]
    assert [event.event_id for event in batch] == [f"7.{index}" for index in range(5)]
    assert [event.data["subject"] for event in batch] == [str(run_id) for run_id in made]
    only = await first(kit.api, str(made[3]), 2)
    assert [event.event_id for event in only] == ["5.0", "7.3"]
    resumed = await first(kit.api, root.run_id, 3, "7.1")
    assert [event.event_id for event in resumed] == ["7.2", "7.3", "7.4"]
    page = done(await kit.api.get(f"/agents/runs/{root.run_id}/events?after=7.1&limit=2"))
    assert ([event["id"] for event in page["events"]], page["next"], page["end"]) == (["7.2", "7.3"], "7.3", False)


async def test_runs_that_change_together_are_told_each_on_the_surface_that_it_came_through(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team()
    made = done(await kit.spawn_group(root, "g", 4))["spawned_run_ids"]
    by_graph = set(made[::2])
    async with database.write() as session:
        await session.driver.execute(
            "UPDATE agent_runs SET surface = 'option_a_graphspec_v2' WHERE run_id = ANY ($1::uuid[])",
            [UUID(run_id) for run_id in by_graph],
        )
    held = await claim(kit, max_runs=4)
    await let_expire(database, *(run["run_id"] for run in held))
    await expire_leases(database).run_once()
    async with database.write() as session:
        tree = await trees.lock_one(session, UUID(kit.tenant_id), UUID(root.run_id))
        await end_runs(session, tree, [Ending(UUID(run_id), RunStatus.FAILED) for run_id in made])
        await trees.advance(session, tree)
    events = done(await kit.api.get(f"/agents/runs/{root.run_id}/events?limit=1000"))["events"]
    for status in ("running", "queued", "failed"):
        told = {
            event["subject"]: event["remitsurface"]
            for event in events
            if event["type"] == "orchestration.child_lifecycle" and event["data"]["status"] == status
        }
        assert set(told) - {root.run_id} == set(made)
        assert {run_id for run_id, surface in told.items() if surface == "option_a_graphspec_v2"} == by_graph
    await audit(database, kit)


async def first(api: Api, run_id: str, count: int, last_event_id: str | None = None) -> list[Received]:
    """The first events of a stream that goes on."""
    received: list[Received] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(stream(api, run_id, last_event_id)) as events:
        async for event in events:
            received.append(event)
            if len(received) == count:
                break
    return received


@pytest.mark.parametrize(
    "wrong", ["x", "-1", "1.", "-1.0", "1.0.0", "99999999999999999999.0", f"{2**63}.0", "\u0661.0"]
)
async def test_an_id_that_is_none_is_refused(kit: Kit, wrong: str) -> None:
    root, _ = await kit.team()
    for name, field in (("last_event_id", "Last-Event-ID"), ("after", "after")):
        problem = refused(
            await kit.api.get(f"/agents/runs/{root.run_id}/events?{name}={wrong}"), 400, "invalid_request"
        )
        assert problem["errors"][0]["field"] == field


async def test_hundreds_of_readers_hear_of_a_change(kit: Kit, api_url: str) -> None:
    # Both ends of each connection are in this process.
    allow_many_connections()
    root, _ = await kit.team()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=api_url, limits=limits, timeout=PATIENCE_S) as client:
        api = Api(client, kit.api.token)
        readers = [asyncio.create_task(first(api, root.run_id, 2)) for _ in range(READERS)]
        await asyncio.gather(*(first(api, root.run_id, 1) for _ in range(10)))
        done(await kit.spawn(root, "k"))
        for received in await asyncio.gather(*readers):
            assert [event.event_id for event in received] == ["1.0", "2.0"]


async def test_a_reader_that_stops_reading_holds_up_nobody_and_misses_nothing(kit: Kit, database: Database) -> None:
    root, worker = await kit.team()
    async with asyncio.timeout(60), aclosing(stream(kit.api, root.run_id)) as slow:
        heard = [await anext(slow)]
        # More than the buffers of a connection hold.
        await Forest(database, kit).grow(root.run_id, worker, parents=[-1] * MANY)
        assert len(await first(kit.api, root.run_id, MANY + 1)) == MANY + 1
        done(await kit.api.post(CANCEL, {"caller_run_id": root.run_id, "run_id": root.run_id, "wait_s": 30}))
        whole = await until_end(kit.api, root.run_id)
        async for event in slow:
            if event.type == "end":
                break
            heard.append(event)
    assert heard == whole


async def test_quiet_readers_get_a_heartbeat_and_all_are_let_go_when_the_service_stops(
    kit: Kit, database: Database, opa_engine: OpaEngine
) -> None:
    root, _ = await kit.team()
    stopping = asyncio.Event()
    readers = EventReaders(database, stopping)
    principal = Principal("tenant", UUID(kit.tenant_id), frozenset({"runs.read"}))
    log = await ReadEvents(database, opa_engine, readers).open(principal, UUID(root.run_id))
    heard: list[int] = []
    async with asyncio.timeout(10):
        async for events in log.follow(BEGINNING, beat_s=0.02):
            heard.append(len(events))
            if len(heard) == 3:
                stopping.set()
    assert heard == [1, 0, 0]
    assert not log.is_over


async def test_a_reader_of_a_quiet_branch_gets_a_heartbeat_while_the_rest_of_the_tree_is_busy(
    kit: Kit, database: Database
) -> None:
    root, _ = await kit.team(max_fanout=1_000, max_children_total=1_000)
    (quiet,) = done(await kit.spawn(root, "quiet"))["spawned_run_ids"]
    stopping = asyncio.Event()
    readers = EventReaders(database, stopping, poll_s=0.01)
    log = EventLog(database, readers, (UUID(kit.tenant_id), UUID(root.run_id)), UUID(quiet))

    async def be_busy() -> None:
        for number in range(900):
            done(await kit.spawn(root, f"beside{number}"))

    busy = asyncio.create_task(be_busy())
    heard: list[int] = []
    async with asyncio.timeout(10):
        async for events in log.follow(BEGINNING, beat_s=1):
            heard.append(len(events))
            if not events:
                stopping.set()
    assert not busy.done()
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)
    assert heard == [1, 0]
