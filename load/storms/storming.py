"""What the users of one run of locust share: where the service is, how hard to storm it, and what came of it."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from gevent.event import Event
from locust.env import Environment

from load.storms.ledger import Ledger
from load.storms.stage import Stage
from load.storms.tally import Tally
from load.storms.watch import Watch

Shared = TypeVar("Shared")


@dataclass
class Storming:
    """One run, of one scenario or several.

    `seconds` and `most` bound each stream in time and count; `pace` multiplies the rates, and `scale` the sizes of
    trees, groups and the like. `in_flight` is one user's, `workers` are shared out among all `users`.
    """

    host: str
    stage: Stage
    ledger: Ledger
    directory: Path
    profile: str
    seconds: float
    most: int
    pace: float
    scale: float
    in_flight: int
    may_miss: float
    users: int
    workers: int
    tolerance: float
    watch: Watch
    # Set when it is interrupted: nothing more is to arrive.
    over: Event = field(default_factory=Event)
    # How long calls had been arriving then, in seconds.
    interrupted_after_s: float | None = None
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    tallies: dict[str, Tally] = field(default_factory=dict)
    _seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _turns: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _shared: dict[str, Any] = field(default_factory=dict)
    # By how many users, so far.
    _prepared: int = 0
    _all_prepared: Event = field(default_factory=Event)
    # By `time.perf_counter`, when the first calls could arrive.
    _loose_since: float | None = None

    _current: ClassVar[dict[int, "Storming"]] = {}

    def begin(self, environment: Environment) -> None:
        """Be what the users of an environment find."""
        self._current[id(environment)] = self

    @classmethod
    def of(cls, environment: Environment) -> "Storming":
        """The run that is under way."""
        return cls._current[id(environment)]

    def tally(self, scenario: str) -> Tally:
        """The counts of a scenario."""
        return self.tallies.setdefault(scenario, Tally())

    def seed(self) -> int:
        """A seed for the next user: the same storm draws the same way."""
        return next(self._seeds)

    def share_of_workers(self) -> int:
        """How many of the workers are the next user's."""
        turn, (each, rest) = next(self._turns) % self.users, divmod(self.workers, self.users)
        return each + (turn < rest)

    def shared(self, name: str, make: Callable[[], Shared]) -> Shared:
        """What all users of a scenario have in common, made by the first that asks."""
        with self._lock:
            if name not in self._shared:
                self._shared[name] = make()
            shared: Shared = self._shared[name]
            return shared

    def prepared(self, of: int) -> None:
        """One more user has prepared what it needs, or failed to; the last of so many lets all begin."""
        self._prepared += 1
        if self._prepared >= of:
            self._all_prepared.set()

    def await_all(self) -> None:
        """Wait until every user has prepared: before, the storm would be one of fewer than it says."""
        self._all_prepared.wait()
        if self._loose_since is None:
            self._loose_since = time.perf_counter()

    def interrupt(self) -> None:
        """End the arrivals now; what is in flight is heard. Where all have come already, nothing is cut short."""
        if self.over.is_set():
            return
        ran_s = time.perf_counter() - self._loose_since if self._loose_since is not None else 0.0
        if ran_s < self.seconds:
            self.interrupted_after_s = ran_s
        self.over.set()
        # Of the users some may never come, and those that wait for them would wait for ever.
        self._all_prepared.set()

    @property
    def ran_s(self) -> float:
        """How long calls have arrived, in seconds."""
        return self.seconds if self.interrupted_after_s is None else self.interrupted_after_s

    def scaled(self, size: int, *, least: int = 1) -> int:
        """A size of this storm, as `--scale` has it."""
        return max(least, round(size * self.scale))

    def told(self) -> dict[str, object]:
        """All that was seen, for the verdict."""
        return {
            "profile": self.profile,
            "host": self.host,
            "users": self.users,
            "workers": self.workers,
            "in_flight": self.in_flight,
            "may_miss": self.may_miss,
            "seconds": self.seconds,
            "ran_s": self.ran_s,
            "interrupted_after_s": self.interrupted_after_s,
            "pace": self.pace,
            "scale": self.scale,
            "began": self.began.isoformat(),
            "ended": datetime.now(UTC).isoformat(),
            "acknowledged_calls": self.ledger.lines,
            "service": self.watch.told(),
            "scenarios": {name: tally.told() for name, tally in self.tallies.items()},
        }
