"""What a handler may ask for: the parts of this process, and who is calling."""

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, Request

from kernel.commands.run_graph import RunGraphCommand
from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.domain.errors import InvalidRequestError, UnauthenticatedError
from kernel.domain.principal import Principal
from kernel.domain.scopes import ANY_SCOPE
from kernel.policy.opa import OpaEngine
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.settings import Settings
from service.tokens import Tokens

if TYPE_CHECKING:
    from service.tracing import RequestSpan

RequestSpans = Callable[[MutableMapping[str, Any]], AbstractContextManager["RequestSpan | None"]]
"""What makes the span of a request, given its ASGI scope."""


@dataclass(slots=True)
class Services:
    """The parts of one API process, made at its start and passed to every handler."""

    settings: Settings
    database: Database
    engine: OpaEngine
    tokens: Tokens
    pipeline: SpawnPipeline
    combiner: SpawnCombiner
    wakeups: Wakeups
    active_runs: ActiveRuns
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    request_span: RequestSpans | None = None
    run_graph: type[RunGraphCommand] = RunGraphCommand


async def services_of(request: Request) -> Services:
    """The parts of this process."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def authenticate(request: Request, services: ServicesDep) -> Principal:
    """Who is calling.

    Raises:
        UnauthenticatedError: without a valid token.
        InvalidRequestError: when `X-Tenant-ID` is no id, or is another tenant than the token's.
    """
    # Read from the request itself: this runs at every call, and header parameters cost more than all the rest of it.
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError("Authorization: a bearer token is needed")
    principal = services.tokens.verify(token.strip())
    x_tenant_id = _tenant_named_in(request)
    if x_tenant_id is not None and principal.kind != "admin" and x_tenant_id != principal.tenant_id:
        raise InvalidRequestError("X-Tenant-ID: is not the tenant of the token", field="X-Tenant-ID")
    if principal.kind == "admin" and x_tenant_id is not None:
        principal = Principal(
            kind="admin",
            tenant_id=x_tenant_id,
            scopes=principal.scopes,
            delegable_scopes=principal.delegable_scopes,
        )
    request.state.principal = principal
    structlog.contextvars.bind_contextvars(
        **{
            name: str(value)
            for name, value in (("tenant_id", principal.tenant_id), ("run_id", principal.run_id))
            if value is not None
        }
    )
    return principal


def trace_parent_of(request: Request) -> str | None:
    """The W3C `traceparent` that the runs of this call hand down; the telemetry has taken away a malformed one."""
    return request.headers.get("traceparent")


def _tenant_named_in(request: Request) -> UUID | None:
    """The tenant that an admin's call is for; a tenant's token needs no such header."""
    given = request.headers.get("X-Tenant-ID")
    try:
        return UUID(given) if given is not None else None
    except ValueError as error:
        raise InvalidRequestError(f"X-Tenant-ID: must be a UUID (observed: {given!r})", field="X-Tenant-ID") from error


CallerDep = Annotated[Principal, Depends(authenticate)]


class Holding:
    """A dependency: the caller, holding one of some scopes."""

    def __init__(self, *scopes: str) -> None:
        self._scopes = scopes

    async def __call__(self, principal: CallerDep) -> Principal:
        principal.check_scope(*self._scopes)
        return principal


class HoldingForTenant(Holding):
    """A dependency: the same, but no run. A run that holds a scope may hand it down, and not write its own remit."""

    async def __call__(self, principal: CallerDep) -> Principal:
        await super().__call__(principal)
        principal.check_is_no_run()
        return principal


AdminDep = Annotated[Principal, Depends(Holding(ANY_SCOPE))]
ExecuteDep = Annotated[Principal, Depends(Holding("agents.execute"))]
ReadDep = Annotated[Principal, Depends(Holding("runs.read", "agents.execute"))]
CatalogDep = Annotated[Principal, Depends(HoldingForTenant("catalog.write"))]
DocumentsDep = Annotated[Principal, Depends(Holding("catalog.write"))]
PolicyReadDep = Annotated[Principal, Depends(Holding("policy.read"))]
PolicyWriteDep = Annotated[Principal, Depends(HoldingForTenant("policy.write"))]
