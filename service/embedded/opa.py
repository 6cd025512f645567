"""An OPA server of Remit's own, as its child."""

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import structlog

from service.embedded.children import Child
from service.embedded.directory_lock import DirectoryLock, make_private_directory, not_writable
from service.embedded.errors import DirectoryError, DirectoryInUseError, OpaStartError
from service.embedded.opa_binary import OPA_VERSION, find_or_build_opa
from service.embedded.supervision import Supervision

__all__ = ["ENVIRONMENT", "OPA_VERSION", "BundleService", "EmbeddedOpa", "find_or_build_opa"]

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_AUTHZ = Path(__file__).with_name("authz.rego")
_BUNDLE = "orchestration"
_SERVICE = "remit"
_STOP = ((signal.SIGTERM, 3.0),)
_START_TIMEOUT_S = 30.0
_POLL_S = 0.02
_PORT_TRIES = 10
_LOG_BYTES = 16 * 1024 * 1024
ENVIRONMENT = {"GOGC": "800", "GOMEMLIMIT": "256MiB"}
"""All of OPA's environment. A decision leaves garbage and next to nothing that lives, so collecting it rarely saves a
third of OPA's CPU; the limit, which is soft, has it collected more often before memory could be missed elsewhere."""


@dataclass(frozen=True, kw_only=True)
class BundleService:
    """Where OPA gets its bundle, and whom it tells of it.

    With the defaults OPA asks `GET {url}/bundles/orchestration.tar.gz` and posts to `{url}/status/embedded`.
    """

    url: str
    token: str = field(repr=False)
    public_key_pem: str
    resource: str = "bundles/orchestration.tar.gz"
    partition: str = "embedded"
    key_id: str = "remit-bundles"
    scope: str | None = None
    min_delay_s: int = 1
    max_delay_s: int = 3
    long_polling_s: int | None = 30
    """How long the service may hold an answer back while nothing is new; None to poll at the delays."""

    def configuration(self) -> dict[str, object]:
        """Return OPA's configuration for it."""
        polling: dict[str, int] = {"min_delay_seconds": self.min_delay_s, "max_delay_seconds": self.max_delay_s}
        if self.long_polling_s is not None:
            polling["long_polling_timeout_seconds"] = self.long_polling_s
        signing = {"keyid": self.key_id} | ({"scope": self.scope} if self.scope else {})
        return {
            "services": {_SERVICE: {"url": self.url, "credentials": {"bearer": {"token": self.token}}}},
            "keys": {self.key_id: {"algorithm": "ES256", "key": self.public_key_pem}},
            "bundles": {
                _BUNDLE: {"service": _SERVICE, "resource": self.resource, "polling": polling, "signing": signing}
            },
            "status": {"service": _SERVICE, "partition_name": self.partition},
        }


