"""What a pass fails on is set aside for a while, so that it holds up nothing else: rows, and trees that are held."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

import structlog

from kernel import metrics

ASIDE_S = 60.0
# A tree that was waited for in vain: less, because that was long already, and nothing is wrong with what is due there.
HELD_ASIDE_S = 5.0
MAX_ASIDE = 1_000

log = structlog.get_logger()


class Clock(Protocol):
    """Seconds on a clock that only goes forward."""

    def __call__(self) -> float: ...


class SetAside:
    """What a loop leaves alone for now, and reports: rows by their ids, trees by those of their roots."""

    def __init__(self, loop: str, *, aside_s: float = ASIDE_S, clock: Clock = time.monotonic) -> None:
        self._loop = loop
        self._aside_s = aside_s
        self._clock = clock
        self._until: dict[UUID, float] = {}
        # A tree that is tried again, which takes as long as it is waited for, is reported meanwhile.
        self._reported: dict[UUID, float] = {}
        self._measure()

    def add(self, row_ids: Sequence[UUID], error: BaseException) -> None:
        """Leave rows alone for a while."""
        log.error("rows set aside", loop=self._loop, rows=[str(row_id) for row_id in row_ids], exc_info=error)
        for row_id in row_ids:
            self._leave(row_id, self._aside_s)

    def add_tree(self, root_run_id: UUID, error: BaseException) -> None:
        """Leave a tree alone that was waited for in vain."""
        log.error("tree set aside", loop=self._loop, root_run_id=str(root_run_id), exc_info=error)
        self._leave(root_run_id, min(HELD_ASIDE_S, self._aside_s))

    @contextmanager
    def waiting_for(self, root_run_id: UUID) -> Iterator[None]:
        """Leave a tree alone while it is waited for: one who waits is enough."""
        self._until[root_run_id] = math.inf
        try:
            yield
        finally:
            # Unless it was set aside meanwhile.
            if self._until.get(root_run_id) == math.inf:
                del self._until[root_run_id]

    @property
    def row_ids(self) -> list[UUID]:
        """What to pass over."""
        self._forget()
        return list(self._until)

    def _leave(self, row_id: UUID, seconds: float) -> None:
        self._forget()
        if row_id in self._reported or len(self._reported) < MAX_ASIDE:
            self._until[row_id] = self._clock() + seconds
            self._reported[row_id] = self._clock() + self._aside_s
        self._measure()

    def _forget(self) -> None:
        now = self._clock()
        self._until = {row_id: until for row_id, until in self._until.items() if until > now}
        if any(until <= now for until in self._reported.values()):
            self._reported = {row_id: until for row_id, until in self._reported.items() if until > now}
            self._measure()

    def _measure(self) -> None:
        metrics.RECONCILER_ROWS_SET_ASIDE.labels(self._loop).set(len(self._reported))
