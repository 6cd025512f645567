"""The event log of a tree: one row for each number of its sequence, written in the transaction of what it tells."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import orjson

from kernel.domain.events import EventType, Surface
from kernel.store.engine import WriteSession

APPEND = """
INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)
SELECT q.tenant_id, q.root_run_id, q.seq, q.type, q.surface, q.run_id, string_to_array(q.subjects, ' ')::uuid[],
  q.data::json
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::uuid[], $7::text[], $8::text[])
  AS q (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data)
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `run_id` is the run that acts or is acted on, `subjects` are all the runs whose stream shows it."""

    tenant_id: UUID
    root_run_id: UUID
    seq: int
    type: EventType
    surface: Surface
    run_id: UUID
    subjects: Sequence[UUID]
    data: object

    def row(self) -> tuple[object, ...]:
        """The row that `APPEND` takes."""
        return (
            self.tenant_id,
            self.root_run_id,
            self.seq,
            self.type.value,
            self.surface.value,
            self.run_id,
            " ".join(map(str, self.subjects)),
            orjson.dumps(self.data, default=str).decode(),
        )


def columns(events: Iterable[Event]) -> list[list[object]]:
    """The arrays that `APPEND` takes."""
    turned = [list(column) for column in zip(*(event.row() for event in events), strict=True)]
    return turned or [[] for _ in range(8)]


async def append(session: WriteSession, *events: Event) -> None:
    """Write events of trees whose locks this transaction holds."""
    await session.driver.execute(APPEND, *columns(events))
