"""Answers that leave in one piece.

uvicorn writes the head of an answer and its body one after the other, and uvloop sends each at once: two system calls,
two packets, and a client that wakes up twice. Here what is written within a turn of the event loop is sent together.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# More than this is sent at once, so that a slow reader is noticed as soon as without the gathering.
MOST_GATHERED = 65_536


class OnePieceProtocol(HttpToolsProtocol):
    """uvicorn's protocol, on a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin with a connection."""
        super().connection_made(_Gathering(transport, self.loop))


class _Gathering(asyncio.Transport):
    """A transport that sends what is written to it at the end of the turn; everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take what is to be sent."""
        if not self._gathered:
            self._loop.call_soon(self._send)
        self._gathered.append(bytes(data))
        self._size += len(data)
        if self._size > MOST_GATHERED:
            self._send()

    def _send(self) -> None:
        gathered, self._gathered, self._size = self._gathered, [], 0
        # A client may have gone since; its transport takes nothing more, and says so with an exception.
        if gathered and not self._transport.is_closing():
            self._transport.write(gathered[0] if len(gathered) == 1 else b"".join(gathered))

    def close(self) -> None:
        """Send what was gathered, then close."""
        self._send()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self._gathered.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closing, or closed."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """What is known of the connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection over."""
        self._transport.set_protocol(protocol)
