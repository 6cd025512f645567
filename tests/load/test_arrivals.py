"""Arrivals keep to their schedule, whatever becomes of those before them."""

import json
import random
import subprocess
import sys
from pathlib import Path

from load.storms.tally import Arrivals, Tally, percentile

ROOT = Path(__file__).parents[2]
# In a process of its own: gevent's loop does not meet asyncio's.
SLOW_SERVICE = """
import json, random, time, gevent
from gevent.event import Event
from load.storms.arrivals import BusyError, Dispatcher, IdleError, Stream
from load.storms.tally import Tally
tally, sent, over = Tally(), [], Event()
def act(due):
    sent.append((due, time.perf_counter()))
    {act}
    gevent.sleep(0.3)
    tally.of("slow").heard(done=True, from_due_ms=(time.perf_counter() - due) * 1000, from_sent_ms=300)
dispatcher = Dispatcher(tally, in_flight={in_flight}, most={most}, dice=random.Random(1), over=over)
{before}
dispatcher.run([Stream("slow", 100.0, act, evenly=True)], 0.5)
print(json.dumps(tally.of("slow").told() | {{"gap": max(b[0] - a[0] for a, b in zip(sent, sent[1:], strict=False))}}))
"""


def dispatched(*, in_flight: int, most: int = 1000, act: str = "pass", before: str = "") -> dict[str, float]:
    program = SLOW_SERVICE.format(in_flight=in_flight, most=most, act=act, before=before)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    told: dict[str, float] = json.loads(result.stdout)
    return told


def test_a_slow_service_does_not_slow_the_arrivals_down() -> None:
    told = dispatched(in_flight=1000)
    # Sums of hundredths may leave room for one more.
    assert told["intended"] == told["done"]
    assert told["intended"] in {50, 51}
    # Sequential calls of 0.3 s would have been two.
    assert told["gap"] < 0.011


def test_what_does_not_fit_in_flight_is_missed() -> None:
    told = dispatched(in_flight=10)
    assert told["intended"] in {50, 51}
    assert told["done"] + told["missed"] == told["intended"]
    assert told["missed"] >= 25
    assert told["achieved_per_s"] < told["intended_per_s"]


def test_an_arrival_that_finds_all_busy_is_missed_and_one_that_finds_nothing_is_idle() -> None:
    told = dispatched(in_flight=1000, act="raise BusyError if len(sent) % 2 else IdleError")
    assert told["missed"] + told["idle"] == told["intended"]
    assert told["missed"]
    assert told["idle"]


def test_arrivals_are_bounded_in_count() -> None:
    assert dispatched(in_flight=1000, most=7)["intended"] == 7


def test_what_is_over_ends_the_arrivals_at_once_and_hears_those_in_flight() -> None:
    told = dispatched(in_flight=1000, before="gevent.spawn_later(0.2, over.set)")
    assert told["intended"] == told["done"]
    assert 15 <= told["intended"] <= 21
    # By the time that they had, not by what was asked for.
    assert 90 <= told["intended_per_s"] <= 110


def test_percentiles_are_of_what_was_seen() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([5.0], 0.99) == 5.0
    values = sorted(random.Random(1).sample(range(1000), 1000))
    assert percentile([float(value) for value in values], 0.95) == 950


def test_the_achieved_rate_counts_the_time_to_the_last_answer() -> None:
    arrivals = Arrivals(intended=100, done=100, seconds=10.0, last_answer_s=20.0)
    assert arrivals.told()["intended_per_s"] == 10
    assert arrivals.told()["achieved_per_s"] == 5


def test_the_achieved_rate_leaves_out_what_was_refused() -> None:
    arrivals = Arrivals(intended=100, seconds=10.0)
    for number in range(100):
        arrivals.heard(done=number % 4 == 0, from_due_ms=2.0, from_sent_ms=1.0)
    told = arrivals.told()
    assert (told["done"], told["refused"]) == (25, 75)
    assert told["achieved_per_s"] == 2.5


def test_faults_of_one_kind_are_told_once_each_and_counted_beyond() -> None:
    tally = Tally()
    for number in range(30):
        tally.find("escape", f"run {number}")
    findings = tally.told()["findings"]
    assert isinstance(findings, list)
    assert findings[0] == "escape: run 0"
    assert findings[-1] == "escape: 30 in all"
    assert len(findings) == 21
