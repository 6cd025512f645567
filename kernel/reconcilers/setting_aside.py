"""Rows on which a pass fails are set aside for a while, so that they hold up nothing else."""

import time
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import structlog

from kernel import metrics

ASIDE_S = 60.0
MAX_ASIDE = 1_000

log = structlog.get_logger()


class Clock(Protocol):
    """Seconds on a clock that only goes forward."""

    def __call__(self) -> float: ...


class SetAside:
    """The rows that a loop leaves alone for now, and reports."""

    def __init__(self, loop: str, *, aside_s: float = ASIDE_S, clock: Clock = time.monotonic) -> None:
        self._loop = loop
        self._aside_s = aside_s
        self._clock = clock
        self._until: dict[UUID, float] = {}
        self._measure()

    def add(self, row_ids: Sequence[UUID], error: BaseException) -> None:
        """Leave rows alone for a while."""
        log.error("rows set aside", loop=self._loop, rows=[str(row_id) for row_id in row_ids], exc_info=error)
        until = self._clock() + self._aside_s
        for row_id in row_ids[: MAX_ASIDE - len(self._until)]:
            self._until[row_id] = until
        self._measure()

    @property
    def row_ids(self) -> list[UUID]:
        """The rows to pass over."""
        now = self._clock()
        if any(until <= now for until in self._until.values()):
            self._until = {row_id: until for row_id, until in self._until.items() if until > now}
            self._measure()
        return list(self._until)

    def _measure(self) -> None:
        metrics.RECONCILER_ROWS_SET_ASIDE.labels(self._loop).set(len(self._until))
