"""Long polls end when their caller goes away: work must not be leased to nobody."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request

T = TypeVar("T")


class GoneError(Exception):
    """The caller closed its connection while it was waiting; there is nobody to answer."""


async def while_connected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Await something for as long as the caller stays; when it leaves, the work is cancelled.

    Raises:
        GoneError: when the caller has left.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
