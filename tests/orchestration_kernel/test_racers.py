"""Many clients at once, over HTTP: no limit is exceeded, no key makes two runs, whatever is cut in between."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import asyncpg
import httpx2
import pytest

from kernel.store.engine import Database
from tests.faults.proxy import Cut, cutting
from tests.faults.scale import scaled
from tests.kit import Api, Kit, Run, done, reason_codes, refused
from tests.orchestration_kernel.conftest import Audited

CLIENTS = 64
COPIES = 16
GROUP = 3


@pytest.fixture
async def crowd(api_url: str) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """Clients that each have a connection of their own."""
    # Nothing is verified on loopback, and sixty-four times the authorities would be read.
    clients = [httpx2.AsyncClient(base_url=api_url, timeout=120.0, verify=False) for _ in range(CLIENTS)]
    yield clients
    await asyncio.gather(*(client.aclose() for client in clients))


def through(kit: Kit, client: httpx2.AsyncClient) -> Kit:
    """The same tenant, by another connection."""
    return Kit(Api(client, kit.api.token), Api(client, kit.admin.token), kit.tenant_id, kit.slug)


async def race(
    kit: Kit, crowd: Sequence[httpx2.AsyncClient], callers: Sequence[str], *, calls: int, groups: bool = True
) -> tuple[Counter[str], Counter[str]]:
    """Let every client make its calls, one after the other, each on behalf of some caller.

    Returns:
        How many children were granted, by caller; and the codes of what was refused.
    """
    granted: Counter[str] = Counter()
    codes: Counter[str] = Counter()

    async def client(number: int) -> None:
        mine = through(kit, crowd[number])
        dice = random.Random(number)
        for call in range(calls):
            caller, key = dice.choice(callers), f"{number}-{call}"
            if groups and dice.random() < 0.3:
                answer = await mine.spawn_group(caller, key, GROUP)
            else:
                answer = await mine.spawn(caller, key)
            if answer.status_code == 200:
                granted[caller] += len(answer.json()["spawned_run_ids"])
            else:
                codes.update(reason_codes(refused(answer, 403, "policy_denied")))

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return granted, codes


@pytest.mark.torture
@pytest.mark.parametrize("trees", [1, 8])
async def test_fan_out_is_never_exceeded(
    kit: Kit,
    crowd: list[httpx2.AsyncClient],
    audited: Audited,
    trees: int,
    record_property: Callable[[str, object], None],
) -> None:
    limit = 10 if trees > 1 else 40
    first, _ = await kit.team(max_fanout=limit, max_children_total=10_000)
    roots = [first, *[await kit.root(first.agent_id) for _ in range(trees - 1)]]
    granted, codes = await race(kit, crowd, [root.run_id for root in roots], calls=scaled(50))
    for root in roots:
        # A group may be refused where a single still fits, so the last two places may stay empty.
        assert limit - GROUP < granted[root.run_id] <= limit
    assert set(codes) == {"max_fanout_exceeded"}
    await audited(kit)
    record_property("racing calls", CLIENTS * scaled(50))
    record_property("granted", sum(granted.values()))


@pytest.mark.torture
@pytest.mark.parametrize("trees", [1, 8])
async def test_the_total_of_a_tree_is_never_exceeded(
    kit: Kit,
    crowd: list[httpx2.AsyncClient],
    audited: Audited,
    trees: int,
    record_property: Callable[[str, object], None],
) -> None:
    limit = 16 if trees > 1 else 60
    first, _ = await kit.team(max_fanout=10_000, max_children_total=limit)
    callers: dict[str, list[str]] = {}
    for root in (first, *[await kit.root(first.agent_id) for _ in range(trees - 1)]):
        # Several callers in each tree: they share its total and nothing else.
        below = [done(await kit.spawn(root, f"caller-{n}", "orchestrator"))["spawned_run_ids"][0] for n in range(3)]
        callers[root.run_id] = [root.run_id, *below]
    every = [caller for members in callers.values() for caller in members]
    granted, codes = await race(kit, crowd, every, calls=scaled(50))
    for members in callers.values():
        assert limit - GROUP < sum(granted[caller] for caller in members) + 3 <= limit
    assert set(codes) == {"max_children_total_exceeded"}
    await audited(kit)
    record_property("racing calls", CLIENTS * scaled(50))
    record_property("granted", sum(granted.values()))


@pytest.mark.torture
@pytest.mark.parametrize("trees", [1, 8])
async def test_depth_is_never_exceeded(
    kit: Kit,
    crowd: list[httpx2.AsyncClient],
    audited: Audited,
    trees: int,
    record_property: Callable[[str, object], None],
) -> None:
    limit = 4
    first, _ = await kit.team(max_depth=limit, max_fanout=10_000, max_children_total=100_000)
    roots = [first, *[await kit.root(first.agent_id) for _ in range(trees - 1)]]
    # Every caller that is known to anybody, with its depth; the racers go on from whichever they like.
    known: list[tuple[str, int]] = [(root.run_id, 0) for root in roots]
    deepest: Counter[int] = Counter()

    async def client(number: int) -> None:
        mine = through(kit, crowd[number])
        dice = random.Random(number)
        for call in range(scaled(60)):
            caller, depth = dice.choice(known[-20:])
            answer = await mine.spawn(caller, f"{number}-{call}", "orchestrator")
            if depth == limit:
                assert reason_codes(refused(answer, 403, "policy_denied")) == ["max_depth_exceeded"]
                deepest[depth] += 1
            else:
                spawned = done(answer)
                assert spawned["lineage"]["depth"] == depth + 1
                known.append((spawned["spawned_run_ids"][0], depth + 1))

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    assert max(depth for _, depth in known) == limit
    assert deepest[limit] > 0
    await audited(kit)
    record_property("racing calls", CLIENTS * scaled(60))


@pytest.mark.torture
async def test_a_policy_that_tightens_meanwhile_holds_from_its_commit_on(
    kit: Kit, crowd: list[httpx2.AsyncClient], audited: Audited
) -> None:
    root, _ = await kit.team(max_fanout=10_000, max_children_total=10_000)
    granted = asyncio.Event()
    tightened = asyncio.Event()
    bound = 5

    async def client(number: int) -> None:
        mine = through(kit, crowd[number])
        call = 0
        while True:
            after = tightened.is_set()
            answer = await mine.spawn(root.run_id, f"{number}-{call}")
            call += 1
            if answer.status_code == 200:
                assert not after, "granted by a policy that was no longer in force"
                granted.set()
            elif answer.status_code == 403:
                return
            else:
                refused(answer, 409, "facts_changed")

    racing = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
    await granted.wait()
    policy = {"max_fanout": bound, "max_children_total": 10_000}
    done(await kit.api.put(f"/agents/{root.agent_id}/orchestrator-policy", policy))
    tightened.set()
    await asyncio.gather(*racing)
    await audited(kit)


Send = Callable[[Kit], Awaitable[httpx2.Response]]


@pytest.fixture
async def tree_lock(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection that can hold a tree's lock, so that whoever wants it stands before its commit."""
    async with database.read() as session:
        yield session.driver


