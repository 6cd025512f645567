"""Traces by OpenTelemetry: a span for the request, and beneath it those of its decisions and transactions.

Work without a request has spans, too: each execution of a graph, in the trace of whoever started its run, and each pass
of a loop that found something to do.

Imported only where REMIT_TRACING is on, so that neither the package nor its cost is there otherwise. Whither spans
go, and which are sampled, is said in OpenTelemetry's own `OTEL_*` variables. A span names what was asked and how it
went; never a token, never a payload.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource, get_aggregated_resources
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kernel import metrics
from kernel.commands.claim_work import ClaimedRun
from kernel.commands.run_graph import RunGraphCommand
from kernel.commands.spawning.order import SpawnOrder
from kernel.commands.spawning.pipeline import Postponed, SpawnPipeline
from kernel.commands.spawning.verdicts import Outcome
from kernel.domain.errors import RemitError
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.policy.contract import DecisionInput
from kernel.policy.engine import Evaluated
from kernel.policy.opa import OpaEngine
from kernel.reconcilers.loop import Counts, Pass
from kernel.store.engine import Database, ReadSession, WriteSession

# Probes, scrapes and OPA's polls come by the second, and nobody asks where their time went.
UNTRACED = ("/livez", "/readyz", "/metrics", "/policies/")
SERVER_ERROR = 500

_tracer = trace.get_tracer("remit", version("remit"))
_propagator = TraceContextTextMapPropagator()


def export_spans() -> TracerProvider:
    """Send this process's spans to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names."""
    ours = Resource({"service.name": "remit", "service.version": version("remit")})
    provider = TracerProvider(resource=get_aggregated_resources([OTELResourceDetector()], ours))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


async def flush(provider: TracerProvider) -> None:
    """Send what has not been sent; waits for the collector, but not for long."""
    await asyncio.to_thread(provider.force_flush, 2_000)
    await asyncio.to_thread(provider.shutdown)


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """The span of a request that is under way."""

    span: Span

    @property
    def trace_id(self) -> str:
        """The trace's id, as the headers have it."""
        return _trace_id(self.span)

    def answered(self, method: str, route: str, status: int) -> None:
        """Say what the request was, by the template of its route, and how it went."""
        if not self.span.is_recording():
            return
        self.span.update_name(f"{method} {route}")
        self.span.set_attributes(
            {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        )
        if status >= SERVER_ERROR:
            self.span.set_status(StatusCode.ERROR)


@contextmanager
def request_span(scope: MutableMapping[str, Any]) -> Iterator[RequestSpan | None]:
    """The span of a request, in the trace of its `traceparent` if it has one.

    Handlers find the span's own `traceparent` in the request's headers, so what they spawn continues this trace.
    """
    if str(scope["path"]).startswith(UNTRACED):
        yield None
        return
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")}
    with _tracer.start_as_current_span(
        str(scope["method"]), context=_propagator.extract(carrier), kind=SpanKind.SERVER, **_QUIETLY
    ) as span:
        scope["headers"] = [
            *((name, value) for name, value in headers if name != b"traceparent"),
            (b"traceparent", _traceparent().encode("latin-1")),
        ]
        with _example_of(span):
            yield RequestSpan(span)


class TracedEngine(OpaEngine):
    """An engine whose questions are spans."""

    async def decide(self, question: DecisionInput) -> Evaluated:
        """Answer one question."""
        if not trace.get_current_span().is_recording():
            return await super().decide(question)
        with _part("decision", {"remit.action": question.action.value}) as span:
            evaluated = await super().decide(question)
            span.set_attributes(
                {"remit.allowed": evaluated.decision.allow, "remit.policy.revision": evaluated.revision}
            )
            return evaluated

    async def decide_all(self, questions: Sequence[DecisionInput]) -> list[Evaluated]:
        """Answer up to 64 questions in one round trip, in their order."""
        if not questions or not trace.get_current_span().is_recording():
            return await super().decide_all(questions)
        asked = {"remit.action": questions[0].action.value, "remit.questions": len(questions)}
        with _part("decision", asked) as span:
            answers = await super().decide_all(questions)
            allowed = sum(answer.decision.allow for answer in answers)
            span.set_attributes({"remit.allowed": allowed, "remit.policy.revision": answers[0].revision})
            return answers


class TracedDatabase(Database):
    """A database whose transactions are spans, as far as they belong to something that is traced."""

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteSession]:
        """Borrow a connection and hold a transaction around the block."""
        with _transaction():
            async with super().write() as session:
                yield session

    @asynccontextmanager
    async def write_on(self, session: ReadSession) -> AsyncIterator[WriteSession]:
        """Hold a transaction around the block, on a connection that is kept beyond it for the sake of what is on it."""
        with _transaction():
            async with super().write_on(session) as writing:
                yield writing


