"""The dashboards and alerts on a running service, scraped by a real Prometheus while it works."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kernel.metrics import MAX_TENANT_LABELS, OTHER_TENANTS
from tests.conftest import Servers
from tests.kit import Kit, done
from tests.operations.conftest import POLL_S, ROOT, START_S, Prometheus, Service, free_port, running, scraping
from tests.operations.expressions import of_dashboards
from tests.operations.traffic import Traffic

pytestmark = pytest.mark.xdist_group("operations")

TRAFFIC_S = 16.0
SCRAPES = 3

# The wire contract: each name with its labels, and what was added to it for the panels.
CONTRACT = {
    "remit_decisions": {"tenant", "action", "surface", "outcome"},
    "remit_denials": {"tenant", "action", "surface", "reason"},
    "remit_decision_seconds": {"action"},
    "remit_surface_requests": {"tenant", "surface", "enabled"},
    "remit_spawned_runs": {"tenant", "surface"},
    "remit_run_transitions": {"tenant", "status"},
    "remit_runs_active": {"tenant", "status"},
    "remit_joins": {"tenant", "mode", "outcome"},
    "remit_cancellations": {"tenant", "reason"},
    "remit_cancel_fence_seconds": set(),
    "remit_cancel_drain_seconds": set(),
    "remit_cancelled_runs": {"tenant"},
    "remit_cancel_backlog_runs": set(),
    "remit_leases_expired": {"tenant"},
    "remit_policy_engine_up": set(),
    "remit_policy_bundle_info": {"revision"},
    "remit_http_request_seconds": {"method", "route", "status"},
    "remit_db_pool_in_use": set(),
    "remit_reconciler_last_run_seconds": {"loop"},
    "remit_reconciler_set_aside_rows": {"loop"},
    "remit_fenced_calls": {"tenant", "action"},
    "remit_leases_lost": {"tenant", "action"},
    "remit_policy_failures": {"cause"},
    "remit_policy_bundle_refused": set(),
    "remit_opa_bundle_age_seconds": {"opa"},
    "remit_opa_bundle_info": {"opa", "revision"},
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def test_every_expression_of_the_dashboards_says_something_of_a_service_at_work(
    service: Service, tmp_path: Path
) -> None:
    traffic = await Traffic.begin(service.api)

    async def fail_closed() -> None:
        """OPA stops for a moment: what is asked meanwhile gets no answer, and is refused."""
        service.opa.suspend()
        try:
            answer = await traffic.busy.spawn(traffic.root, "refused")
            assert answer.status_code == 503, answer.text
            await _until(service, "remit_policy_engine_up", 0)
        finally:
            service.opa.resume()
        await _until(service, "remit_policy_engine_up", 1)

    async with scraping(tmp_path, service.url.removeprefix("http://")) as prometheus:
        await traffic.run(TRAFFIC_S, halfway=fail_closed)
        silent = await _silent(prometheus)
        # A rate takes two scrapes of what has come last.
        for _ in range(SCRAPES):
            if silent:
                await asyncio.sleep(1)
                silent = await _silent(prometheus)
        assert silent == []
        broken = [rule for rule in await prometheus.rules() if rule["health"] == "err"]
        assert broken == []
        firing = await prometheus.ask('ALERTS{alertname=~"RemitOpaDown|RemitReconciler.*|RemitBundle.*"}')
        assert [alert["metric"] for alert in firing if alert["metric"]["alertstate"] == "firing"] == []


async def test_every_metric_of_the_contract_is_there_with_its_labels(service: Service) -> None:
    traffic = await Traffic.begin(service.api)
    for _ in range(2):
        await traffic.round()
    await traffic.turn_off()
    await traffic.be_flagged()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(await service.metrics()):
        for sample in family.samples:
            found.setdefault(family.name, set()).update(sample.labels.keys() - {"le"})
    ours = {name: labels for name, labels in found.items() if name.startswith("remit_")}
    assert ours == CONTRACT


async def test_what_a_fence_refuses_is_counted_by_tenant_and_action(service: Service) -> None:
    kit = await Kit.make(service.api)
    root, _ = await kit.team()
    api = kit.api.acting_with(root.token)
    await kit.spawn(root, "held")
    (held,) = (await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "wait_s": 5})).json()["runs"]
    group = (await kit.spawn_group(root, "g", 2)).json()["orchestration_group_id"]
    await api.post("/internal/orchestration/cancel-subtree", {"caller_run_id": root.run_id, "run_id": root.run_id})
    lease = {"run_id": held["run_id"], "lease": held["lease"]}
    stranger = {"run_id": held["run_id"], "lease": group}
    await kit.api.post("/work/heartbeat", {"leases": [lease], "extend_s": 30})
    await kit.api.post("/work/complete", {**lease, "status": "completed"})
    await kit.api.post("/work/heartbeat", {"leases": [stranger], "extend_s": 30})
    await kit.spawn(root, "late")
    await kit.spawn_group(root, "late", 2)
    judged = {"caller_run_id": root.run_id, "run_id": root.run_id}
    await api.post("/internal/orchestration/evaluate-and-replan", judged)
    await api.post(f"/agents/runs/{root.run_id}/status", {"status": "completed"})
    samples = await _samples(service)
    refused = {
        dict(labels)["action"]: value
        for (name, labels), value in samples.items()
        if name == "remit_fenced_calls_total" and dict(labels)["tenant"] == kit.slug
    }
    assert refused == {
        "heartbeat": 1,
        "complete_work": 1,
        "spawn_run": 1,
        "spawn_group": 1,
        "evaluate_and_replan": 1,
        "report_run": 1,
    }
    assert samples["remit_leases_lost_total", _labels(tenant=kit.slug, action="heartbeat")] == 1


async def test_a_call_counts_once_by_its_surface_and_flag(service: Service) -> None:
    kit = await Kit.make(service.api)
    root, _ = await kit.team()
    for key in ("a", "b"):
        await kit.spawn(root, key)
    flags = {"option_a_graphspec_v2": True, "option_b_runtime_primitives": False}
    await kit.admin.put(f"/tenants/{kit.tenant_id}/flags", flags)
    await kit.spawn(root, "c")
    # A look at a run is no use of a surface.
    for path in ("", "/tree"):
        done(await kit.api.get(f"/agents/runs/{root.run_id}{path}"))
    samples = await _samples(service)
    on = _labels(tenant=kit.slug, surface="option_b_runtime_primitives", enabled="true")
    off = _labels(tenant=kit.slug, surface="option_b_runtime_primitives", enabled="false")
    # The start of the root run, and two spawns.
    assert samples["remit_surface_requests_total", on] == 3
    assert samples["remit_surface_requests_total", off] == 1
    # What has not happened yet is there at 0: a series that began with its first event would hide it from rates.
    decided = {"tenant": kit.slug, "action": "start_run", "surface": "option_b_runtime_primitives"}
    for outcome, count in (("allow", 1), ("deny", 0), ("error", 0)):
        assert samples["remit_decisions_total", _labels(**decided, outcome=outcome)] == count
    assert samples["remit_run_transitions_total", _labels(tenant=kit.slug, status="running")] == 1
    assert samples["remit_run_transitions_total", _labels(tenant=kit.slug, status="queued")] == 2


async def test_labels_stay_bounded_whatever_clients_send(service: Service) -> None:
    for path in ("/no/such/path", "/another", "/agents/not-a-uuid"):
        await service.api.get(path)
    await service.api.call("PROPFIND", "/agents")
    samples = await _samples(service)
    routes = {dict(labels)["route"] for name, labels in samples if name == "remit_http_request_seconds_count"}
    methods = {dict(labels)["method"] for name, labels in samples if name == "remit_http_request_seconds_count"}
    assert "unmatched" in routes
    assert not {route for route in routes if "no/such" in route or "not-a-uuid" in route}
    assert methods <= {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "other"}
    tenants = {dict(labels)["tenant"] for _, labels in samples if "tenant" in dict(labels)}
    assert len(tenants - {OTHER_TENANTS}) <= MAX_TENANT_LABELS


async def test_a_scrape_is_answered_at_once_while_the_database_is_not(service: Service) -> None:
    servers = [
        process
        for process in psutil.Process(service.process.pid).children(recursive=True)
        if process.name() == "postgres"
    ]
    assert servers
    for process in servers:
        process.suspend()
    try:
        async with asyncio.timeout(2):
            for _ in range(10):
                assert "remit_runs_active" in await service.metrics()
    finally:
        for process in servers:
            with suppress(psutil.NoSuchProcess):
                process.resume()


async def test_a_process_of_loops_alone_serves_its_metrics(database_url: str, tmp_path: Path) -> None:
    async with without_api("reconcile", tmp_path, REMIT_DATABASE_URL=database_url) as (client, environment):
        loops: dict[str, float] = {}
        while len(loops) < 5 or not all(loops.values()):
            samples = await _when_it_answers(client)
            # It asks no policy, and says nothing of it.
            assert ("remit_policy_engine_up", _labels()) not in samples
            loops = {
                dict(labels)["loop"]: value
                for (name, labels), value in samples.items()
                if name == "remit_reconciler_last_run_seconds"
            }
        command = (sys.executable, "-m", "service.cli", "reconcile")
        second = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=PIPE)
        _, said = await second.communicate()
        assert second.returncode == 1
        assert "cannot be listened on" in said.decode()


async def test_a_worker_of_graphs_alone_serves_its_metrics(servers: Servers, database_url: str, tmp_path: Path) -> None:
    settings = {
        "REMIT_DATABASE_URL": database_url,
        "REMIT_OPA_URL": servers.opa_url,
        "REMIT_OPA_TOKEN": servers.opa_token,
        "REMIT_OPA_BINARY": str(servers.opa_binary),
    }
    async with without_api("work", tmp_path, **settings) as (client, _):
        # The gauge of another process cannot be awaited.
        while (await _when_it_answers(client))["remit_policy_engine_up", _labels()] != 1:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def without_api(
    command: str, data_dir: Path, **settings: str
) -> AsyncIterator[tuple[httpx2.AsyncClient, dict[str, str]]]:
    """A process with no API, on somebody else's servers: who asks for its metrics, and its environment."""
    port = free_port()
    more = {"REMIT_DATA_DIR": str(data_dir), "REMIT_METRICS_PORT": str(port), "REMIT_LOG_LEVEL": "error"}
    environment = {**os.environ, **settings, **more}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.cli", command, cwd=ROOT, env=environment
    )
    try:
        async with (
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
            asyncio.timeout(START_S),
        ):
            yield client, environment
    finally:
        assert process.returncode is None, "the process has ended by itself; its output is above"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0


