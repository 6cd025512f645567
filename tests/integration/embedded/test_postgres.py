# ruff: noqa: ASYNC110, ASYNC240 - other processes are waited for, and there is nothing else on this loop to block

import asyncio
import os
import re
import signal
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from service.embedded import postgres as postgres_module
from service.embedded.cluster_processes import cluster_processes
from service.embedded.errors import (
    ClusterVersionError,
    DirectoryError,
    DirectoryInUseError,
    PostgresStartError,
)
from service.embedded.postgres import EmbeddedPostgres


async def connect(server: EmbeddedPostgres) -> asyncpg.Connection:
    url = make_url(server.dsn)
    connection: asyncpg.Connection = await asyncpg.connect(
        host=str(url.query["host"]), port=5432, user=url.username, database=url.database, ssl=False
    )
    return connection


async def value(server: EmbeddedPostgres, query: str) -> object:
    connection = await connect(server)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_the_dsn_serves_sqlalchemy_and_durability_is_on(postgres: EmbeddedPostgres) -> None:
    engine = create_async_engine(postgres.dsn)
    async with engine.connect() as connection:
        for setting, expected in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "listen_addresses": "",
            "jit": "off",
            "server_encoding": "UTF8",
            "autovacuum_naptime": "5s",
            "log_lock_waits": "on",
        }.items():
            assert await connection.scalar(text(f"SHOW {setting}")) == expected
        assert await connection.scalar(text("SELECT datlocale FROM pg_database WHERE datname = 'remit'")) == "C.UTF-8"
    await engine.dispose()


