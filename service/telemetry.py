"""What surrounds every request: ids, the size of the body, its duration. Pure ASGI, around the whole application."""

import secrets
import time
from collections.abc import MutableMapping
from typing import Any
from uuid import UUID

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kernel import metrics
from kernel.domain.errors import PayloadTooLargeError
from kernel.identifiers import new_id
from service import errors

TRACEPARENT_PARTS = 4
TRACE_ID_LENGTH = 32
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
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id, trace_id = _request_id(headers), _trace_id(headers)
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=trace_id)
        status = 500
        answered = False

        async def send_with_ids(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered, status = True, message["status"]
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
            method = scope["method"] if scope["method"] in METHODS else OTHER_METHODS
            metrics.HTTP_REQUEST_SECONDS.labels(method, route_template(scope), str(status)).observe(
                time.perf_counter() - started
            )
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
    return str(new_id())


def _trace_id(headers: MutableMapping[bytes, bytes]) -> str:
    """The trace of the caller's W3C `traceparent`, or a new one."""
    parts = headers.get(b"traceparent", b"").decode("latin-1").split("-")
    if len(parts) >= TRACEPARENT_PARTS and len(parts[1]) == TRACE_ID_LENGTH:
        try:
            if UUID(parts[1]).int:
                return parts[1].lower()
        except ValueError:
            pass
    return secrets.token_hex(16)
