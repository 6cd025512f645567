"""The events of a run and all below it: as a stream, or in pages."""

from typing import Annotated, Literal, cast
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from pydantic import Field
from starlette.responses import Response

from kernel.commands.read_events import BEGINNING, EventId, EventReaders, ReadEvents
from service.dependencies import ReadDep, ServicesDep
from service.sse import EventStream, cloud_event
from service.wire import Answer, Json, make_router

router = make_router("runs")

JSON = "application/json"
SSE = "text/event-stream"


class CloudEvent(Answer):
    """An event as CloudEvents 1.0 has it. `subject` is the run that it is about."""

    specversion: Literal["1.0"]
    id: str = Field(description="`seq.index`, in the order of the tree.", examples=["17.0"])
    source: str
    type: Literal[
        "orchestration.spawn_decision",
        "orchestration.child_lifecycle",
        "orchestration.join_decision",
        "orchestration.policy_deny",
        "orchestration.cancellation_propagation",
    ]
    subject: UUID
    time: str
    datacontenttype: Literal["application/json"]
    remitsurface: Literal["option_a_graphspec_v2", "option_b_runtime_primitives"]
    data: dict[str, object]


class EventPageAnswer(Answer):
    """Events in order. `next` is the `after` of the next page; once `end` is true nothing will follow."""

    events: list[CloudEvent]
    next: str | None
    end: bool


async def readers_of(request: Request, services: ServicesDep) -> EventReaders:
    """The readers of this process, with their one poller."""
    state = request.app.state
    if getattr(state, "event_readers", None) is None:
        state.event_readers = EventReaders(services.database, services.stopping)
    return cast("EventReaders", state.event_readers)


@router.get(
    "/agents/runs/{run_id}/events",
    response_model=EventPageAnswer,
    responses={
        200: {
            "description": (
                "Server-sent events, each with a CloudEvents 1.0 document as its data; `event: end` is the last one. "
                "With `after` or `limit`, or where only JSON is accepted: a page."
            ),
            "content": {SSE: {"schema": {"type": "string"}}},
        }
    },
)
async def read_events(
    run_id: UUID,
    principal: ReadDep,
    services: ServicesDep,
    readers: Annotated[EventReaders, Depends(readers_of)],
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="Resumes a stream after this event.")
    ] = None,
    last_event_id_in_query: Annotated[
        str | None, Query(alias="last_event_id", description="For clients that cannot set a header.")
    ] = None,
    after: Annotated[
        str | None,
        Query(description="Answers a page of what comes after this event, or after all that have this number."),
    ] = None,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="Events in a page.")] = None,
) -> Response:
    """The events of a run and all below it, in the order of their tree.

    The stream resumes after `Last-Event-ID` without loss or repeat, and ends when all is terminal and drained.
    """
    in_pages = after is not None or limit is not None or (JSON in accept and SSE not in accept)
    if in_pages:
        position = EventId.read(after, "after") if after else BEGINNING
    else:
        resumed = last_event_id or last_event_id_in_query
        position = EventId.read(resumed, "Last-Event-ID") if resumed else BEGINNING
    log = await ReadEvents(services.database, services.engine, readers).open(principal, run_id)
    if not in_pages:
        return EventStream(log, position)
    page = await log.page(position, limit or 200)
    return Json(
        {
            "events": [cloud_event(event) for event in page.events],
            "next": str(page.position) if page.position != BEGINNING else None,
            "end": page.ended,
        }
    )
