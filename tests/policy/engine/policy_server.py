"""The routes for OPAs, behind a real uvicorn."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import Request

from kernel.domain.errors import UnauthenticatedError
from kernel.policy.bundle import ALGORITHM, SCOPE, SigningKey
from service.policy_delivery import BundlePublisher, OpaStatuses
from service.routers.bundles import make_router

BUNDLE_TOKEN = "a-token-for-opas"


@dataclass
class PolicyServer:
    url: str
    publisher: BundlePublisher
    statuses: OpaStatuses
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    polls: list[str] = field(default_factory=list)
    traffic: asyncio.Condition = field(default_factory=asyncio.Condition)

    def opa_config(self, key: SigningKey, *, wait_s: int = 10) -> dict[str, object]:
        """How an OPA is told to pull, verify and report."""
        return {
            "services": {"remit": {"url": f"{self.url}/policies", "credentials": {"bearer": {"token": BUNDLE_TOKEN}}}},
            "keys": {key.keyid: {"algorithm": ALGORITHM, "key": key.public_pem, "scope": SCOPE}},
            "bundles": {
                "orchestration": {
                    "service": "remit",
                    "resource": "bundles/orchestration.tar.gz",
                    "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1, "long_polling_timeout_seconds": wait_s},
                    "signing": {"keyid": key.keyid, "scope": SCOPE},
                }
            },
            "status": {"service": "remit"},
        }

    async def until_reported(self, revision: str) -> None:
        """Wait until an OPA has reported this revision active."""
        async with asyncio.timeout(20), self.traffic:
            await self.traffic.wait_for(
                lambda: any(status.bundle.active_revision == revision for status in self.statuses.all())
            )


async def _unauthenticated(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=401)


@asynccontextmanager
async def policy_server(publisher: BundlePublisher) -> AsyncIterator[PolicyServer]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = PolicyServer(f"http://127.0.0.1:{listening.getsockname()[1]}", publisher, OpaStatuses())
    app = FastAPI()
    app.add_exception_handler(UnauthenticatedError, _unauthenticated)
    app.include_router(make_router(publisher, server.statuses, bundle_token=BUNDLE_TOKEN, stopping=server.stopping))

    async def observed(scope, receive, send):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if scope["type"] == "http" and scope["method"] == "GET":
            server.polls.append(dict(scope["headers"]).get(b"prefer", b"").decode())
            async with server.traffic:
                server.traffic.notify_all()
        await app(scope, receive, send)
        async with server.traffic:
            server.traffic.notify_all()

    uvicorn_server = uvicorn.Server(uvicorn.Config(observed, log_level="error", lifespan="off"))
    # What listens before it serves keeps an early caller waiting, so nobody has to ask whether it has started.
    serving = asyncio.create_task(uvicorn_server.serve(sockets=[listening]))
    try:
        yield server
    finally:
        server.stopping.set()
        uvicorn_server.should_exit = True
        await serving
