"""A trace shows what became of a request, and of the whole tree of runs that came of it."""

import asyncio
import secrets
import subprocess
import sys

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.dependencies import Services
from service.graph_worker import working
from tests.graphs import Definition, ended, graph, graph_agent, node, play
from tests.kit import Kit, Run, done


def trace_of(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}"


def span_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def of_trace(spans: InMemorySpanExporter, trace_id: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if trace_of(span) == trace_id]


def named(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def a_traceparent() -> tuple[str, str]:
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-01"


async def test_a_spawn_is_one_trace_from_the_request_over_the_decision_to_the_transaction(
    traced: Kit, spans: InMemorySpanExporter
) -> None:
    root, _ = await traced.team()
    response = await traced.spawn(root, "one")
    found = of_trace(spans, response.headers["X-Trace-ID"])
    request = named(found, "POST /internal/orchestration/spawn-run")
    batch = named(found, "spawn")
    decision, transaction = named(found, "decision"), named(found, "transaction")
    assert parent_of(request) is None
    assert parent_of(batch) == span_of(request)
    assert parent_of(decision) == parent_of(transaction) == span_of(batch)
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert decision.attributes is not None
    assert decision.attributes["remit.allowed"] == 1


async def test_a_callers_trace_is_continued(traced: Kit, spans: InMemorySpanExporter) -> None:
    root, _ = await traced.team()
    trace_id, header = a_traceparent()
    api = traced.api.acting_with(root.token)
    response = await api.post(
        "/internal/orchestration/cancel-subtree",
        {"caller_run_id": root.run_id, "run_id": root.run_id},
        traceparent=header,
    )
    assert done(response)["state"] == "drained"
    assert response.headers["X-Trace-ID"] == trace_id
    found = of_trace(spans, trace_id)
    request = named(found, "POST /internal/orchestration/cancel-subtree")
    assert f"{parent_of(request):016x}" == header.split("-")[2]
    assert {"decision", "transaction"} <= {span.name for span in found}


async def test_a_childs_child_is_in_the_trace_of_the_first_call(traced: Kit, spans: InMemorySpanExporter) -> None:
    root, _ = await traced.team()
    trace_id, header = a_traceparent()
    run, depth = root, 0
    while depth < 2:
        api = traced.api.acting_with(run.token)
        body = {
            "caller_run_id": run.run_id,
            "target_agent_slug": "orchestrator",
            "scope_subset": ["agents.execute", "read"],
            "idempotency_key": "below",
        }
        done(await api.post("/internal/orchestration/spawn-run", body, traceparent=header))
        (claimed,) = done(await traced.api.post("/work/claim", {"agent_slugs": ["orchestrator"]}))["runs"]
        run, depth = Run(claimed["run_id"], claimed["run_token"], ""), claimed["context"]["depth"]
        # All that a runtime does for it: send on what it was told.
        header = claimed["context"]["traceparent"]
        assert header.split("-")[1] == trace_id
        assert claimed["input"]["context"]["traceparent"] == header
    spawns = [span for span in of_trace(spans, trace_id) if span.name.endswith("/spawn-run")]
    assert len(spawns) == 2
    below = max(spawns, key=lambda span: span.start_time or 0)
    assert parent_of(below) in {span_of(span) for span in spawns}


def fan_out() -> Definition:
    """A graph that spawns one, calls a tool, and waits for the one."""
    return graph(
        [
            node("one", "spawn_run", target_agent_slug="worker", scope_subset=["read"]),
            node("call", "tool_call", tool_slug="ask"),
        ],
        "start -> one",
        "one -> call",
        "call -> end",
    )


async def graph_that_spawns(kit: Kit) -> str:
    await kit.agent("worker")
    tool = {
        "slug": "ask",
        "name": "Ask",
        "implementation_type": "agent_call",
        "config": {"target_agent_slug": "worker"},
    }
    done(await kit.api.post("/tools", tool))
    return await graph_agent(kit, fan_out())


async def started_with(kit: Kit, agent_id: str, traceparent: str) -> str:
    body = {"requested_scopes": ["agents.execute", "read"]}
    run_id: str = done(await kit.api.post(f"/agents/{agent_id}/runs", body, traceparent=traceparent))["run_id"]
    return run_id


async def test_a_graph_and_all_that_it_spawns_and_calls_is_in_the_trace_of_the_call_that_started_it(
    traced: Kit, spans: InMemorySpanExporter, traced_worker: None
) -> None:
    trace_id, header = a_traceparent()
    run_id = await started_with(traced, await graph_that_spawns(traced), header)
    children = await play(traced, "completed", "completed")
    assert (await ended(traced, run_id))["status"] == "completed"
    async with asyncio.timeout(10):
        while not [span for span in of_trace(spans, trace_id) if span.name == "graph"]:  # noqa: ASYNC110 - it ends later
            await asyncio.sleep(0.02)
    found = of_trace(spans, trace_id)
    execution = named(found, "graph")
    assert parent_of(execution) == span_of(named(found, "POST /agents/{agent_id}/runs"))
    assert execution.attributes is not None
    assert execution.attributes["remit.run_id"] == run_id
    assert execution.attributes["remit.status"] == "completed"
    # Both children, the one of the node and the one of the tool, go on where their graph was.
    below = f"00-{trace_id}-{span_of(execution):016x}-01"
    assert [child["context"]["traceparent"] for child in children] == [below, below]
    batches = [span for span in found if span.name == "spawn"]
    assert [parent_of(batch) for batch in batches] == [span_of(execution)] * 2
    under = {parent_of(span) for span in found if span.name in {"decision", "transaction"}}
    assert {span_of(batch) for batch in batches} <= under
    assert span_of(execution) in under


@pytest.mark.usefixtures("traced_loops")
async def test_a_pass_that_drains_is_a_trace_and_one_that_finds_nothing_is_none(
    traced: Kit, spans: InMemorySpanExporter
) -> None:
    root, _ = await traced.team(max_fanout=200, max_children_total=200)
    done(await traced.spawn_group(root, "many", 150))
    api = traced.api.acting_with(root.token)
    body = {"caller_run_id": root.run_id, "run_id": root.run_id, "wait_s": 20}
    assert done(await api.post("/internal/orchestration/cancel-subtree", body))["state"] == "drained"
    drain: list[ReadableSpan] = []
    async with asyncio.timeout(10):
        while not drain:
            await asyncio.sleep(0.02)
            passes = [span for span in spans.get_finished_spans() if span.name == "loop drain_cancellations"]
            # The runs and their fence; what another test has left to drain is none of this one's.
            drain = [span for span in passes if (span.attributes or {})["remit.settled"] == 152]
    assert len(drain) == 1
    assert parent_of(drain[0]) is None
    assert "transaction" in {span.name for span in of_trace(spans, trace_of(drain[0]))}
    accept = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    measured = (await traced.api.call("GET", "/metrics", headers={"Accept": accept})).text
    examples = [line for line in measured.splitlines() if line.startswith("remit_cancel_drain_seconds_bucket")]
    assert any(f'# {{trace_id="{trace_of(drain[0])}"}}' in line for line in examples)
    # A pass may time out what another test has left; none that timed nothing out is a trace.
    timeouts = [span for span in spans.get_finished_spans() if span.name.startswith("loop time_out")]
    assert all((span.attributes or {}).get("remit.settled") for span in timeouts)


async def test_without_tracing_a_graph_hands_down_the_traceparent_that_its_run_was_started_with(
    kit: Kit, services: Services, database_url: str
) -> None:
    _, header = a_traceparent()
    async with working(services, database_url):
        run_id = await started_with(kit, await graph_that_spawns(kit), header)
        children = await play(kit, "completed", "completed")
        assert (await ended(kit, run_id))["status"] == "completed"
    assert [child["context"]["traceparent"] for child in children] == [header, header]


async def test_spawns_that_share_a_batch_are_linked(traced: Kit, spans: InMemorySpanExporter) -> None:
    root, _ = await traced.team(max_fanout=100, max_children_total=100)
    responses = await asyncio.gather(*(traced.spawn(root, f"many-{n}") for n in range(24)))
    traces = {response.headers["X-Trace-ID"] for response in responses}
    assert len(traces) == 24
    batches = [span for span in spans.get_finished_spans() if span.name == "spawn" and trace_of(span) in traces]
    leading = [span for span in batches if span.attributes and "remit.orders" in span.attributes]
    assert any(len(span.links) > 0 for span in leading), "no two shared a batch"
    # Every request has a span of its spawn: the batch itself, or one that is linked with it.
    assert {trace_of(span) for span in batches} == traces
    known = {span_of(span) for span in leading}
    for span in batches:
        if span not in leading:
            assert [link.context.span_id in known for link in span.links] == [True]


async def test_probes_and_scrapes_are_not_traced(traced: Kit, spans: InMemorySpanExporter) -> None:
    spans.clear()
    for path in ("/livez", "/readyz", "/metrics", "/policies/bundles/orchestration.tar.gz"):
        response = await traced.api.get(path)
        assert len(response.headers["X-Trace-ID"]) == 32
    assert spans.get_finished_spans() == ()


async def test_no_span_holds_a_payload_or_a_token(traced: Kit, spans: InMemorySpanExporter) -> None:
    root, _ = await traced.team()
    marker = secrets.token_hex(12)
    done(await traced.spawn(root, "kept", mapped_input_payload={"secret": marker}))
    await traced.spawn(root, f"no-such-{marker}", target="nobody", mapped_input_payload={"secret": marker})
    written = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "spawn-run" in written
    assert marker not in written
    assert root.token not in written
    assert traced.api.token not in written


async def test_openmetrics_has_the_trace_as_an_example_and_the_text_format_is_as_before(
    traced: Kit, spans: InMemorySpanExporter
) -> None:
    root, _ = await traced.team()
    trace_id = (await traced.spawn(root, "measured")).headers["X-Trace-ID"]
    fenced = await traced.api.acting_with(root.token).post(
        "/internal/orchestration/cancel-subtree", {"caller_run_id": root.run_id, "run_id": root.run_id}
    )
    accept = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    answer = await traced.api.call("GET", "/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    for metric, example in (
        ("remit_http_request_seconds_bucket", trace_id),
        ("remit_decision_seconds_bucket", trace_id),
        ("remit_cancel_fence_seconds_bucket", fenced.headers["X-Trace-ID"]),
        ("remit_cancel_drain_seconds_bucket", fenced.headers["X-Trace-ID"]),
    ):
        lines = [line for line in answer.text.splitlines() if line.startswith(metric)]
        assert any(f'# {{trace_id="{example}"}}' in line for line in lines), metric
    assert answer.text.endswith("# EOF\n")
    plain = await traced.api.call("GET", "/metrics", headers={"Accept": "*/*"})
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert trace_id not in plain.text


async def test_without_tracing_a_well_formed_traceparent_is_handed_down_and_no_other(kit: Kit) -> None:
    root, _ = await kit.team()
    trace_id, header = a_traceparent()
    given: dict[str, httpx2.Response] = {}
    for key, traceparent in (("well-formed", header), ("garbled", "00-garbled-01"), ("zero", f"00-{'0' * 32}-1-01")):
        body = {
            "caller_run_id": root.run_id,
            "target_agent_slug": "worker",
            "scope_subset": ["read"],
            "idempotency_key": key,
        }
        api = kit.api.acting_with(root.token)
        given[key] = await api.post("/internal/orchestration/spawn-run", body, traceparent=traceparent)
        done(given[key])
    assert given["well-formed"].headers["X-Trace-ID"] == trace_id
    runs = done(await kit.api.post("/work/claim", {"agent_slugs": ["worker"], "max_runs": 3}))["runs"]
    told = {run["context"]["spawn_key"]: run["context"].get("traceparent") for run in runs}
    assert told == {"well-formed": header, "garbled": None, "zero": None}


OFF = """
import sys
import service.commands, service.serving, service.runtime
from opentelemetry import trace  # FastAPI brings it along; by itself it does nothing
print("service.tracing" in sys.modules, type(trace.get_tracer_provider()).__name__)
"""

MISSING = """
import asyncio, sys
from service import runtime
from service.settings import Settings

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())

async def main():
    async with runtime.instruments_of(Settings(tracing=True)):
        pass

try:
    asyncio.run(main())
except runtime.NoTracingError as error:
    print(error)
"""


async def run_python(code: str) -> str:
    finished = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return finished.stdout.strip()


async def test_nothing_that_makes_spans_is_loaded_unless_traces_are_wanted() -> None:
    assert await run_python(OFF) == "False ProxyTracerProvider"


async def test_traces_that_are_wanted_without_the_extra_are_told_in_a_sentence() -> None:
    assert await run_python(MISSING) == "REMIT_TRACING needs the extra `otel`: there is no opentelemetry.exporter"
