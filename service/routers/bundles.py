"""What an OPA calls: it pulls its bundle by long polling, and reports its status."""

import asyncio
import hmac
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from kernel.domain.errors import UnauthenticatedError
from service.policy_delivery import BundlePublisher, OpaStatuses, StatusUpdate

BUNDLE_MEDIA_TYPE = "application/vnd.openpolicyagent.bundles"
"""OPA takes this type for the promise that the server polls long; with any other it falls back to intervals."""

MAX_WAIT_S = 300

_WAIT = re.compile(r"(?:^|[;,\s])wait=(\d{1,6})\b")

_bearer = HTTPBearer(auto_error=False, description="The token that the OPAs share with this service.")


def make_router(
    publisher: BundlePublisher, statuses: OpaStatuses, *, bundle_token: str, stopping: asyncio.Event
) -> APIRouter:
    """The routes below `/policies` for OPAs.

    Args:
        publisher: whence the bundle is served.
        statuses: where reports are kept.
        bundle_token: the bearer token that only OPAs have.
        stopping: set when the service shuts down; long polls end at once.
    """

    async def authenticate(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        given = credentials.credentials if credentials is not None else ""
        if not hmac.compare_digest(given.encode(), bundle_token.encode()):
            raise UnauthenticatedError("The bundle token is missing or wrong.")

    router = APIRouter(prefix="/policies", tags=["opa"], dependencies=[Depends(authenticate)])

    @router.get(
        "/bundles/orchestration.tar.gz",
        summary="The signed policy bundle",
        response_class=Response,
        responses={
            200: {"description": "The bundle, a gzipped tarball", "content": {BUNDLE_MEDIA_TYPE: {}}},
            304: {"description": "The caller has the active bundle, also after waiting as long as it preferred"},
        },
    )
    async def read_bundle(
        request: Request,
        if_none_match: Annotated[str, Header()] = "",
        prefer: Annotated[str, Header(description="`wait=N` holds the answer for up to N seconds")] = "",
    ) -> Response:
        held = {etag.strip().removeprefix("W/") for etag in if_none_match.split(",")}
        wait = _WAIT.search(prefer)
        if wait is not None and publisher.active.etag in held:
            await _first_of(publisher, request, stopping, timeout_s=min(int(wait[1]), MAX_WAIT_S))
        headers = {"ETag": publisher.active.etag, "Cache-Control": "no-cache"}
        if stopping.is_set():
            # The next poll is to reach a process that stays.
            headers["Connection"] = "close"
        if publisher.active.etag in held:
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        return Response(publisher.active.data, media_type=BUNDLE_MEDIA_TYPE, headers=headers)

    @router.post(
        "/status/{partition:path}",
        summary="The status report of an OPA",
        status_code=status.HTTP_204_NO_CONTENT,
        description="OPA posts here after each attempt to fetch its bundle; the partition may be empty.",
    )
    async def report_status(partition: str, update: StatusUpdate) -> None:
        del partition
        statuses.report(update)

    return router


async def _first_of(publisher: BundlePublisher, request: Request, stopping: asyncio.Event, *, timeout_s: float) -> None:
    """Wait for another bundle, the end of the service, the end of the connection or the end of the time."""
    waits = {
        asyncio.ensure_future(publisher.superseded(publisher.active.etag)),
        asyncio.ensure_future(stopping.wait()),
        asyncio.ensure_future(_disconnected(request)),
    }
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
