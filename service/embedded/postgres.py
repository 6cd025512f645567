"""A PostgreSQL server of Remit's own, in its data directory, as its child."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import structlog
from sqlalchemy import URL

from service.embedded.accounts import Account, account_for
from service.embedded.children import Child, tail
from service.embedded.cluster_processes import cluster_processes, postmaster_file
from service.embedded.directory_lock import UNWRITABLE, DirectoryLock, make_private_directory, not_writable
from service.embedded.errors import (
    ClusterVersionError,
    DirectoryError,
    DirectoryInUseError,
    EmbeddedError,
    PostgresStartError,
)
from service.embedded.postgres_settings import UNALTERABLE, machine_of, render, settings_for
from service.embedded.postgres_software import PostgresSoftware, software_for
from service.embedded.supervision import Supervision

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_USER = "remit"
_DATABASE = "remit"
_PORT = 5432
_SOCKET = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), without its final NUL
# No locale of ours, no PG* variable of the user's; initdb needs a shell on PATH.
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}

# When this process dies, the server is to be gone at once and to leave nothing behind: SIGQUIT ("immediate") makes the
# postmaster end its children within 5 s, by SIGKILL at last; the WAL is replayed at the next start. SIGINT would first
# write a checkpoint of any length, SIGTERM wait for the clients, and SIGKILL leave busy backends running.
_DEATH_SIGNAL = signal.SIGQUIT
_STOP = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 2.0))

_STOPPING_WAIT_S = 15.0
_FOREIGN_WAIT_S = 3.0
_ORPHANS_WAIT_S = 30.0
_STRAGGLERS_WAIT_S = 0.5
_POLL_S = 0.05
_REMOVE_TRIES = 40
_PROGRESS_EVERY_S = 5.0

_POSTGRESQL_CONF = """\
# What Remit chooses for this machine, written anew at every start:
include 'remit.conf'
# Settings below this line are yours and win over Remit's.
"""
# The socket lies in this directory, which nobody else can enter: who can reach it is us.
_PG_HBA_CONF = "local all all trust\n"


class EmbeddedPostgres:
    """Starts, watches and stops one server. The directory is this process's alone while it runs."""

    def __init__(
        self,
        data_dir: Path,
        *,
        progress: Callable[[str], None] | None = None,
        max_connections: int = 100,
    ) -> None:
        """Prepare, without touching anything.

        Args:
            data_dir: Remit's data directory; the cluster is `postgres` in it.
            progress: told in words what takes a while; logged when not given.
            max_connections: how many connections the server accepts.
        """
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "postgres"
        self._output = self._data_dir / "postgres-start.log"
        self._progress = progress or _log_progress
        self._max_connections = max_connections
        self._lock = DirectoryLock(self._data_dir)
        self._supervision = Supervision("postgres", self._launch)
        self._account: Account | None = None
        self._software: PostgresSoftware | None = None
        self._runtime_dir: Path | None = None
        self._host = self._cluster

    @property
    def dsn(self) -> str:
        """The database as an SQLAlchemy URL for asyncpg; valid from `start` on, and over restarts of the server."""
        return URL.create(
            "postgresql+asyncpg",
            username=_USER,
            database=_DATABASE,
            query={"host": str(self._host), "port": str(_PORT)},
        ).render_as_string(hide_password=False)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, while one runs."""
        child = self._supervision.child
        return child.pid if child is not None and child.returncode is None else None

    @property
    def restarts(self) -> int:
        """How often the server has died and been brought back."""
        return self._supervision.restarts

    async def restarted(self, times: int) -> None:
        """Wait until the server has been brought back this many times in all."""
        await self._supervision.restarted(times)

    async def start(self) -> None:
        """Return once the server answers and the database exists; crash recovery may take as long as it takes.

        Raises:
            DirectoryInUseError: another process works in the directory.
            DirectoryError: it cannot be written, or is not a cluster, or belongs to somebody else.
            ClusterVersionError: it is of another major version.
            PostgresStartError: PostgreSQL or initdb ended; the message holds what it said.
            EmbeddedError: anything else, said in the message.
        """
        make_private_directory(self._data_dir)
        self._lock.acquire()
        try:
            await self._prepare()
            await self._supervision.start()
        except BaseException as error:
            self._release()
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise DirectoryError(not_writable(self._data_dir, error)) from error
            raise

    async def stop(self) -> None:
        """Stop the server: cleanly within five seconds, else to be recovered at the next start; eight at the most."""
        child = await self._supervision.stop()
        try:
            if child is not None:
                await self._end(child)
        finally:
            self._release()

    # ------------------------------------------------------------------ preparing

    async def _prepare(self) -> None:
        for leftover in list(self._data_dir.glob("postgres.initdb-*")):
            await _remove_unfinished(leftover)  # of an initdb that was killed; a finished one has been renamed
        with suppress(OSError):
            self._cluster.rmdir()  # an empty directory is as good as none
        if self._cluster.exists() and not self._cluster.is_dir():
            raise DirectoryError(f"{self._cluster} is not a directory. Move it away, or give another --data-dir.")
        self._account = account_for(self._cluster)
        self._software = await software_for(self._account, self._progress)
        if self._cluster.exists():
            self._check_version(self._software)
        else:
            await self._initialise(self._software)
        self._host = self._short_host()

    def _check_version(self, software: PostgresSoftware) -> None:
        try:
            found = (self._cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise DirectoryError(
                f"{self._cluster} is neither empty nor a PostgreSQL cluster. Move it away, or give another --data-dir."
            ) from None
        if found != software.major:
            raise ClusterVersionError(
                f"{self._cluster} was made by PostgreSQL {found}, and this Remit brings PostgreSQL {software.release}. "
                f"Dump it with a PostgreSQL {found} (pg_dump) and load it into a new data directory, "
                f"or go back to the Remit that made it."
            )

    async def _initialise(self, software: PostgresSoftware) -> None:
        self._progress(f"Creating a PostgreSQL {software.release} cluster in {self._cluster}")
        unfinished = Path(tempfile.mkdtemp(prefix="postgres.initdb-", dir=self._data_dir))
        try:
            if self._account is not None:
                os.chown(unfinished, self._account.uid, self._account.gid)
            await self._run_initdb(software, unfinished)
            self._write(unfinished / "postgresql.conf", _POSTGRESQL_CONF)
            self._write(unfinished / "pg_hba.conf", _PG_HBA_CONF)
            os.rename(unfinished, self._cluster)  # noqa: PTH104 - one instant, nothing to await
            _sync(self._data_dir)
        except BaseException:
            await _remove_unfinished(unfinished)
            raise

    async def _run_initdb(self, software: PostgresSoftware, directory: Path) -> None:
        child = await Child.start(
            [
                software.initdb,
                *("-D", "{directory}" if self._account else directory),
                *("--username", _USER),
                *("--encoding", "UTF8"),
                # The same order of strings on every machine, whatever its C library.
                *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
                *("--auth", "trust", "--no-instructions"),
            ],
            environment=_ENVIRONMENT,
            death_signal=signal.SIGKILL,
            output=self._data_dir / "initdb.log",
            account=self._account,
            directory=directory if self._account else None,
        )
        try:
            status = await child.wait()
        except BaseException:
            await child.stop()
            raise
        if status != 0:
            raise PostgresStartError(
                f"initdb could not create a cluster in {self._data_dir} (exit status {status}):\n{child.last_output()}"
            )

    def _write(self, path: Path, text: str) -> None:
        """Write a file of the cluster, by rename: its directory is not ours, so no name in it may be followed."""
        descriptor, name = tempfile.mkstemp(prefix=".remit-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            if self._account is not None:
                os.fchown(descriptor, self._account.uid, self._account.gid)
            file.flush()
            os.fsync(descriptor)
        Path(name).rename(path)

    def _short_host(self) -> Path:
        """Return a directory in which clients find the socket by a path short enough for one."""
        marker = self._data_dir / "runtime-dir"
        with suppress(FileNotFoundError):
            _remove_runtime_dir(Path(marker.read_text()), self._cluster)  # of a process that was killed
            marker.unlink()
        if len(os.fsencode(self._cluster / _SOCKET)) <= _SOCKET_PATH_BYTES:
            return self._cluster
        candidates = sorted({tempfile.gettempdir(), "/tmp"}, key=len)  # noqa: S108 - mkdtemp makes a private one in it
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="remit-", dir=candidates[0]))
        marker.write_text(str(self._runtime_dir))
        link = self._runtime_dir / "pg"
        link.symlink_to(self._cluster)
        return link

    def _release(self) -> None:
        if self._runtime_dir is not None:
            _remove_runtime_dir(self._runtime_dir, self._cluster)
            (self._data_dir / "runtime-dir").unlink(missing_ok=True)
            self._runtime_dir = None
        self._lock.release()

    # ------------------------------------------------------------------ running

    async def _launch(self) -> Child:
        """Start the server and wait until it answers; whatever an earlier one left behind is waited for and cleared."""
        assert self._software is not None
        deadline = time.monotonic() + _ORPHANS_WAIT_S
        while True:
            await self._clear_remains()
            self._write(
                self._cluster / "remit.conf",
                render(settings_for(machine_of(self._data_dir), self._max_connections)),
            )
            child = await Child.start(
                [
                    self._software.postgres,
                    *("-D", "{directory}" if self._account else self._cluster),
                    *(word for name, value in UNALTERABLE.items() for word in ("-c", f"{name}={value}")),
                ],
                environment=_ENVIRONMENT,
                death_signal=_DEATH_SIGNAL,
                output=self._output,
                account=self._account,
                directory=self._cluster if self._account else None,
            )
            try:
                if await self._answers(child):
                    return child
            except BaseException:
                await self._end(child)
                raise
            # lc_messages is C, so the words are these.
            if "is still in use" in child.last_output() and time.monotonic() < deadline:
                self._progress(f"Waiting for processes of an earlier server to let go of {self._cluster}")
                await asyncio.sleep(10 * _POLL_S)
                continue
            raise PostgresStartError(
                f"PostgreSQL did not start in {self._cluster} (exit status {child.returncode}):\n"
                f"{child.last_output()}\n{self._last_log()}"
            )

    async def _answers(self, child: Child) -> bool:
        """Wait until the server takes connections, for as long as it lives; False when it has ended."""
        ended = asyncio.create_task(child.wait())
        began = told = time.monotonic()
        try:
            while not ended.done():
                try:
                    async with self._connection("postgres") as connection:
                        await _create_database(connection)
                except (asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError, OSError):
                    pass  # no socket yet, or recovering from a crash
                except asyncpg.TooManyConnectionsError:
                    return True  # back again after a crash, and its clients were quicker
                else:
                    return True
                if time.monotonic() - told >= _PROGRESS_EVERY_S:
                    told = time.monotonic()
                    self._progress(self._starting(told - began))
                await asyncio.wait([ended], timeout=_POLL_S)
            return False
        finally:
            ended.cancel()

    def _starting(self, seconds: float) -> str:
        line = self._last_log().rpartition("\n")[2]
        return f"PostgreSQL is starting, {seconds:.0f} s so far; it says: {line}"

    @asynccontextmanager
    async def _connection(self, database: str) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(
            host=str(self._host), port=_PORT, user=_USER, database=database, ssl=False, timeout=30
        )
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    def _last_log(self) -> str:
        logs = sorted((self._cluster / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        return tail(logs[-1]) if logs else ""

    async def _end(self, child: Child) -> None:
        """Stop the server and see its last processes go: the log's collector ends after the postmaster."""
        await child.stop(*_STOP)
        began = time.monotonic()
        while others := cluster_processes(self._cluster).others:
            waited = time.monotonic() - began
            if waited >= 2 * _STRAGGLERS_WAIT_S:
                log.error("embedded_postgres_left_processes", pids=others, directory=str(self._cluster))
                return
            if waited >= _STRAGGLERS_WAIT_S:
                for pid in others:
                    _signal(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_S)

    async def _clear_remains(self) -> None:
        """Wait for a dying server, end the orphans of a dead one, and remove what lock files it left.

        We hold the directory's lock, so a server here is no other Remit's: it is one whose Remit has just died, or one
        that somebody started by hand, which is left alone.
        """
        began = time.monotonic()
        signals = [(20.0, signal.SIGKILL), (5.0, signal.SIGKILL), (1.0, signal.SIGQUIT)]
        while True:
            found = cluster_processes(self._cluster)
            waited = time.monotonic() - began
            if found.postmasters:
                _, status = postmaster_file(self._cluster)
                if waited >= (_STOPPING_WAIT_S if status == "stopping" else _FOREIGN_WAIT_S):
                    raise DirectoryInUseError(self._cluster, found.postmasters[0])
            elif not found.others:
                break
            elif waited >= _ORPHANS_WAIT_S:
                raise EmbeddedError(
                    f"Processes {', '.join(map(str, found.others))} of an earlier PostgreSQL still work in "
                    f"{self._cluster} and do not end. End them (kill -9), then start again."
                )
            elif waited >= signals[-1][0]:
                _, number = signals.pop() if len(signals) > 1 else signals[0]
                for pid in found.others:
                    _signal(pid, number)
            await asyncio.sleep(_POLL_S)
        self._remove_stale_lock_files()

    def _remove_stale_lock_files(self) -> None:
        """Remove lock files that PostgreSQL would believe: empty ones, and those whose process id is another's now.

        After a restart of a container the same small ids are given out again. A file whose process is gone PostgreSQL
        deals with itself, and checks its shared memory while it does.
        """
        for name in ("postmaster.pid", f"{_SOCKET}.lock"):
            path = self._cluster / name
            with suppress(FileNotFoundError):
                text = path.read_text().partition("\n")[0].strip().lstrip("-")
                if not text.isdecimal() or Path(f"/proc/{text}").exists():
                    path.unlink()


async def _create_database(connection: asyncpg.Connection) -> None:
    if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", _DATABASE):
        await connection.execute(f"CREATE DATABASE {_DATABASE}")


async def _remove_unfinished(directory: Path) -> None:
    """Remove what an initdb left, with the server that it had started to fill it."""
    for attempt in range(_REMOVE_TRIES):
        found = cluster_processes(directory)
        for pid in (*found.postmasters, *found.others):
            _signal(pid, signal.SIGKILL)
        try:
            shutil.rmtree(directory)
        except OSError:
            if attempt == _REMOVE_TRIES - 1:  # two seconds have gone by: it is no process that is in the way
                raise
            await asyncio.sleep(_POLL_S)
        else:
            return


def _remove_runtime_dir(directory: Path, cluster: Path) -> None:
    """Remove it only if it is what we made: it leads to this cluster."""
    link = directory / "pg"
    with suppress(OSError):
        if link.readlink() == cluster:
            link.unlink()
            directory.rmdir()


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log_progress(line: str) -> None:
    log.info("embedded_postgres", progress=line)