class TracedPipeline(SpawnPipeline):
    """A pipeline whose batches are spans.

    A batch runs in the trace of its first order. In the trace of each other one a span stands for it, and the two are
    linked both ways.
    """

    async def execute(self, batch: Sequence[SpawnOrder], *, again: bool = False) -> list[Outcome | Postponed]:
        """Execute orders of any tenants and trees, each on its own merits."""
        if not trace.get_current_span().is_recording():
            return await super().execute(batch, again=again)
        others = [context for context in map(_origin, batch[1:]) if context is not None]
        with _tracer.start_as_current_span(
            "spawn", attributes={"remit.orders": len(batch)}, links=[Link(context) for context in others], **_QUIETLY
        ) as span:
            here = Link(span.get_span_context())
            shared = [
                _tracer.start_span("spawn", trace.set_span_in_context(trace.NonRecordingSpan(context)), links=[here])
                for context in others
            ]
            try:
                return await super().execute(batch, again=again)
            finally:
                for other in shared:
                    other.end()


class TracedRunGraph(RunGraphCommand):
    """Executions of graphs as spans, in the trace of the call that started the run; what they spawn continues it."""

    async def execute(self, principal: Principal, claimed: ClaimedRun, *, again: bool = False) -> RunStatus | None:
        """Run it to its end, wherever it was left."""
        given = claimed.context.get("traceparent")
        above = _propagator.extract({"traceparent": str(given)} if given is not None else {})
        asked: dict[str, str | int] = {
            "remit.run_id": str(claimed.run_id),
            "remit.agent": claimed.agent_slug,
            "remit.attempt": claimed.attempt,
        }
        with (
            _tracer.start_as_current_span(
                "graph", context=above, kind=SpanKind.CONSUMER, attributes=asked, **_QUIETLY
            ) as span,
            _example_of(span),
        ):
            structlog.contextvars.bind_contextvars(trace_id=_trace_id(span))
            ours = replace(claimed, context={**claimed.context, "traceparent": _traceparent()})
            status = await super().execute(principal, ours, again=again)
            # Without a status it was left: to another process, or because it is cancelled.
            span.set_attribute("remit.status", status if status is not None else "left")
            return status


@dataclass(frozen=True, slots=True)
class TracedPass:
    """The body of a loop, whose passes are spans where they find something to do."""

    name: str
    body: Pass

    async def run_once(self) -> Counts:
        """Do what there is to do now, and return."""
        # Ended by hand: what is not ended is not sent, and a look that finds nothing is no news.
        span = _tracer.start_span(f"loop {self.name}")
        with trace.use_span(span, end_on_exit=False, **_QUIETLY), _example_of(span):
            try:
                counts = await self.body.run_once()
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                span.end()
                raise
        if counts.total:
            span.set_attribute("remit.settled", counts.total)
            span.end()
        return counts


# An exception's text may hold what a caller sent: its type is enough, and the log has the rest.
_QUIETLY: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


@contextmanager
def _part(name: str, attributes: dict[str, str | int]) -> Iterator[Span]:
    with _tracer.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes, **_QUIETLY) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            if not isinstance(error, RemitError) or error.code.endswith("_unavailable"):
                span.set_status(StatusCode.ERROR)
            raise


def _transaction() -> AbstractContextManager[Span | None]:
    if not trace.get_current_span().is_recording():
        return nullcontext()
    return _part("transaction", {"db.system.name": "postgresql"})


def _trace_id(span: Span) -> str:
    return format_trace_id(span.get_span_context().trace_id)


def _example_of(span: Span) -> AbstractContextManager[None]:
    """What is measured within has this trace as its example, where the trace is kept at all."""
    return metrics.exemplified(_trace_id(span)) if span.is_recording() else nullcontext()


def _traceparent() -> str:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier["traceparent"]


def _origin(order: SpawnOrder) -> SpanContext | None:
    if order.trace_parent is None:
        return None
    context = trace.get_current_span(_propagator.extract({"traceparent": order.trace_parent})).get_span_context()
    return context if context.is_valid else None
