"""Tenants, their tokens and their flags."""

from typing import Annotated, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field

from kernel.commands.catalog import Row, Tenants, check_admin
from kernel.commands.read_flags import ReadFlagsCommand
from kernel.domain.errors import InvalidRequestError
from service.dependencies import AdminDep, CallerDep, PolicyWriteDep, ServicesDep
from service.wire import Answer, Body, Json, Name, Scope, Seconds, Slug, make_router

router = make_router("tenants")

TenantScope = Literal["agents.execute", "catalog.write", "policy.read", "policy.write", "runs.read"]
DAY_S = 86_400


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError) as error:
        raise ValueError("must be the name of an IANA time zone, such as Europe/Berlin") from error
    return value


# What `bigint` holds.
MaxActiveRuns = Annotated[int, Field(ge=1, lt=2**63)]
TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]


class NewTenant(Body):
    """A tenant to be made."""

    slug: Slug
    name: Name
    time_zone: TimeZone = "UTC"
    max_active_runs: MaxActiveRuns | None = None


class TenantChange(Body):
    """What to change; what is absent stays."""

    name: Name | None = None
    time_zone: TimeZone | None = None
    max_active_runs: MaxActiveRuns | None = None


class TenantAnswer(Answer):
    """A tenant."""

    tenant_id: UUID
    slug: str
    name: str
    time_zone: str
    max_active_runs: int | None
    created_at: str


class NewToken(Body):
    """A tenant's token to be signed. Root runs may be given scopes of `delegable_scopes` only; `*` is any."""

    scopes: Annotated[tuple[TenantScope, ...], Field(min_length=1)]
    delegable_scopes: tuple[Scope | Literal["*"], ...] = ("*",)
    expires_in_s: Seconds = DAY_S


class TokenAnswer(Answer):
    """A signed token."""

    token: str
    expires_at: str


class Flags(Body):
    """Which surfaces are on."""

    option_a_graphspec_v2: bool = True
    option_b_runtime_primitives: bool = True


@router.post("/tenants", status_code=201, response_model=TenantAnswer)
async def create_tenant(body: NewTenant, principal: AdminDep, services: ServicesDep) -> Json:
    """Make a tenant. The admin only."""
    tenant = await Tenants(services.database).create(principal, body.model_dump())
    return Json(_render(tenant), 201)


@router.get("/tenants/{tenant_id}", response_model=TenantAnswer)
async def read_tenant(tenant_id: UUID, principal: CallerDep, services: ServicesDep) -> Json:
    """A tenant."""
    return Json(_render(await Tenants(services.database).get(principal, tenant_id)))


@router.patch("/tenants/{tenant_id}", response_model=TenantAnswer)
async def change_tenant(tenant_id: UUID, body: TenantChange, principal: AdminDep, services: ServicesDep) -> Json:
    """Change a tenant. The admin only."""
    values = body.model_dump(exclude_unset=True)
    for name in ("name", "time_zone"):
        if name in values and values[name] is None:
            raise InvalidRequestError(f"{name}: must not be null", field=name)
    return Json(_render(await Tenants(services.database).change(principal, tenant_id, values)))


@router.post("/tenants/{tenant_id}/tokens", status_code=201, response_model=TokenAnswer)
async def create_token(tenant_id: UUID, body: NewToken, principal: AdminDep, services: ServicesDep) -> Json:
    """Sign a token for a tenant. The admin only; the token is not kept, so it cannot be shown again."""
    check_admin(principal)
    await Tenants(services.database).get(principal, tenant_id)
    issued = services.tokens.issue_tenant(
        tenant_id, sorted(set(body.scopes)), sorted(set(body.delegable_scopes)), body.expires_in_s
    )
    return Json({"token": issued.token, "expires_at": issued.expires_at}, 201)


@router.get("/tenants/{tenant_id}/flags", response_model=Flags)
async def read_flags(tenant_id: UUID, principal: PolicyWriteDep, services: ServicesDep) -> Json:
    """Which surfaces the tenant has on; one that has set none goes by the platform's defaults."""
    flags = await ReadFlagsCommand(services.database, services.engine).execute(principal, tenant_id)
    return Json({surface.value: on for surface, on in flags.items()})


@router.put("/tenants/{tenant_id}/flags", response_model=Flags)
async def put_flags(tenant_id: UUID, body: Flags, principal: PolicyWriteDep, services: ServicesDep) -> Json:
    """Switch surfaces on or off. Off denies new work at once and lets what is running end."""
    await Tenants(services.database).put_flags(principal, tenant_id, body.model_dump())
    return Json(body.model_dump())


def _render(row: Row) -> dict[str, object]:
    return {name: row[name] for name in TenantAnswer.model_fields}
