"""Whatever ends the parent, its servers end with it, and what was committed is there at the next start."""

# ruff: noqa: ASYNC110, ASYNC240 - other processes are waited for, and there is nothing else on this loop to block
import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from service.embedded.accounts import Account, account_for
from service.embedded.children import first_inaccessible
from service.embedded.cluster_processes import cluster_processes
from service.embedded.opa import EmbeddedOpa
from service.embedded.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("run_both.py")


@contextmanager
def parent_of_both(
    *arguments: object, python: Path = Path(sys.executable), packages: str = "", account: Account | None = None
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(python), str(SCRIPT), *map(str, arguments)],
        env={"PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def answer_of(process: subprocess.Popen[str]) -> Mapping[str, str | int]:
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    answer: dict[str, str | int] = json.loads(line)
    return answer


def wait_gone(descriptor: int, seconds: float) -> bool:
    """A pidfd becomes readable when its process has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_both_servers_die_with_a_killed_parent_and_what_was_committed_stays(
    loop: str, data_dir: Path, opa_binary: Path, bundle_dir: Path
) -> None:
    with parent_of_both(loop, data_dir, opa_binary, bundle_dir) as parent:
        answer = await answer_of(parent)
        servers = [os.pidfd_open(int(answer[name])) for name in ("postgres", "opa")]
        url = make_url(str(answer["dsn"]))
        connection = await asyncpg.connect(
            host=str(url.query["host"]), port=5432, user=url.username, database=url.database, ssl=False
        )
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        backend = os.pidfd_open(connection.get_server_pid())
        busy = asyncio.create_task(connection.execute("SELECT 1 FROM generate_series(1, 1e15)"))
        await asyncio.sleep(0)
        parent.send_signal(signal.SIGKILL)
        for descriptor in (*servers, backend):
            assert await asyncio.to_thread(wait_gone, descriptor, 8.0)
            os.close(descriptor)
        with pytest.raises((asyncpg.exceptions.PostgresError, OSError)):
            await busy
    async with asyncio.timeout(5):
        while cluster_processes(data_dir / "postgres").others:  # the log's collector goes last
            await asyncio.sleep(0.01)
    assert not cluster_processes(data_dir / "postgres").postmasters

    postgres = EmbeddedPostgres(data_dir, progress=print)
    await postgres.start()
    opa = EmbeddedOpa(opa_binary, data_dir, bundle_path=bundle_dir)
    await opa.start()
    connection = await asyncpg.connect(
        host=str(url.query["host"]), port=5432, user=url.username, database=url.database, ssl=False
    )
    assert await connection.fetchval("SELECT n FROM kept") == 7
    await connection.close()
    assert len(list((data_dir / "opa").glob("run-*"))) == 1
    await opa.stop()
    await postgres.stop()


async def test_a_start_right_after_the_parent_was_killed_waits_for_its_server_to_go(
    data_dir: Path, opa_binary: Path, bundle_dir: Path
) -> None:
    with parent_of_both("asyncio", data_dir, opa_binary, bundle_dir) as parent:
        await answer_of(parent)
        parent.send_signal(signal.SIGKILL)
        await asyncio.to_thread(parent.wait)
        postgres = EmbeddedPostgres(data_dir, progress=print)
        await postgres.start()
        await postgres.stop()


async def test_a_start_after_a_kill_during_initdb_begins_anew(
    data_dir: Path, opa_binary: Path, bundle_dir: Path
) -> None:
    with parent_of_both("asyncio", data_dir, opa_binary, bundle_dir) as parent:
        while not list(data_dir.glob("postgres.initdb-*/base/1")):
            assert parent.poll() is None
            await asyncio.sleep(0.001)
        parent.send_signal(signal.SIGKILL)
        await asyncio.to_thread(parent.wait)
        assert not (data_dir / "postgres").exists()
        postgres = EmbeddedPostgres(data_dir, progress=print)
        await postgres.start()
        assert not list(data_dir.glob("postgres.initdb-*"))
        await postgres.stop()


async def python_for(account: Account) -> tuple[Path, str]:
    """An interpreter that the account can run, with the packages; ours, or the system's of the same version."""
    packages = sysconfig.get_path("purelib")
    for path in (ROOT / "service" / "embedded" / "launch.py", SCRIPT, Path(packages) / "asyncpg" / "__init__.py"):
        if await first_inaccessible([(path, os.R_OK)], account) is not None:
            pytest.skip(f"user {account.name} cannot read {path}")
    for candidate in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        if await first_inaccessible([(Path(candidate), os.X_OK)], account) is None:
            return Path(candidate), packages
    pytest.skip(f"no Python {sys.version_info[0]}.{sys.version_info[1]} that user {account.name} can run")


@pytest.mark.skipif(os.geteuid() != 0, reason="all the other tests run as an ordinary user")
async def test_an_ordinary_user_runs_both_as_itself(opa_binary: Path, bundle_dir: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="remit-test-", dir="/tmp"))
    try:
        account = account_for(directory / "postgres")
        assert account is not None
        python, packages = await python_for(account)
        own_opa = Path(shutil.copy(opa_binary, directory / "opa-binary"))
        own_bundle = Path(shutil.copytree(bundle_dir, directory / "bundle"))
        for path in (directory, *directory.rglob("*")):
            os.chown(path, account.uid, account.gid)
        arguments = ("uvloop", directory, own_opa, own_bundle)
        with parent_of_both(*arguments, python=python, packages=packages, account=account) as parent:
            answer = await answer_of(parent)
            assert answer["uid"] == account.uid
            for name in ("postgres", "opa"):
                assert Path(f"/proc/{answer[name]}").stat().st_uid == account.uid
            assert parent.stdin is not None
            parent.stdin.close()
            assert await asyncio.to_thread(parent.wait, 10) == 0
            parent.stdin = None
        found = cluster_processes(directory / "postgres")
        assert (found.postmasters, found.others) == ((), ())
    finally:
        shutil.rmtree(directory)
