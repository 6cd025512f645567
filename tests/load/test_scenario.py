"""What all storms have in common: users that begin together, and a promise of what must have happened."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from load.storm import STORMS

ROOT = Path(__file__).parents[2]
# In processes of their own: locust patches what asyncio stands on.
BEFORE = """
import json, pathlib, tempfile, time
from locust.env import Environment
import load.locustfile as storms
from load.storms.arrivals import BusyError, Stream
from load.storms.ledger import Ledger
from load.storms.scenario import Scenario
from load.storms.storming import Storming
from load.storms.watch import Watch
import gevent

here = pathlib.Path(tempfile.mkdtemp())

def storming(**more):
    return Storming(**dict(
        host="http://127.0.0.1:9", stage=None, ledger=Ledger(here), directory=here, profile="default", seconds=0.3,
        most=1000, pace=1.0, scale=0.01, in_flight=8, may_miss=0.05, users=3, workers=0, tolerance=3.0,
        watch=Watch(here / "nowhere", here),
    ) | more)
"""
PROMISES = """
told = {}
for name in json.loads(ARGUMENT):
    storm, nothing, all_of_it = getattr(storms, name), storming(), storming()
    storm.promise(nothing)
    tally = all_of_it.tally(storm.name)
    for what in storm.happens:
        tally.count(what)
    tally.notes["deepest"] = 10
    storm.promise(all_of_it)
    told[name] = [nothing.tally(storm.name).told()["findings"], tally.told()["findings"]]
print(json.dumps(told))
"""
BEGINNING = """
class Slow(Scenario):
    name = "slow"
    turns = iter(range(3))
    began = []
    def prepare(self):
        self.turn = next(Slow.turns)
        gevent.sleep(0.2 * self.turn)
        Slow.prepared = time.perf_counter()
        if self.turn == 1:
            raise ValueError("this one cannot prepare")
    def streams(self):
        Slow.began.append(time.perf_counter() - Slow.prepared)
        return [Stream("tick", 20.0, lambda due: None, evenly=True)]

environment = Environment(user_classes=[Slow], host="http://127.0.0.1:9")
under_way = storming()
under_way.begin(environment)
runner = environment.create_local_runner()
runner.start(3, spawn_rate=3)
gevent.wait(timeout=1.5)
print(json.dumps({"began": Slow.began, **under_way.tally("slow").told()}))
"""


def told_by(program: str, argument: str = "") -> Any:
    code = f"{BEFORE}\nARGUMENT = {argument!r}\n{program}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def promises() -> dict[str, list[list[str]]]:
    told: dict[str, list[list[str]]] = told_by(PROMISES, json.dumps(list(STORMS.values())))
    return told


@pytest.mark.parametrize(
    ("storm", "promised"),
    [
        ("CancellationStorm", ["cancelled root", "cancelled midway", "cancelled overlapping", "raced a fence"]),
        ("HighFanout", ["decided groups", "repeats"]),
        ("DeepTrees", ["the deepest run is at depth 0, wanted 10"]),
        ("DeniedCalls", ["max_fanout_exceeded", "target_not_published", "target_not_allowlisted", "scope_"]),
        ("MixedTenants", ["refused trespasses"]),
        ("JoinHerd", ["decided by quorum", "decided by first_success", "decided by fail_fast", "decided by best_eff"]),
    ],
)
def test_a_storm_in_which_what_it_is_about_never_happened_fails(
    storm: str, promised: list[str], promises: dict[str, list[list[str]]]
) -> None:
    nothing, all_of_it = promises[storm]
    assert all(any(what in finding for finding in nothing) for what in promised), nothing
    assert all_of_it == []


def test_users_begin_together_when_the_slowest_has_prepared() -> None:
    told = told_by(BEGINNING)
    # One could not prepare, which is told, and holds nobody up.
    assert len(told["began"]) == 2
    assert max(told["began"]) < 0.1
    assert told["errors"] == ["slow: ValueError: this one cannot prepare (1 times)"]
