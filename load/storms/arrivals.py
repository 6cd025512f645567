"""The open model: calls arrive when they are due, however long the ones before them take.

A client that waits for an answer before it sends the next call slows down with the service, and hides how long others
would have waited. Here a greenlet per stream keeps to its own schedule, and whatever is due is sent by a greenlet of
its own. Latency is counted from when a call was due.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import gevent
from gevent.event import Event
from gevent.pool import Pool

from load.storms.tally import Tally

# How long the last calls may take once no more are sent.
LAST_ANSWERS_S = 60.0


Card = TypeVar("Card")


def deck(cards: Sequence[Card], dice: random.Random) -> Iterator[Card]:
    """The cards for ever, shuffled each time round: all sizes come, even in a short storm."""
    while True:
        yield from dice.sample(cards, len(cards))


class IdleError(Exception):
    """An arrival found nothing to act on; it is counted, and nothing was sent."""


class BusyError(Exception):
    """An arrival found all that it could act on busy with those before it: a slow service, so it counts as missed."""


@dataclass(frozen=True)
class Stream:
    """Arrivals of one kind at a rate per second, at random (a Poisson process) or evenly.

    `act` is called with the instant at which the arrival was due, by `time.perf_counter`. `begins` and `ends` are
    shares of the storm's time.
    """

    name: str
    rate: float
    act: Callable[[float], None]
    evenly: bool = False
    begins: float = 0.0
    ends: float = 1.0


class Dispatcher:
    """Sends what is due, of several streams, for so many seconds; at most so many of each, and so many in flight.

    When `over` is set, nothing more arrives.
    """

    def __init__(self, tally: Tally, *, in_flight: int, most: int, dice: random.Random, over: Event) -> None:
        self._tally = tally
        self._pool = Pool(in_flight)
        self._most = most
        self._dice = dice
        self._over = over

    def run(self, streams: Sequence[Stream], seconds: float) -> None:
        """Keep to the schedule until it ends, and hear the last answers."""
        start = time.perf_counter()
        dispatching = [gevent.spawn(self._keep_to, stream, start, seconds) for stream in streams]
        try:
            gevent.joinall(dispatching, raise_error=True)
        finally:
            gevent.killall(dispatching)
            self._pool.join(LAST_ANSWERS_S)
            if len(self._pool):
                self._tally.find(
                    "unanswered", f"{len(self._pool)} calls, {LAST_ANSWERS_S:.0f} s after the last was sent"
                )
                self._pool.kill()

    def _keep_to(self, stream: Stream, start: float, seconds: float) -> None:
        begin, end = start + stream.begins * seconds, start + stream.ends * seconds
        self._arrive(stream, begin, end)
        # Of a stream that was cut short, the rates are those of the time that it had.
        last = min(end, time.perf_counter()) if self._over.is_set() else end
        arrivals = self._tally.of(stream.name)
        arrivals.seconds = max(arrivals.seconds, last - begin)

    def _arrive(self, stream: Stream, begin: float, end: float) -> None:
        arrivals = self._tally.of(stream.name)
        # What comes evenly comes at once; what comes at random, after a first wait.
        due = begin if stream.evenly else begin + self._dice.expovariate(stream.rate)
        for _ in range(self._most):
            if due >= end:
                return
            # Even one that is late yields, so that answers are heard.
            gevent.sleep(0)
            if self._over.wait(max(0.0, due - time.perf_counter())):
                return
            arrivals.intended += 1
            if self._pool.full():
                arrivals.missed += 1
            else:
                self._pool.spawn(self._one, stream, due, begin)
            due += 1 / stream.rate if stream.evenly else self._dice.expovariate(stream.rate)

    def _one(self, stream: Stream, due: float, begin: float) -> None:
        arrivals = self._tally.of(stream.name)
        try:
            stream.act(due)
        except IdleError:
            arrivals.idle += 1
            return
        except BusyError:
            arrivals.missed += 1
            return
        except Exception as error:
            self._tally.errors[f"{stream.name}: {type(error).__name__}: {error}"] += 1
            raise
        arrivals.last_answer_s = max(arrivals.last_answer_s, time.perf_counter() - begin)