async def _when_it_answers(client: httpx2.AsyncClient) -> Samples:
    while True:
        with suppress(httpx2.TransportError):
            return _samples_of((await client.get("/metrics")).text)
        await asyncio.sleep(POLL_S)


async def test_totals_are_right_at_once_after_a_restart(opa_binary: Path, tmp_path: Path) -> None:
    async with running(tmp_path, opa_binary) as first:
        kit = await Kit.make(first.api)
        root, _ = await kit.team()
        await kit.spawn_group(root, "g", 5)
    async with running(tmp_path, opa_binary) as second:
        await _until(second, "remit_runs_active", 5, tenant=kit.slug, status="queued")
        await _until(second, "remit_policy_engine_up", 1)
        samples = await _samples(second)
        assert samples["remit_runs_active", _labels(tenant=kit.slug, status="running")] == 1
        assert samples["remit_cancel_backlog_runs", _labels()] == 0
        loops = {dict(labels)["loop"] for name, labels in samples if name == "remit_reconciler_last_run_seconds"}
        assert len(loops) >= 5


def _labels(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


async def _samples(service: Service) -> Samples:
    return _samples_of(await service.metrics())


def _samples_of(text: str) -> Samples:
    return dict(_each(text))


def _each(text: str) -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("remit_"):
                yield (sample.name, frozenset(sample.labels.items())), sample.value


async def _silent(prometheus: Prometheus) -> list[str]:
    """The expressions of the dashboards that have no value now."""
    answers = await asyncio.gather(*(prometheus.ask(expression.text) for expression in of_dashboards()))
    return [
        f"{expression.where}: {expression.text}"
        for expression, answer in zip(of_dashboards(), answers, strict=True)
        if not answer or all(series["value"][1] == "NaN" for series in answer)
    ]


async def _until(service: Service, name: str, value: float, **labels: str) -> None:
    """Gauges are refreshed each second, by a process that cannot be awaited."""
    async with asyncio.timeout(15):
        while (await _samples(service)).get((name, _labels(**labels))) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
