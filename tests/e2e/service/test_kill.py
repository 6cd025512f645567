"""Whatever is killed, what was acknowledged is there, nothing is half done, nothing is left over, and it goes on."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from load.audit import audit
from tests.faults.load import under_load
from tests.faults.remit import Remit, gone, processes_of
from tests.faults.scale import scaled
from tests.kit import Api, Kit, Run, done, refused

# Far more than a load of seconds can use up.
PLENTY = {"max_fanout": 1_000_000, "max_children_total": 1_000_000, "max_depth": 100}
RECOVERY_S = 90.0


@asynccontextmanager
async def tenant_of(remit: Remit) -> AsyncIterator[Kit]:
    async with httpx2.AsyncClient(base_url=remit.url, timeout=60.0, verify=False) as client:
        yield await Kit.make(Api(client, remit.admin_token))


async def trees(kit: Kit) -> list[Run]:
    first, _ = await kit.team(**PLENTY)
    return [first, *[await kit.root(first.agent_id) for _ in range(3)]]


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_a_killed_service_takes_its_servers_along_and_loses_nothing(
    data_dir: Path, record_property: Callable[[str, object], None]
) -> None:
    dice = random.Random(9)
    async with Remit(data_dir) as remit:
        await remit.start()
        async with tenant_of(remit) as kit:
            callers = [root.run_id for root in await trees(kit)]
            async with under_load(kit, remit.url, callers) as load:
                for _ in range(scaled(50)):
                    await load.acknowledge(dice.randint(5, 60))
                    remit.send(signal.SIGKILL)
                    assert await remit.ended() == -signal.SIGKILL
                    await gone(data_dir)
                    await remit.start()
                await load.acknowledge(8)
            await load.repeat(30)
            async with remit.database() as connection:
                await load.check(connection)
                assert await audit(connection) == []
    record_property("kills of the service", scaled(50))


async def until_granted(kit: Kit, caller: Run, key: str, refusal: str) -> None:
    """Send a spawn until the service is itself again; until then it refuses, and for one reason only."""
    async with asyncio.timeout(RECOVERY_S):
        while (answer := await kit.spawn(caller, key)).status_code != 200:
            assert refused(answer, 503, refusal)["status"] == 503
            await asyncio.sleep(float(answer.headers["Retry-After"]) / 5)


async def until_ready(kit: Kit, *, ready: bool) -> None:
    async with asyncio.timeout(RECOVERY_S):
        while (await kit.api.get("/readyz")).json()["ready"] is not ready:  # noqa: ASYNC110 - it is asked, and tells nobody
            await asyncio.sleep(0.1)


async def kill_and_see_it_go(process: psutil.Process) -> None:
    family = [process, *process.children(recursive=True)]
    process.kill()
    _, left = await asyncio.to_thread(psutil.wait_procs, family, 30)
    assert left == []


async def test_without_opa_nothing_is_let_through_and_with_it_all_goes_on(data_dir: Path, real_opa: Path) -> None:
    # Without the file a restart fails, so the outage lasts as long as the test wants.
    link = data_dir.parent / "opa"
    link.symlink_to(real_opa)
    async with Remit(data_dir, environment={"REMIT_OPA_BINARY": str(link)}) as remit:
        await remit.start()
        async with tenant_of(remit) as kit:
            root = (await trees(kit))[0]
            kept = done(await kit.spawn(root, "before"))["spawned_run_ids"]
            link.unlink()
            await kill_and_see_it_go(remit.child("opa"))
            sends = [kit.spawn(root, f"meanwhile-{number}") for number in range(20)]
            sends += [kit.spawn_group(root, f"group-{number}", 3) for number in range(5)]
            for answer in await asyncio.gather(*sends):
                refused(answer, 503, "policy_unavailable")
                assert int(answer.headers["Retry-After"]) >= 1
            refused(
                await kit.api.post(f"/agents/{root.agent_id}/runs", {"requested_scopes": ["read"]}),
                503,
                "policy_unavailable",
            )
            # What was granted before needs no question.
            assert done(await kit.spawn(root, "before"))["spawned_run_ids"] == kept
            await until_ready(kit, ready=False)
            async with remit.database() as connection:
                assert await connection.fetchval("SELECT count(*) FROM agent_runs WHERE parent_run_id IS NOT NULL") == 1
                recorded = "SELECT count(*) FROM policy_decisions WHERE outcome = 'error'"
                assert await connection.fetchval(recorded) == len(sends) + 1
            link.symlink_to(real_opa)
            await until_granted(kit, root, "meanwhile-0", "policy_unavailable")
            await until_ready(kit, ready=True)
            async with remit.database() as connection:
                assert await audit(connection) == []


async def test_without_postgresql_calls_are_refused_and_with_it_all_goes_on(data_dir: Path) -> None:
    async with Remit(data_dir) as remit:
        await remit.start()
        async with tenant_of(remit) as kit:
            root = (await trees(kit))[0]
            kept = done(await kit.spawn(root, "before"))["spawned_run_ids"]
            # With a setting that does not exist a restart fails, so the outage lasts as long as the test wants.
            configuration = data_dir / "postgres" / "postgresql.conf"
            sound = configuration.read_text()
            configuration.write_text(sound + "there_is_no_such_setting = on\n")
            await kill_and_see_it_go(remit.child("postgres"))
            for answer in await asyncio.gather(*(kit.spawn(root, f"meanwhile-{number}") for number in range(20))):
                refused(answer, 503, "database_unavailable")
                assert int(answer.headers["Retry-After"]) >= 1
            refused(await kit.api.get("/agents"), 503, "database_unavailable")
            await until_ready(kit, ready=False)
            assert (await kit.api.get("/livez")).status_code == 200
            configuration.write_text(sound)
            await until_granted(kit, root, "meanwhile-0", "database_unavailable")
            await until_ready(kit, ready=True)
            assert done(await kit.spawn(root, "before"))["spawned_run_ids"] == kept
            async with remit.database() as connection:
                assert await audit(connection) == []


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["opa", "postgres"])
async def test_a_server_killed_under_load_comes_back_and_nothing_acknowledged_is_lost(
    data_dir: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    async with Remit(data_dir) as remit:
        await remit.start()
        async with tenant_of(remit) as kit:
            callers = [root.run_id for root in await trees(kit)]
            async with under_load(kit, remit.url, callers) as load:
                for _ in range(scaled(50)):
                    await load.acknowledge(20)
                    await kill_and_see_it_go(remit.child(name))
                    await load.acknowledge(20)
                    await remit.has_child(name)
            assert "Traceback" not in remit.output, remit.output
            assert load.unavailable > 0
            await until_ready(kit, ready=True)
            await load.repeat(30)
            async with remit.database() as connection:
                await load.check(connection)
                assert await audit(connection) == []
    record_property(f"kills of {name}", scaled(50))


async def test_sigterm_finishes_what_was_begun_and_ends_well_within_ten_seconds(data_dir: Path) -> None:
    async with Remit(data_dir) as remit:
        await remit.start()
        async with tenant_of(remit) as kit:
            roots = await trees(kit)
            claim = {"agent_slugs": ["orchestrator"], "wait_s": 60}
            async with under_load(kit, remit.url, [root.run_id for root in roots]) as load:
                polling = asyncio.create_task(kit.api.post("/work/claim", claim))
                await load.acknowledge(20)
                remit.send(signal.SIGTERM)
                async with asyncio.timeout(10):
                    assert await remit.ended() == 0, remit.output
            assert done(await polling) == {"runs": []}
            assert processes_of(data_dir) == []
            assert not (data_dir / "service.json").exists()
            await remit.start()
            async with remit.database() as connection:
                await load.check(connection)
                assert await audit(connection) == []
            await load.repeat(10)


Moment = Callable[[Remit], Awaitable[None]]


@pytest.mark.parametrize(
    "moment",
    [
        lambda remit: remit.says("Creating a PostgreSQL"),
        lambda remit: remit.has_child("postgres"),
        lambda remit: remit.has_child("opa"),
    ],
    ids=["initdb", "postgres", "opa"],
)
async def test_sigterm_while_starting_ends_it_cleanly(data_dir: Path, moment: Moment) -> None:
    async with Remit(data_dir) as remit:
        await remit.launch()
        await moment(remit)
        remit.send(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await remit.ended() == 0, remit.output
        assert processes_of(data_dir) == []
        assert "Traceback" not in remit.output


async def fails(remit: Remit) -> str:
    """What it says when it cannot start; it says it in words, and leaves nothing running."""
    await remit.launch()
    async with asyncio.timeout(120):
        assert await remit.ended() != 0
    assert processes_of(remit.data_dir) == []
    assert "Traceback" not in remit.output, remit.output
    return remit.output


async def test_a_port_in_use_is_told(data_dir: Path) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with server, Remit(data_dir, port=server.sockets[0].getsockname()[1]) as remit:
        said = await fails(remit)
        assert f"127.0.0.1:{remit.port}" in said
        assert "--port" in said


@pytest.mark.parametrize("place", [".", "postgres", "opa", "keys"])
async def test_a_file_in_the_way_of_the_data_directory_is_told(data_dir: Path, place: str) -> None:
    in_the_way = data_dir / place
    in_the_way.parent.mkdir(exist_ok=True, parents=True)
    in_the_way.write_text("")
    async with Remit(data_dir) as remit:
        said = await fails(remit)
        assert str(in_the_way) in said
        assert "--data-dir" in said


async def test_another_version_of_opa_is_told(data_dir: Path) -> None:
    other = data_dir.parent / "opa"
    other.write_text("#!/bin/sh\necho 'Version: 0.1.0'\n")
    other.chmod(0o755)
    async with Remit(data_dir, environment={"REMIT_OPA_BINARY": str(other)}) as remit:
        said = await fails(remit)
        assert f"REMIT_OPA_BINARY={other} is OPA 0.1.0" in said
        assert "unset it" in said


@pytest.mark.parametrize(
    "url", ["postgresql://remit@127.0.0.1:1/remit", "postgresql://remit@/remit?host=/nowhere", "mysql://here/db"]
)
async def test_a_database_that_cannot_be_reached_is_told(data_dir: Path, url: str) -> None:
    async with Remit(data_dir, environment={"REMIT_DATABASE_URL": url}) as remit:
        assert "REMIT_DATABASE_URL" in await fails(remit)


async def test_a_data_directory_in_use_is_told(data_dir: Path) -> None:
    async with Remit(data_dir) as first:
        await first.start()
        second = Remit(data_dir)
        await second.launch()
        assert await second.ended() == 1
        assert f"{data_dir} is in use by process {first.pid}" in second.output
        async with tenant_of(first) as kit:
            await until_ready(kit, ready=True)
