"""Read the events of a run and all below it, in the order of their tree.

The log has one row for each number of the tree's sequence; what a row tells of several runs is shown singly, with ids
`seq.index`. The index of a run in a row is the same for every reader, whichever part of the tree it sees.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from kernel.commands import asking
from kernel.domain.errors import DatabaseUnavailableError, InvalidRequestError
from kernel.domain.events import EventType
from kernel.domain.lineage import MAX_BIGINT, MAX_INTEGER, Ancestry
from kernel.domain.principal import Principal
from kernel.policy.engine import PolicyEngine
from kernel.store import effective, event_pages
from kernel.store.engine import Database
from kernel.store.event_pages import Head, StoredEvent
from kernel.store.trees import TreeKey

# How long a commit of another process may go unnoticed.
POLL_S = 0.25
# Readers of one tree that are equally far share the rows they read; so many pages are kept for them.
KEPT_PAGES = 16
# Runs of which a reader remembers whether they are below its own.
MAX_REMEMBERED = 20_000

_EVENT_ID = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,10}))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class EventId:
    """Where an event stands: the number of its row, and its place in it."""

    seq: int
    index: int

    def __str__(self) -> str:
        return f"{self.seq}.{self.index}"

    @classmethod
    def read(cls, text: str, field_name: str) -> "EventId":
        """Read an id back; a number alone stands for the last event that has it.

        Raises:
            InvalidRequestError: when it is no id of an event.
        """
        match = _EVENT_ID.fullmatch(text)
        seq = int(match[1]) if match is not None else MAX_BIGINT + 1
        index = int(match[2]) if match is not None and match[2] is not None else MAX_INTEGER
        if seq > MAX_BIGINT or index > MAX_INTEGER:
            raise InvalidRequestError(
                f"{field_name}: must be the id of an event, such as 17.0", field=field_name, observed=text[:100]
            )
        return cls(seq, index)


BEGINNING = EventId(0, 0)


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event as a reader sees it."""

    event_id: EventId
    type: str
    surface: str
    root_run_id: UUID
    subject: UUID
    time: datetime
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in order; `position` is how far was looked, and `ended` that nothing will follow."""

    events: Sequence[RunEvent]
    position: EventId
    ended: bool


@dataclass(slots=True)
class _Watched:
    """A tree that somebody reads: its head when last looked at, and the promise of a later one."""

    readers: int = 0
    head: Head | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


_PageKey = tuple[UUID, UUID, int, int]


class EventReaders:
    """All readers of events of a process: one poller for them, however many they are, and a few shared pages.

    Nobody holds a connection while waiting, or while a slow client takes what was read for it.
    """

    def __init__(self, database: Database, stopping: asyncio.Event, *, poll_s: float = POLL_S) -> None:
        self._database = database
        self._stopping = stopping
        self._poll_s = poll_s
        self._watched: dict[TreeKey, _Watched] = {}
        self._poller: asyncio.Task[None] | None = None
        self._pages: OrderedDict[_PageKey, asyncio.Future[list[StoredEvent]]] = OrderedDict()

    @contextmanager
    def watching(self, tree: TreeKey) -> Iterator[_Watched]:
        """Watch a tree for as long as the block lasts."""
        watched = self._watched.setdefault(tree, _Watched())
        watched.readers += 1
        try:
            yield watched
        finally:
            watched.readers -= 1
            if not watched.readers:
                self._watched.pop(tree, None)

    async def wait(self, watched: _Watched, seen: Head, timeout_s: float) -> bool:
        """Wait until a tree's head is another one; False when the time is up or the service stops."""
        if self.stopping:
            return False
        if watched.head != seen:
            return True
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(timeout_s):
                await watched.changed.wait()
        except TimeoutError:
            return False
        return not self.stopping

    @property
    def stopping(self) -> bool:
        """Whether the service stops, and reading is to go on elsewhere."""
        return self._stopping.is_set()

    async def head(self, tree: TreeKey) -> Head:
        """How far a tree's log goes at this moment."""
        async with self._database.read() as session:
            return (await event_pages.heads(session, [tree]))[tree]

    async def rows(self, tree: TreeKey, first: int, last: int) -> list[StoredEvent]:
        """Rows of a tree's log up to a head that was seen; those who ask for the same share one query."""
        key = (*tree, first, last)
        found = self._pages.get(key)
        if found is None:
            found = asyncio.ensure_future(self._load(tree, first, last))
            self._pages[key] = found
            if len(self._pages) > KEPT_PAGES:
                self._pages.popitem(last=False)
        try:
            # Shielded: a reader that goes away must not take the page from the others.
            return await asyncio.shield(found)
        except Exception:
            if self._pages.get(key) is found:
                del self._pages[key]
            raise

    async def _load(self, tree: TreeKey, first: int, last: int) -> list[StoredEvent]:
        async with self._database.read() as session:
            return await event_pages.page(session, *tree, first=first, last=last)

    async def _poll(self) -> None:
        """Look for as long as somebody watches."""
        try:
            while self._watched:
                try:
                    async with asyncio.timeout(self._poll_s):
                        await self._stopping.wait()
                except TimeoutError:
                    pass
                else:
                    for watched in self._watched.values():
                        watched.changed.set()
                    return
                await self._look()
        finally:
            self._pages.clear()

    async def _look(self) -> None:
        try:
            async with self._database.read() as session:
                found = await event_pages.heads(session, list(self._watched))
        except DatabaseUnavailableError:
            # The next look may find it back; readers hear nothing until then.
            return
        for tree, head in found.items():
            watched = self._watched.get(tree)
            if watched is not None and head != watched.head:
                watched.head = head
                # Whoever waits now is woken; who comes later waits for the next change.
                watched.changed.set()
                watched.changed = asyncio.Event()


