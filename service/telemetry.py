"""What surrounds every request: ids, the size of the body, its duration. Pure ASGI, around the whole application."""

import re
import secrets
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from kernel import metrics
from kernel.domain.errors import PayloadTooLargeError
from service import errors
from service.dependencies import RequestSpans

if TYPE_CHECKING:
    from service.tracing import RequestSpan

# https://www.w3.org/TR/trace-context/#traceparent-header; later versions may say more behind the flags.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
SERVER_ERROR = 500
MAX_REQUEST_ID = 128
UNMATCHED = "unmatched"
# What a client may call a method is without bound; what is measured is not.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER_METHODS = "other"

log = structlog.get_logger()


class Telemetry:
    """Wraps the application. Every answer carries `X-Request-ID` and `X-Trace-ID`, also one that failed.

    Args:
        max_body_bytes: a larger body is refused before it is parsed, whatever length it claims.
        request_span: makes the span of a request, where traces are wanted.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, request_span: RequestSpans | None = None) -> None:
        self._app = app
        self._request_span = request_span
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._request_span is None:
            await self._handle(scope, receive, send, None)
            return
        with self._request_span(scope) as span:
            await self._handle(scope, receive, send, span)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, span: "RequestSpan | None") -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = _given_trace_id(headers)
        if given is None and b"traceparent" in headers:
            # Whatever it is, it does not name a trace, and must not be handed down to children as one.
            scope["headers"] = [header for header in scope["headers"] if header[0] != b"traceparent"]
        request_id, trace_id = _request_id(headers), given or secrets.token_hex(16)
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=trace_id)
        status = 500
        answered = False

        async def send_with_ids(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered, status = True, int(message["status"])
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode("latin-1")),
                    (b"x-trace-id", trace_id.encode("latin-1")),
                ]
            await send(message)

        body = _BoundedBody(receive, self._max_body_bytes, headers)
        try:
            await self._app(scope, body.receive, send_with_ids)
        except PayloadTooLargeError as error:
            if answered:
                raise
            await errors.render(error)(scope, receive, send_with_ids)
        except Exception:
            # Starlette has answered 500 and raises again for the server's log; ours has it already.
            if not answered:
                raise
        finally:
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in METHODS else OTHER_METHODS
            route = route_template(scope)
            metrics.HTTP_REQUEST_SECONDS.labels(method, route, str(status)).observe(seconds, metrics.exemplar())
            if span is not None:
                span.answered(method, route, status)
            tell = log.warning if status >= SERVER_ERROR else log.debug
            tell("request", method=method, route=route, status=status, seconds=round(seconds, 6))
            structlog.contextvars.clear_contextvars()


class _BoundedBody:
    def __init__(self, receive: Receive, limit: int, headers: MutableMapping[bytes, bytes]) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0
        claimed = headers.get(b"content-length", b"")
        self._claimed = int(claimed) if claimed.isdigit() else 0

    async def receive(self) -> Message:
        if self._claimed > self._limit:
            raise self._too_large(self._claimed)
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise self._too_large(self._seen)
        return message

    def _too_large(self, observed: int) -> PayloadTooLargeError:
        return PayloadTooLargeError(
            f"body: at most {self._limit} bytes are taken; this one has {observed} or more",
            limit=self._limit,
            observed=observed,
        )


def route_template(scope: MutableMapping[str, Any]) -> str:
    """The template of the route that took the request, such as `/agents/{agent_id}`, never the path itself."""
    route = scope.get("route")
    path = getattr(route, "path", None) or getattr(route, "path_format", None)
    return str(path) if path else UNMATCHED


def _request_id(headers: MutableMapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if given and len(given) <= MAX_REQUEST_ID and given.isprintable() and given.isascii():
        return given
    return str(uuid7())


def _given_trace_id(headers: MutableMapping[bytes, bytes]) -> str | None:
    """The trace of the caller's W3C `traceparent`, if there is one and it is well-formed."""
    found = TRACEPARENT.fullmatch(headers.get(b"traceparent", b"").decode("latin-1"))
    if found is None or not int(found["trace"], 16) or not int(found["parent"], 16):
        return None
    return found["trace"]
