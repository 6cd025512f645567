# ruff: noqa: ASYNC240 - other processes are waited for, and there is nothing else on this loop to block

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from service.embedded import opa as opa_module
from service.embedded.errors import OpaStartError
from service.embedded.opa import BundleService, EmbeddedOpa

DECISION = "/v1/data/orchestration/main/decision"


@asynccontextmanager
async def client_of(opa: EmbeddedOpa, token: str | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {opa.token if token is None else token}"}
    if token == "":
        headers = {}
    async with httpx2.AsyncClient(
        base_url=opa.url, headers=headers, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ) as client:
        yield client


async def test_it_decides_and_tells_how_it_is_to_who_has_the_token(opa: EmbeddedOpa) -> None:
    async with client_of(opa) as client:
        answer = await client.post(DECISION, json={"input": {"x": 1}}, params={"provenance": "true"})
        assert answer.json()["result"] == {"allow": True}
        assert answer.json()["provenance"]["bundles"]["orchestration"]["revision"] == "r1"
        assert (await client.get("/health", params={"bundles": "true"})).status_code == 200
        status = (await client.get("/v1/status")).json()
        assert status["result"]["bundles"]["orchestration"]["active_revision"] == "r1"


@pytest.mark.parametrize("token", ["", "guess"])
@pytest.mark.parametrize(("method", "path"), [("POST", DECISION), ("GET", "/health"), ("GET", "/v1/status")])
async def test_without_the_token_nothing_is_answered(opa: EmbeddedOpa, token: str, method: str, path: str) -> None:
    async with client_of(opa, token) as client:
        assert (await client.request(method, path)).status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/policies/mine"),
        ("GET", "/v1/policies"),
        ("DELETE", "/v1/policies/orchestration"),
        ("PUT", "/v1/data/system"),
        ("PATCH", "/v1/data/orchestration"),
        ("POST", "/v1/data"),
        ("POST", "/v1/data/system/credentials"),
        ("POST", "/v1/data/orchestration/main"),
        ("POST", f"{DECISION}/allow"),
        ("POST", "/v1/query"),
        ("GET", "/v1/query"),
        ("POST", "/v1/compile"),
        ("GET", "/v1/config"),
        ("GET", "/metrics"),
        ("POST", "/"),
        ("GET", DECISION),
    ],
)
async def test_nothing_else_is_permitted_even_with_the_token(opa: EmbeddedOpa, method: str, path: str) -> None:
    async with client_of(opa) as client:
        answer = await client.request(method, path, json={"query": "x = 1", "input": {}})
        assert answer.status_code in {401, 403}


async def test_its_environment_is_two_settings_of_its_memory_and_its_command_line_holds_no_secret(
    opa: EmbeddedOpa,
) -> None:
    process = Path(f"/proc/{opa.pid}")
    environment = (process / "environ").read_text().rstrip("\0").split("\0")
    assert sorted(environment) == ["GOGC=800", "GOMEMLIMIT=256MiB"]
    command = (process / "cmdline").read_text()
    assert opa.token not in command
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()]
    assert f"0100007F:{int(opa.url.rpartition(':')[2]):04X}" in listening


async def test_its_files_are_private_and_gone_when_it_stops(opa: EmbeddedOpa, data_dir: Path) -> None:
    (run_dir,) = (data_dir / "opa").glob("run-*")
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in run_dir.iterdir()} == {0o600}
    assert not any(opa.token in path.read_text() for path in run_dir.iterdir())
    await opa.stop()
    assert not run_dir.exists()


async def test_what_a_killed_start_left_behind_is_removed_and_what_is_in_use_is_not(
    opa: EmbeddedOpa, opa_binary: Path, data_dir: Path, bundle_dir: Path
) -> None:
    (in_use,) = (data_dir / "opa").glob("run-*")
    abandoned = data_dir / "opa" / "run-abandoned"
    abandoned.mkdir()
    second = EmbeddedOpa(opa_binary, data_dir, bundle_path=bundle_dir)
    await second.start()
    assert in_use.exists()
    assert not abandoned.exists()
    assert second.url != opa.url
    await second.stop()


async def test_killed_it_is_brought_back_with_the_same_address_and_token(opa: EmbeddedOpa) -> None:
    url, token, pid = opa.url, opa.token, opa.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await opa.restarted(1)
    assert (opa.url, opa.token, opa.restarts) == (url, token, 1)
    assert opa.pid not in {pid, None}
    async with client_of(opa) as client:
        assert (await client.post(DECISION, json={"input": {"x": 1}})).json()["result"] == {"allow": True}