class ReadEvents:
    """Asks policy, then reads: once, or for as long as there may be more."""

    def __init__(self, database: Database, engine: PolicyEngine, readers: EventReaders) -> None:
        self._database = database
        self._engine = engine
        self._readers = readers

    async def open(self, principal: Principal, run_id: UUID) -> "EventLog":
        """The log of a run and all below it.

        Raises:
            NotFoundError: when the tenant has no such run.
            ForbiddenError: when it is outside the reach of the token.
        """
        standing = await asking.check_may_read(self._database, self._engine, principal, run_id)
        return EventLog(
            self._database, self._readers, (standing.tenant.tenant_id, standing.subject_root_run_id), run_id
        )


class EventLog:
    """The events of one run and all below it, for one reader."""

    def __init__(self, database: Database, readers: EventReaders, tree: TreeKey, run_id: UUID) -> None:
        self._database = database
        self._readers = readers
        self._tree = tree
        self._run_id = run_id
        self._is_root = run_id == tree[1]
        self._within: dict[UUID, bool] = {}
        self._over = False

    async def page(self, after: EventId, limit: int) -> EventPage:
        """The next events after one, as far as there are any."""
        ended = not self._is_root and not await self._is_active()
        head = await self._readers.head(self._tree)
        events: list[RunEvent] = []
        position, first = after, after.seq
        while first <= head.seq:
            rows = await self._readers.rows(self._tree, first, head.seq)
            if not rows:
                break
            found, position = await self._shown(rows, position, limit - len(events))
            events.extend(found)
            if len(events) == limit:
                return EventPage(events, position, ended=False)
            first = rows[-1].seq + 1
        return EventPage(events, position, ended or head.ended)

    async def follow(self, after: EventId, *, beat_s: float) -> AsyncIterator[Sequence[RunEvent]]:
        """All events after one, as they come, until there can be no more; none at all after `beat_s` quiet seconds.

        Quiet is what the reader hears, however busy the rest of the tree is.

        What is read is handed out before more is read, so a slow reader costs no more than a page. Where it ends and
        `is_over` is false the service is stopping: the reader goes on from what it has, elsewhere.
        """
        with self._readers.watching(self._tree) as watched:
            if watched.head is None:
                watched.head = await self._readers.head(self._tree)
            head, position, first = watched.head, after, after.seq
            closing = False
            clock = asyncio.get_running_loop().time
            beat_at = clock() + beat_s
            while not self._readers.stopping:
                if clock() >= beat_at:
                    yield ()
                    beat_at = clock() + beat_s
                elif first <= head.seq:
                    rows = await self._readers.rows(self._tree, first, head.seq)
                    found, position = await self._shown(rows, position, None)
                    first = rows[-1].seq + 1 if rows else head.seq + 1
                    if found:
                        yield found
                        beat_at = clock() + beat_s
                elif closing or head.ended:
                    self._over = True
                    return
                elif not self._is_root and not await self._is_active():
                    # It stays so; what there is to tell of it has been committed before.
                    closing = True
                    head = await self._readers.head(self._tree)
                elif await self._readers.wait(watched, head, beat_at - clock()):
                    head = watched.head

    @property
    def is_over(self) -> bool:
        """Whether `follow` has come to the end of the events, and not only to the end of the service."""
        return self._over

    async def _is_active(self) -> bool:
        async with self._database.read() as session:
            return await event_pages.any_active(session, self._tree[0], self._run_id)

    async def _shown(
        self, rows: Sequence[StoredEvent], after: EventId, limit: int | None
    ) -> tuple[list[RunEvent], EventId]:
        """What this reader sees of rows after an event, and how far it was looked."""
        if not self._is_root:
            await self._learn(rows)
        found: list[RunEvent] = []
        position = after
        for row in rows:
            for index, subject, data in _single(row):
                event_id = EventId(row.seq, index)
                if event_id <= after:
                    continue
                if limit is not None and len(found) >= limit:
                    return found, position
                position = event_id
                mine = data if self._is_root else self._mine(row, subject, data)
                if mine is not None:
                    found.append(
                        RunEvent(event_id, row.type, row.surface, self._tree[1], subject, row.created_at, mine)
                    )
        return found, position

    def _mine(self, row: StoredEvent, subject: UUID, data: dict[str, Any]) -> dict[str, Any] | None:
        """The event as far as it is about this part of the tree; None where it is not."""
        if row.type == EventType.CANCELLATION_PROPAGATION and data.get("cancelled_run_ids"):
            run_ids = [run_id for run_id in data["cancelled_run_ids"] if self._within[UUID(run_id)]]
            return {**data, "cancelled_run_ids": run_ids, "count": len(run_ids)} if run_ids else None
        if self._within[subject]:
            return data
        # A spawn is told to its caller, and to those it made.
        if row.type == EventType.SPAWN_DECISION and any(self._within[run_id] for run_id in row.subjects):
            return {**data, "spawned_run_ids": [r for r in data["spawned_run_ids"] if self._within[UUID(r)]]}
        return None

    async def _learn(self, rows: Sequence[StoredEvent]) -> None:
        """Find out which of the runs that rows tell of are below this one. That never changes."""
        if len(self._within) > MAX_REMEMBERED:
            self._within.clear()
        unknown = {run_id for row in rows for run_id in (row.run_id, *row.subjects) if run_id not in self._within}
        if not unknown:
            return
        known = Ancestry()
        async with self._database.read() as session:
            await effective.climb(session, self._tree[0], known, unknown)
        for run_id in unknown:
            self._within[run_id] = known.is_within(run_id, self._run_id, {}) if run_id in known.steps else False


def _single(row: StoredEvent) -> Iterator[tuple[int, UUID, dict[str, Any]]]:
    """A row's events: one for each child whose status changed; all other rows are one event."""
    children = row.data.get("children") if row.type == EventType.CHILD_LIFECYCLE else None
    if children is None:
        subject = row.subjects[0] if row.type == EventType.CHILD_LIFECYCLE and row.subjects else row.run_id
        yield 0, subject, row.data
        return
    for index, child in enumerate(children):
        yield index, UUID(child["child_run_id"]), child