async def copies_through(kit: Kit, url: str, send: Send, copies: int) -> list[httpx2.Response]:
    """Send the same request at once by so many connections; the answers that were heard."""
    async with httpx2.AsyncClient(
        base_url=url,
        timeout=120.0,
        verify=False,
        limits=httpx2.Limits(max_connections=copies, max_keepalive_connections=0),
    ) as client:
        mine = through(kit, client)
        answers = await asyncio.gather(*(send(mine) for _ in range(copies)), return_exceptions=True)
    heard: list[httpx2.Response] = []
    for answer in answers:
        if isinstance(answer, httpx2.TransportError):
            continue
        assert isinstance(answer, httpx2.Response), answer
        heard.append(answer)
    return heard


async def settle_amid_cuts(kit: Kit, api_url: str, send: Send) -> dict[str, object]:
    """Send one request sixteen times at once, most of them cut at one moment or another, then once more.

    Returns:
        The one answer, which everybody who heard any has heard.
    """
    async with (
        cutting(api_url, Cut.REQUEST_HALF_SENT) as before,
        cutting(api_url, Cut.REQUEST_SENT) as during,
        cutting(api_url, Cut.RESPONSE_BEGUN) as after,
    ):
        share = COPIES // 4
        urls = (before.url, during.url, after.url, api_url)
        batches = await asyncio.gather(*(copies_through(kit, url, send, share) for url in urls))
        assert [len(batch) for batch in batches] == [0, 0, 0, share]
        assert (before.cuts, during.cuts, after.cuts) == (share, share, share)
    answers = [done(answer) for batch in batches for answer in batch]
    again = done(await send(kit))
    assert again.pop("idempotent") is True
    assert sum(not answer.pop("idempotent") for answer in answers) <= 1
    assert all(answer == again for answer in answers)
    return again


