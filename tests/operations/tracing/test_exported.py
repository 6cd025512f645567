"""Processes without an API send their spans to a collector, as `REMIT_TRACING` says."""

import asyncio
import os
import secrets
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import Servers
from tests.graphs import ended, graph, graph_agent
from tests.kit import Kit, done

ROOT = Path(__file__).parents[3]
Sent = list[tuple[str, str]]
"""Spans by the id of their trace and their name."""


@contextmanager
def collecting() -> Iterator[tuple[str, Sent]]:
    """A collector of OpenTelemetry's, as far as it takes what it is sent."""
    sent: Sent = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    sent.extend((span.trace_id.hex(), span.name) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_said: object) -> None:
            """Nothing: the tests read what was sent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def process(command: str, directory: Path, collector: str, **settings: str) -> AsyncIterator[Process]:
    """A process of its own, which sends what it has at its end."""
    tracing = {"REMIT_TRACING": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    environment = {**os.environ, **settings, **tracing, "REMIT_DATA_DIR": str(directory), "REMIT_LOG_LEVEL": "error"}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.cli", command, cwd=ROOT, env=environment
    )
    try:
        yield started
    finally:
        assert started.returncode is None, "it has ended by itself; its output is above"
        started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), 20) == 0


@pytest.mark.timeout(180)
async def test_a_worker_and_a_reconciler_send_their_spans(
    kit: Kit, servers: Servers, database_url: str, tmp_path: Path
) -> None:
    trace_id = secrets.token_hex(16)
    opa = {"REMIT_OPA_URL": servers.opa_url, "REMIT_OPA_TOKEN": servers.opa_token}
    given = {"REMIT_DATABASE_URL": database_url, "REMIT_OPA_BINARY": str(servers.opa_binary)}
    with collecting() as (url, sent):
        async with (
            process("work", tmp_path / "worker", url, **given, **opa),
            process("reconcile", tmp_path / "reconciler", url, **given),
        ):
            agent_id = await graph_agent(kit, graph([], "start -> end"), may_spawn=())
            header = f"00-{trace_id}-{secrets.token_hex(8)}-01"
            started = await kit.api.post(
                f"/agents/{agent_id}/runs", {"requested_scopes": ["agents.execute", "read"]}, traceparent=header
            )
            assert (await ended(kit, done(started)["run_id"], within_s=90))["status"] == "completed"
            root, _ = await kit.team(max_fanout=200, max_children_total=200)
            done(await kit.spawn_group(root, "many", 150))
            cancel = {"caller_run_id": root.run_id, "run_id": root.run_id, "wait_s": 30}
            answer = done(await kit.api.post("/internal/orchestration/cancel-subtree", cancel))
            assert answer["state"] == "drained"
    assert (trace_id, "graph") in sent
    assert (trace_id, "transaction") in sent
    assert "loop drain_cancellations" in {name for _, name in sent}
