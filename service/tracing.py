"""Traces by OpenTelemetry: a span for the request, and beneath it those of its decisions and transactions.

Imported only where REMIT_TRACING is on, so that neither the package nor its cost is there otherwise. Whither spans
go, and which are sampled, is said in OpenTelemetry's own `OTEL_*` variables. A span names what was asked and how it
went; never a token, never a payload.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource, get_aggregated_resources
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kernel import metrics
from kernel.commands.spawning.order import SpawnOrder
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.verdicts import Outcome
from kernel.domain.errors import RemitError
from kernel.policy.contract import DecisionInput
from kernel.policy.engine import Evaluated
from kernel.policy.opa import OpaEngine
from kernel.store.engine import Database, WriteSession

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
        return format_trace_id(self.span.get_span_context().trace_id)

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
        request = RequestSpan(span)
        with metrics.exemplified(request.trace_id) if span.is_recording() else nullcontext():
            yield request


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
    """A database whose transactions are spans, as far as they belong to a request."""

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteSession]:
        """Borrow a connection and hold a transaction around the block."""
        if not trace.get_current_span().is_recording():
            async with super().write() as session:
                yield session
            return
        with _part("transaction", {"db.system.name": "postgresql"}):
            async with super().write() as session:
                yield session


class TracedPipeline(SpawnPipeline):
    """A pipeline whose batches are spans.

    A batch runs in the trace of its first order. In the trace of each other one a span stands for it, and the two are
    linked both ways.
    """

    async def execute(self, batch: Sequence[SpawnOrder]) -> list[Outcome]:
        """Execute orders of any tenants and trees, each on its own merits."""
        if not trace.get_current_span().is_recording():
            return await super().execute(batch)
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
                return await super().execute(batch)
            finally:
                for other in shared:
                    other.end()


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


def _traceparent() -> str:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier["traceparent"]


def _origin(order: SpawnOrder) -> SpanContext | None:
    if order.trace_parent is None:
        return None
    context = trace.get_current_span(_propagator.extract({"traceparent": order.trace_parent})).get_span_context()
    return context if context.is_valid else None