@pytest.mark.torture
async def test_a_key_sent_by_many_amid_cuts_is_one_run(
    kit: Kit, api_url: str, database: Database, audited: Audited, record_property: Callable[[str, object], None]
) -> None:
    root, _ = await kit.team(max_fanout=10_000, max_children_total=10_000)
    rounds = scaled(50)
    for number in range(rounds):
        key = f"key-{number}"
        answer = await settle_amid_cuts(kit, api_url, lambda via, key=key: via.spawn(root, key))  # type: ignore[misc]
        assert len(list(answer["spawned_run_ids"])) == 1  # type: ignore[call-overload]
    assert await children(database, root) == rounds
    await audited(kit)
    record_property("rounds amid cuts", rounds)


@pytest.mark.torture
async def test_a_prefix_sent_by_many_amid_cuts_is_one_group(
    kit: Kit, api_url: str, database: Database, audited: Audited, record_property: Callable[[str, object], None]
) -> None:
    root, _ = await kit.team(max_fanout=10_000, max_children_total=10_000)
    rounds = scaled(50)
    for number in range(rounds):
        key = f"prefix-{number}"
        answer = await settle_amid_cuts(kit, api_url, lambda via, key=key: via.spawn_group(root, key, GROUP))  # type: ignore[misc]
        assert len(list(answer["spawned_run_ids"])) == GROUP  # type: ignore[call-overload]
    assert await children(database, root) == rounds * GROUP
    await audited(kit)
    record_property("rounds amid cuts", rounds)


@pytest.mark.parametrize("size", [None, GROUP], ids=["a run", "a group"])
async def test_a_caller_that_is_cut_off_before_the_commit_finds_its_result(
    kit: Kit, api_url: str, database: Database, tree_lock: asyncpg.Connection, audited: Audited, size: int | None
) -> None:
    root, _ = await kit.team()

    def send(via: Kit) -> Awaitable[httpx2.Response]:
        return via.spawn(root, "key") if size is None else via.spawn_group(root, "key", size)

    async with cutting(api_url, Cut.REQUEST_SENT) as proxy:
        transaction = tree_lock.transaction()
        await transaction.start()
        await tree_lock.execute("SELECT 1 FROM run_trees WHERE root_run_id = $1 FOR UPDATE", root.run_id)
        heard = await copies_through(kit, proxy.url, send, 4)
        assert heard == []
        await waits_for_lock(database)
        assert await children(database, root) == 0
        await transaction.commit()
    # It was not given up because its callers had gone.
    again = done(await send(kit))
    assert again["idempotent"] is True
    assert await children(database, root) == len(again["spawned_run_ids"]) == (size or 1)
    await audited(kit)


