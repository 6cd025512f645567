"""Server-sent events: the stream of a run's events as a client reads it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kernel.commands.read_events import EventId, EventLog, RunEvent

HEARTBEAT_S = 15.0
# Events in one piece of the body: enough that a burst costs few system calls.
EVENTS_PER_PIECE = 100

_TIMES = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def cloud_event(event: RunEvent) -> dict[str, object]:
    """An event as CloudEvents 1.0 has it."""
    return {
        "specversion": "1.0",
        "id": str(event.event_id),
        "source": f"/agents/runs/{event.root_run_id}",
        "type": event.type,
        "subject": str(event.subject),
        "time": event.time,
        "datacontenttype": "application/json",
        "remitsurface": event.surface,
        "data": event.data,
    }


class EventStream(Response):
    """The answer that lasts as long as there may be more, or until the client goes away.

    Nothing is read ahead of the client: the next page is read when the connection has taken the last one.
    """

    media_type = "text/event-stream"

    def __init__(self, log: EventLog, after: EventId, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._log = log
        self._after = after
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream."""
        del scope
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        streaming = asyncio.ensure_future(self._stream(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (streaming, leaving):
                task.cancel()
            await asyncio.gather(streaming, leaving, return_exceptions=True)
        if not streaming.cancelled() and (failure := streaming.exception()) is not None:
            raise failure

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        # So that a client knows that it is connected, and comes back soon when it is not.
        yield b": connected\nretry: 1000\n\n"
        following: AsyncIterator[Sequence[RunEvent]] = self._log.follow(self._after, beat_s=self._heartbeat_s)
        try:
            async for events in following:
                if not events:
                    yield b": heartbeat\n\n"
                for start in range(0, len(events), EVENTS_PER_PIECE):
                    yield b"".join(_render(event) for event in events[start : start + EVENTS_PER_PIECE])
        finally:
            if isinstance(following, AsyncGenerator):
                await following.aclose()
        if self._log.is_over:
            yield b"event: end\ndata: {}\n\n"


def _render(event: RunEvent) -> bytes:
    data = orjson.dumps(cloud_event(event), option=_TIMES)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (str(event.event_id).encode(), event.type.encode(), data)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
