"""What a handler may ask for: the parts of this process, and who is calling."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Request

from kernel.commands.spawning.combiner import SpawnCombiner
from kernel.commands.spawning.pipeline import SpawnPipeline
from kernel.commands.spawning.saturation import ActiveRuns
from kernel.domain.errors import InvalidRequestError, UnauthenticatedError
from kernel.domain.principal import Principal
from kernel.policy.opa import OpaEngine
from kernel.store.engine import Database
from kernel.wakeups import Wakeups
from service.settings import Settings
from service.tokens import Tokens


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


async def services_of(request: Request) -> Services:
    """The parts of this process."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]


async def authenticate(
    request: Request,
    services: ServicesDep,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    x_tenant_id: Annotated[
        UUID | None, Header(description="The tenant that an admin's call is for; a tenant's token needs none.")
    ] = None,
) -> Principal:
    """Who is calling.

    Raises:
        UnauthenticatedError: without a valid token.
        InvalidRequestError: when a header names another tenant than the token.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError("Authorization: a bearer token is needed")
    principal = services.tokens.verify(token.strip())
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
    return principal


CallerDep = Annotated[Principal, Depends(authenticate)]


class Holding:
    """A dependency: the caller, holding one of some scopes."""

    def __init__(self, *scopes: str) -> None:
        self._scopes = scopes

    async def __call__(self, principal: CallerDep) -> Principal:
        principal.check_scope(*self._scopes)
        return principal


ExecuteDep = Annotated[Principal, Depends(Holding("agents.execute"))]
ReadDep = Annotated[Principal, Depends(Holding("runs.read", "agents.execute"))]
CatalogDep = Annotated[Principal, Depends(Holding("catalog.write"))]
PolicyReadDep = Annotated[Principal, Depends(Holding("policy.read"))]
PolicyWriteDep = Annotated[Principal, Depends(Holding("policy.write"))]
