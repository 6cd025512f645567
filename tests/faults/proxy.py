"""A TCP proxy that cuts HTTP connections at a chosen moment, as networks do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

HEAD_END = b"\r\n\r\n"


class Cut(StrEnum):
    """When to cut: what the server has then, and what the client has not."""

    REQUEST_HALF_SENT = "before the server has the whole request"
    REQUEST_SENT = "when the server has the request, and has not answered"
    RESPONSE_BEGUN = "when the server has answered, and the client has not heard it"


@dataclass(slots=True)
class Proxy:
    """A proxy that is listening. `cuts` counts what it has cut; `at_server` is set by the first whole request."""

    url: str
    cuts: int = 0
    at_server: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def cutting(target_url: str, cut: Cut) -> AsyncIterator[Proxy]:
    """Listen on loopback and cut every connection, at the server's side and the client's, at that moment.

    Args:
        target_url: the server, such as `http://127.0.0.1:8080`.
        cut: when.
    """
    target = urlsplit(target_url)
    proxy = Proxy("")
    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        upstream, downstream = await asyncio.open_connection(target.hostname, target.port)
        try:
            request = await _whole_request(reader)
            if cut is Cut.REQUEST_HALF_SENT:
                downstream.write(request[: len(request) // 2])
                await downstream.drain()
            else:
                downstream.write(request)
                await downstream.drain()
                proxy.at_server.set()
            if cut is Cut.RESPONSE_BEGUN:
                await upstream.read(1)
            proxy.cuts += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away by itself
        finally:
            # Abort: what waits in a buffer is lost, as it is when a line breaks.
            for end in (downstream, writer):
                end.transport.abort()
            connections.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    proxy.url = f"http://{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await server.wait_closed()


async def _whole_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(HEAD_END)
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head + await reader.readexactly(length)
