"""Whether the process lives, whether it can serve, and what it measures."""

import asyncio
from typing import Annotated

from fastapi import Header, Request, Response
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from service.dependencies import ServicesDep
from service.runtime import PolicyDelivery, problems
from service.wire import Answer, Json, make_router

router = make_router("health")


class Liveness(Answer):
    """The process answers."""

    status: str


class Readiness(Answer):
    """Whether the process can serve; `problems` says, by part, why not."""

    ready: bool
    problems: dict[str, str]
    policy_revision: str
    policy_sources_refused: str | None
    opas: list[dict[str, object]]


@router.get("/livez", response_model=Liveness)
async def livez() -> Json:
    """Whether the process lives."""
    return Json({"status": "alive"})


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(request: Request, services: ServicesDep) -> Json:
    """Whether the database answers, its schema is current, and OPA has the bundle."""
    delivery: PolicyDelivery = request.app.state.delivery
    found = await problems(services)
    return Json(
        {
            "ready": not found,
            "problems": found,
            "policy_revision": delivery.publisher.active.revision,
            "policy_sources_refused": delivery.publisher.problem,
            "opas": [
                {
                    "instance": status.instance,
                    "active_revision": status.bundle.active_revision,
                    "last_successful_request": status.bundle.last_successful_request,
                }
                for status in delivery.statuses.all()
            ],
        },
        503 if found else 200,
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def read_metrics(accept: Annotated[str, Header(include_in_schema=False)] = "") -> Response:
    """Metrics in Prometheus' text format, or as OpenMetrics (with exemplars, while traces are made) for who asks.

    Nothing is asked of the database for them.
    """
    encode, content_type = choose_encoder(accept)
    # In a thread: the series of 200 tenants are more text than requests should wait for.
    return Response(await asyncio.to_thread(encode, REGISTRY), headers={"Content-Type": content_type, "Vary": "Accept"})
