"""The application: routes, errors and what surrounds them, put together from parts that were started elsewhere."""

from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from service import errors, openapi
from service.dependencies import Services
from service.routers import (
    agents,
    bundles,
    cancellations,
    decisions,
    events,
    graphs,
    health,
    join,
    replan,
    retrieval,
    runs,
    spawning,
    status,
    tenants,
    tools,
    trees,
    work,
)
from service.runtime import PolicyDelivery
from service.telemetry import Telemetry

DESCRIPTION = """
An agent acts within its remit: whom it may spawn, with which scopes, how deep, how wide, how many, until when.
Rego policies decide, the kernel enforces the decisions in PostgreSQL transactions, and every refusal says why.
"""


def make_app(services: Services, delivery: PolicyDelivery) -> FastAPI:
    """The application, without what surrounds every request."""
    # With the viewer of the documentation from a package, not from the internet, which few servers reach.
    app = FastAPIOffline(
        title="Remit",
        version=version("remit"),
        description=DESCRIPTION.strip(),
        redoc_url=None,
        # Its own tells more than it may (exceptions with their messages), and knows nothing of children; see tracing.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.services = services
    app.state.delivery = delivery
    errors.install(app)
    openapi.install(app)
    # Routes are tried in turn: the busiest come first.
    for resource in (
        spawning,
        work,
        join,
        cancellations,
        runs,
        status,
        trees,
        replan,
        tools,
        events,
        agents,
        tenants,
        graphs,
        retrieval,
        decisions,
        health,
    ):
        app.include_router(resource.router)
    app.include_router(
        bundles.make_router(
            delivery.publisher, delivery.statuses, bundle_token=delivery.bundle_token, stopping=services.stopping
        )
    )
    return app


def wrap(app: FastAPI, services: Services) -> ASGIApp:
    """The application as it is served."""
    return Telemetry(app, max_body_bytes=services.settings.max_body_bytes, request_span=services.request_span)