CHANGES: dict[str, tuple[Callable[[Kit, Run, str], Awaitable[httpx2.Response]], str]] = {
    "the surface is switched off": (
        lambda kit, root, worker: kit.api.put(
            f"/tenants/{kit.tenant_id}/flags", {"option_b_runtime_primitives": False}
        ),
        "surface_disabled",
    ),
    "the policy tightens": (
        lambda kit, root, worker: kit.api.put(f"/agents/{root.agent_id}/orchestrator-policy", {"max_fanout": 0}),
        "max_fanout_exceeded",
    ),
    "the allowlist is emptied": (
        lambda kit, root, worker: kit.api.put(f"/agents/{root.agent_id}/allowlist", {"entries": []}),
        "allowlist_empty",
    ),
    "the target is unpublished": (
        lambda kit, root, worker: kit.api.post(f"/agents/{worker}/unpublish"),
        "target_not_published",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changes_between_the_question_and_the_commit_counts(
    kit: Kit, database: Database, tree_lock: asyncpg.Connection, audited: Audited, change: str
) -> None:
    root, worker = await kit.team()
    make, reason = CHANGES[change]
    transaction = tree_lock.transaction()
    await transaction.start()
    await tree_lock.execute("SELECT 1 FROM run_trees WHERE root_run_id = $1 FOR UPDATE", root.run_id)
    spawning = asyncio.create_task(kit.spawn(root, "key"))
    await waits_for_lock(database)
    done(await make(kit, root, worker))
    await transaction.commit()
    assert reason_codes(refused(await spawning, 403, "policy_denied")) == [reason]
    assert await children(database, root) == 0
    await audited(kit)


@pytest.mark.parametrize("position", [0, GROUP - 1])
async def test_a_child_key_that_is_taken_rolls_the_whole_group_back(
    kit: Kit, database: Database, audited: Audited, position: int
) -> None:
    root, _ = await kit.team()
    single = done(await kit.spawn(root, f"prefix:{position}"))
    refused(await kit.spawn_group(root, "prefix", GROUP), 409, "spawn_key_conflict")
    assert await children(database, root) == 1
    async with database.read() as session:
        assert (
            await session.driver.fetchval(
                "SELECT count(*) FROM orchestration_groups WHERE tenant_id = $1", kit.tenant_id
            )
            == 0
        )
    assert done(await kit.spawn(root, f"prefix:{position}"))["spawned_run_ids"] == single["spawned_run_ids"]
    done(await kit.spawn_group(root, "another", GROUP))
    refused(await kit.spawn(root, "another:1"), 409, "spawn_key_conflict")
    await audited(kit)


@pytest.mark.torture
async def test_groups_and_singles_that_race_for_the_same_keys_leave_whole_groups(
    kit: Kit, crowd: list[httpx2.AsyncClient], audited: Audited
) -> None:
    root, _ = await kit.team(max_fanout=10_000, max_children_total=10_000)
    rounds = scaled(100)

    async def client(number: int) -> None:
        mine = through(kit, crowd[number])
        for call in range(rounds):
            prefix = f"p{call}-{number // 4}"
            if number % 2:
                answer = await mine.spawn_group(root, prefix, GROUP)
            else:
                answer = await mine.spawn(root, f"{prefix}:{number % GROUP}")
            if answer.status_code != 200:
                refused(answer, 409, "spawn_key_conflict")

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    await audited(kit)


async def waits_for_lock(database: Database) -> None:
    """Return when somebody waits for a row of this database."""
    async with database.read() as session, asyncio.timeout(60):
        while not await session.driver.fetchval(  # noqa: ASYNC110 - PostgreSQL tells nobody who waits
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)


async def children(database: Database, root: Run) -> int:
    async with database.read() as session:
        count: int = await session.driver.fetchval(
            "SELECT count(*) FROM agent_runs WHERE root_run_id = $1 AND parent_run_id IS NOT NULL", root.run_id
        )
        return count