async def test_nobody_else_can_reach_the_socket_and_there_is_no_tcp(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    cluster = data_dir / "postgres"
    assert cluster.stat().st_mode & 0o777 == 0o700
    assert (cluster / ".s.PGSQL.5432").is_socket()
    assert postgres.pid is not None
    sockets = {str(descriptor.readlink()) for descriptor in Path(f"/proc/{postgres.pid}/fd").iterdir()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in sockets


async def test_durability_cannot_be_switched_off_by_a_setting(postgres: EmbeddedPostgres) -> None:
    connection = await connect(postgres)
    await connection.execute("ALTER SYSTEM SET fsync = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    await postgres.stop()
    await postgres.start()
    assert await value(postgres, "SHOW fsync") == "on"


async def test_data_survive_a_stop_and_a_start(postgres: EmbeddedPostgres) -> None:
    await value(postgres, "CREATE TABLE kept AS SELECT 7 AS n")
    await postgres.stop()
    assert postgres.pid is None
    await postgres.start()
    assert await value(postgres, "SELECT n FROM kept") == 7


async def test_a_killed_postmaster_is_brought_back_with_its_data_though_a_backend_is_busy(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    dsn, pid = postgres.dsn, postgres.pid
    assert pid is not None
    await value(postgres, "CREATE TABLE kept AS SELECT 7 AS n")
    busy = await connect(postgres)
    backend = await busy.fetchval("SELECT pg_backend_pid()")
    endless = asyncio.create_task(busy.execute("DO $$ BEGIN LOOP END LOOP $$"))
    while await value(postgres, f"SELECT query FROM pg_stat_activity WHERE pid = {backend}") != (
        "DO $$ BEGIN LOOP END LOOP $$"
    ):
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        await postgres.restarted(1)
    with pytest.raises((asyncpg.exceptions.PostgresError, OSError)):
        await endless
    assert backend not in cluster_processes(data_dir / "postgres").others
    assert postgres.dsn == dsn
    assert postgres.restarts == 1
    assert await value(postgres, "SELECT n FROM kept") == 7


async def test_a_second_start_in_the_directory_is_refused_naming_process_and_directory(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    second = EmbeddedPostgres(data_dir)
    with pytest.raises(DirectoryInUseError, match=rf"{data_dir} is in use by process {os.getpid()}\b.*--data-dir"):
        await second.start()
    assert await value(postgres, "SELECT 1") == 1


async def test_a_server_started_by_somebody_else_is_left_alone_and_named(
    postgres: EmbeddedPostgres, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_FOREIGN_WAIT_S", 0.2)
    (data_dir / "lock").rename(data_dir / "lock.of-somebody-else")
    second = EmbeddedPostgres(data_dir)
    with pytest.raises(DirectoryInUseError, match=rf"{data_dir}/postgres is in use by process {postgres.pid}\b"):
        await second.start()
    assert await value(postgres, "SELECT 1") == 1


async def test_lock_files_with_a_process_id_that_is_another_process_now_do_not_prevent_a_start(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    cluster = data_dir / "postgres"
    pid_file = (cluster / "postmaster.pid").read_text()
    await postgres.stop()
    (cluster / "postmaster.pid").write_text(re.sub(r"^\d+", str(os.getpid()), pid_file))
    (cluster / ".s.PGSQL.5432.lock").write_text("")
    await postgres.start()
    assert await value(postgres, "SELECT 1") == 1


async def test_crash_recovery_is_waited_for_and_told_of(
    postgres: EmbeddedPostgres, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await value(postgres, "CREATE TABLE big AS SELECT n, repeat('x', 100) FROM generate_series(1, 200000) AS n")
    assert postgres.pid is not None
    told: list[str] = []
    monkeypatch.setattr(postgres_module, "_PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(postgres, "_progress", told.append)
    os.kill(postgres.pid, signal.SIGKILL)
    await postgres.restarted(1)
    assert any("PostgreSQL is starting" in line for line in told)
    assert await value(postgres, "SELECT count(*) FROM big") == 200_000


async def test_a_cluster_of_another_major_version_is_refused(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    await postgres.stop()
    version = data_dir / "postgres" / "PG_VERSION"
    version.write_text("16\n")
    with pytest.raises(ClusterVersionError, match=r"made by PostgreSQL 16.*brings PostgreSQL 18.*pg_dump"):
        await postgres.start()


async def test_a_directory_that_is_no_cluster_is_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    if os.geteuid() == 0:
        os.chown(data_dir / "postgres", 65534, 65534)
    (data_dir / "postgres" / "thesis.txt").write_text("precious")
    with pytest.raises(DirectoryError, match="neither empty nor a PostgreSQL cluster"):
        await EmbeddedPostgres(data_dir).start()
    assert (data_dir / "postgres" / "thesis.txt").read_text() == "precious"


async def test_a_data_directory_that_cannot_be_written_is_refused_with_advice(data_dir: Path) -> None:
    (data_dir / "file").touch()
    with pytest.raises(DirectoryError, match=r"Cannot write in .*file/remit.*--data-dir"):
        await EmbeddedPostgres(data_dir / "file" / "remit").start()


async def test_what_initdb_says_is_shown_and_nothing_is_left_of_it(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_USER", "pg_reserved")
    with pytest.raises(PostgresStartError, match="superuser name"):
        await EmbeddedPostgres(data_dir, progress=print).start()
    assert not list(data_dir.glob("postgres*"))


async def test_what_postgres_says_of_a_bad_setting_is_shown(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    await postgres.stop()
    with (data_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write("shared_buffers = 'plenty'\n")
    with pytest.raises(PostgresStartError, match="shared_buffers"):
        await postgres.start()


async def test_a_path_too_long_for_a_socket_works_and_leaves_no_directory_behind(data_dir: Path) -> None:
    long = data_dir / ("d" * 60) / ("e" * 60)
    server = EmbeddedPostgres(long, progress=print)
    await server.start()
    host = Path(str(make_url(server.dsn).query["host"]))
    assert host.resolve() == long / "postgres"
    assert await value(server, "SELECT 1") == 1
    await server.stop()
    assert not host.parent.exists()


async def test_stopping_takes_idle_and_busy_clients_along_and_leaves_no_process(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    idle, busy = await connect(postgres), await connect(postgres)
    backend = busy.get_server_pid()
    sleeping = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
    while await idle.fetchval("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", backend) != "PgSleep":
        await asyncio.sleep(0.01)
    async with asyncio.timeout(8):
        await postgres.stop()
    with pytest.raises((asyncpg.exceptions.PostgresError, OSError)):
        await sleeping
    found = cluster_processes(data_dir / "postgres")
    assert (found.postmasters, found.others) == ((), ())
    idle.terminate()


async def test_a_cancelled_start_leaves_no_process_and_no_lock(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, progress=print)
    starting = asyncio.create_task(server.start())
    while not list(data_dir.glob("postgres.initdb-*")):
        await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not list(data_dir.glob("postgres.initdb-*"))
    await server.start()
    await server.stop()