class EmbeddedOpa:
    """Starts, watches and stops one OPA on loopback, which answers to one token and does nothing but decide."""

    def __init__(
        self,
        binary: Path,
        data_dir: Path,
        *,
        bundle_service: BundleService | None = None,
        bundle_path: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare, without touching anything.

        Args:
            binary: what `find_or_build_opa` returned.
            data_dir: Remit's data directory; `opa` in it holds the log and, while OPA runs, its configuration.
            bundle_service: the service that OPA pulls its bundle from.
            bundle_path: or a bundle (directory or archive) that it reads, unsigned, from disk. Exactly one of the two.
            progress: told in words what goes on; logged when not given.
        """
        if (bundle_service is None) == (bundle_path is None):
            raise ValueError("exactly one of bundle_service and bundle_path is needed")
        self._binary = binary
        self._directory = data_dir.absolute() / "opa"
        self._bundle_service = bundle_service
        self._bundle_path = bundle_path
        self._progress = progress or _log_progress
        self._token = secrets.token_urlsafe(32)
        self._port: int | None = None
        self._run_dir: Path | None = None
        self._run_lock: DirectoryLock | None = None
        self._supervision = Supervision("opa", self._launch)

    @property
    def url(self) -> str:
        """Where it listens; the same over restarts of the server."""
        if self._port is None:
            raise RuntimeError("OPA has not been started")
        return f"http://127.0.0.1:{self._port}"

    @property
    def token(self) -> str:
        """The bearer token of this start; the same over restarts of the server."""
        return self._token

    @property
    def log_path(self) -> Path:
        """The file that OPA logs to."""
        return self._directory / "opa.log"

    @property
    def pid(self) -> int | None:
        """The process id, while it runs."""
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
        """Return once OPA answers. A bundle on disk is active by then; one of the service may still be on its way.

        Raises:
            DirectoryError: the data directory cannot be written.
            OpaStartError: OPA ended or did not answer; the message holds what it said.
        """
        make_private_directory(self._directory)
        try:
            self._token = secrets.token_urlsafe(32)
            self._make_run_dir()
            await self._supervision.start()
        except BaseException as error:
            self._remove_run_dir()
            if isinstance(error, OSError):
                raise DirectoryError(not_writable(self._directory, error)) from error
            raise

    async def stop(self) -> None:
        """Stop OPA; takes a few seconds at the most."""
        child = await self._supervision.stop()
        try:
            if child is not None:
                await child.stop(*_STOP)
        finally:
            self._remove_run_dir()

    # ------------------------------------------------------------------ its files

    def _make_run_dir(self) -> None:
        """Make a directory for this start alone, and remove those whose process is gone: they hold secrets."""
        for leftover in self._directory.glob("run-*"):
            lock = DirectoryLock(leftover)
            with suppress(DirectoryInUseError, DirectoryError):
                lock.acquire()
                shutil.rmtree(leftover, ignore_errors=True)
                lock.release()
        self._run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=self._directory))
        self._run_lock = DirectoryLock(self._run_dir)
        self._run_lock.acquire()
        digest = hashlib.sha256(self._token.encode()).hexdigest()
        _write_private(self._run_dir / "authz.rego", _AUTHZ.read_text())
        _write_private(
            self._run_dir / "credentials.json", json.dumps({"system": {"credentials": {"token_sha256": digest}}})
        )
        _write_private(self._run_dir / "config.json", json.dumps(self._configuration()))

    def _configuration(self) -> Mapping[str, object]:
        if self._bundle_service is not None:
            return self._bundle_service.configuration()
        assert self._bundle_path is not None
        return {
            "bundles": {_BUNDLE: {"resource": f"file://{self._bundle_path.absolute()}"}},
            "status": {"prometheus": True},  # without a receiver; /v1/status answers nevertheless
        }

    def _remove_run_dir(self) -> None:
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        if self._run_lock is not None:
            self._run_lock.release()
            self._run_lock = None

    # ------------------------------------------------------------------ running

    async def _launch(self) -> Child:
        """Start OPA on its port, and on the first start on another one when somebody else was quicker."""
        first = self._supervision.child is None
        tries = _PORT_TRIES if first else 1
        while True:
            tries -= 1
            if first:
                self._port = _free_port()
            child = await self._start_child()
            try:
                if await self._answers(child):
                    return child
            except BaseException:
                await child.stop()
                raise
            if tries == 0 or "address already in use" not in child.last_output():
                raise OpaStartError(
                    f"OPA did not start (exit status {child.returncode}); {self.log_path} ends:\n{child.last_output()}"
                )

    async def _start_child(self) -> Child:
        assert self._run_dir is not None
        with suppress(FileNotFoundError):
            if self.log_path.stat().st_size > _LOG_BYTES:
                self.log_path.rename(self.log_path.with_suffix(".log.1"))
        return await Child.start(
            [
                self._binary,
                *("run", "--server", "--addr", f"127.0.0.1:{self._port}"),
                *("--authentication", "token", "--authorization", "basic"),
                *("--config-file", self._run_dir / "config.json"),
                # The level at which requests are logged, not from which: debug keeps two lines a decision out.
                *("--log-format", "json", "--log-level", "info", "--log-level-request", "debug"),
                *("--skip-version-check", "--shutdown-grace-period", "2"),
                *(self._run_dir / "authz.rego", self._run_dir / "credentials.json"),
            ],
            environment=ENVIRONMENT,
            death_signal=signal.SIGKILL,
            output=self.log_path,
            append=True,
        )

    async def _answers(self, child: Child) -> bool:
        """Wait until OPA is healthy; False when it has ended."""
        # Only the bundle on disk is waited for: the one of the service may need the caller to start serving it.
        query = {"bundles": "true"} if self._bundle_path is not None else {}
        ended = asyncio.create_task(child.wait())
        answer = "nothing"
        try:
            async with (
                asyncio.timeout(_START_TIMEOUT_S),
                httpx2.AsyncClient(
                    base_url=self.url,
                    headers={"Authorization": f"Bearer {self._token}"},
                    trust_env=False,
                    timeout=5,
                    verify=ssl.SSLContext(
                        ssl.PROTOCOL_TLS_CLIENT
                    ),  # unused on loopback; spares reading all authorities
                ) as client,
            ):
                while not ended.done():
                    try:
                        response = await client.get("/health", params=query)
                    except httpx2.TransportError:
                        pass  # not listening yet
                    else:
                        if response.status_code == httpx2.codes.OK and not ended.done():
                            return True
                        answer = f"{response.status_code} {response.text}"
                    await asyncio.wait([ended], timeout=_POLL_S)
        except TimeoutError as error:
            raise OpaStartError(
                f"OPA was not ready within {_START_TIMEOUT_S:.0f} s (it answered {answer}); {self.log_path} ends:\n"
                f"{child.last_output()}"
            ) from error
        finally:
            ended.cancel()
        return False


def _free_port() -> int:
    """Find a free port below those given to outgoing connections, so that none of them takes it meanwhile."""
    first, last = 15_000, _ephemeral_start() - 1
    for _ in range(100):
        port = first + secrets.randbelow(max(1, last - first))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _log_progress(line: str) -> None:
    log.info("embedded_opa", progress=line)