async def test_decisions_are_not_logged_one_by_one(opa: EmbeddedOpa) -> None:
    async with client_of(opa) as client:
        await client.post(DECISION, json={"input": {"x": 1}})
    logged = opa.log_path.read_text()
    assert "Initializing server" in logged
    assert "decision" not in logged


async def test_a_port_taken_meanwhile_is_given_up_for_another(
    opa: EmbeddedOpa, opa_binary: Path, data_dir: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(opa.url.rpartition(":")[2])
    free = opa_module._free_port()
    offered = iter([taken, free])
    monkeypatch.setattr(opa_module, "_free_port", lambda: next(offered))
    second = EmbeddedOpa(opa_binary, data_dir, bundle_path=bundle_dir)
    await second.start()
    assert second.url == f"http://127.0.0.1:{free}"
    await second.stop()


async def test_a_bundle_that_does_not_compile_is_told_of_by_what_opa_says(
    opa_binary: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opa_module, "_START_TIMEOUT_S", 1.0)
    (tmp_path / "broken.rego").write_text("package orchestration.main\n\ndecision := missing_function(1)\n")
    with pytest.raises(OpaStartError, match="missing_function"):
        await EmbeddedOpa(opa_binary, data_dir, bundle_path=tmp_path).start()


class Service:
    """The few lines of HTTP that OPA needs of a bundle service."""

    def __init__(self, bundle: bytes, token: str) -> None:
        self.statuses: asyncio.Queue[dict[str, dict[str, dict[str, str]]]] = asyncio.Queue()
        self._bundle = bundle
        self._token = token

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                headers = dict(line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = head.split(" http/", 1)[0]
                if headers.get("authorization") != f"bearer {self._token}":
                    status, content = "401 Unauthorized", b""
                elif request == "get /policies/bundles/orchestration.tar.gz":
                    status, content = (
                        ("304 Not Modified", b"") if "if-none-match" in headers else ("200 OK", self._bundle)
                    )
                elif request == "post /policies/status/embedded":
                    self.statuses.put_nowait(json.loads(body))
                    status, content = "200 OK", b""
                else:
                    status, content = "404 Not Found", b""
                writer.write(
                    f"HTTP/1.1 {status}\r\nETag: one\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def status_after_pull(opa_binary: Path, data_dir: Path, bundle_dir: Path, *, right_key: bool) -> dict[str, str]:
    """Let OPA start before its bundle service does, and return the first status about the bundle once there is one."""
    signing, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key = data_dir / "key.pem"
    key.write_bytes(signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    archive = data_dir / "bundle.tar.gz"
    build = await asyncio.create_subprocess_exec(
        *(opa_binary, "build", "-b", bundle_dir, "--signing-alg", "ES256", "--signing-key", key, "-o", archive)
    )
    assert await build.wait() == 0
    public = (signing if right_key else other).public_key()
    port = opa_module._free_port()
    opa = EmbeddedOpa(
        opa_binary,
        data_dir,
        bundle_service=BundleService(
            url=f"http://127.0.0.1:{port}/policies",
            token="service-token",
            public_key_pem=public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            max_delay_s=1,
            long_polling_s=None,
        ),
    )
    await opa.start()
    try:
        async with client_of(opa) as client:
            assert (await client.post(DECISION, json={"input": {"x": 1}})).json().get("result") is None
            service = Service(archive.read_bytes(), "service-token")
            server = await asyncio.start_server(service.serve, "127.0.0.1", port)
            try:
                async with asyncio.timeout(20):
                    while True:
                        report = (await service.statuses.get()).get("bundles", {}).get("orchestration", {})
                        if report.get("active_revision") or "signature" in report.get("message", ""):
                            break
                answer = await client.post(DECISION, json={"input": {"x": 1}})
                report["decided"] = json.dumps(answer.json().get("result"))
            finally:
                server.close()
    finally:
        await opa.stop()
    return report


async def test_it_pulls_a_signed_bundle_once_the_service_is_there_and_reports_it(
    opa_binary: Path, data_dir: Path, bundle_dir: Path
) -> None:
    report = await status_after_pull(opa_binary, data_dir, bundle_dir, right_key=True)
    assert report["active_revision"] == "r1"
    assert json.loads(report["decided"]) == {"allow": True}


async def test_a_bundle_signed_by_another_key_is_not_activated(
    opa_binary: Path, data_dir: Path, bundle_dir: Path
) -> None:
    report = await status_after_pull(opa_binary, data_dir, bundle_dir, right_key=False)
    assert not report.get("active_revision")
    assert report["decided"] == "null"
