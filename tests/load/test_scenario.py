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
    happened = []
    def prepare(self):
        turn = next(Slow.turns)
        gevent.sleep(0.2 * turn)
        Slow.happened.append("prepared")
        if turn == 1:
            raise ValueError("this one cannot prepare")
    def streams(self):
        Slow.happened.append("began")
        return [Stream("tick", 20.0, lambda due: None, evenly=True)]

environment = Environment(user_classes=[Slow], host="http://127.0.0.1:9")
under_way = storming()
under_way.begin(environment)
runner = environment.create_local_runner()
runner.start(3, spawn_rate=3)
while len(Slow.happened) < 5 or runner.user_count:
    gevent.sleep(0.05)
print(json.dumps({"happened": Slow.happened, **under_way.tally("slow").told()}))
"""
WAITING = """
class Recorder:
    def __init__(self, who):
        self.who = who
    def join(self, tenant, caller, group_id, **more):
        from load.storms.client import Answer
        calls.append([self.who, more.get("wait_s", 0) > 0])
        return Answer(409, {"code": "run_cancelled"})

calls = []
environment = Environment(user_classes=[storms.JoinHerd], host="http://127.0.0.1:9")
storming().begin(environment)
user = storms.JoinHerd(environment)
assert user.client is not user.waiters
from load.storms.join_herd import Herd
user.tenant, user.herds = None, [Herd("caller", "group", "quorum", [])]
user.client, user.waiters = Recorder("client"), Recorder("waiters")
user.join(0.0)
user._wait(user.herds[0])
print(json.dumps(calls))
"""
# A service that takes every spawn for a new one, and every completion; and a group that never ends.
BROKEN_SERVICE = """
import random
from load.storms.client import Answer, Tenant
from load.storms.overdue import Overdue
from load.storms.repeats import TURNS, Repeats
from load.storms.tally import Tally
from load.storms.workers import Worker
import load.storms.overdue, load.storms.workers
load.storms.overdue.TIMEOUT_S = load.storms.workers.SHORT_LEASE_S = load.storms.workers.LATE_S = 0

class Careless:
    spawned = 0
    def start(self, tenant):
        return "root"
    def spawn(self, tenant, caller, **more):
        self.spawned += 1
        return Answer(200, {"spawned_run_ids": [str(self.spawned)], "idempotent": False})
    def spawn_group(self, tenant, caller, size, **more):
        return Answer(200, {"orchestration_group_id": "group"})
    def join(self, tenant, caller, group_id, **more):
        return Answer(200, {"status": "running"})
    def claim(self, tenant, **more):
        return [{"run_id": "run", "lease": "lease", "attempt": 1}]
    def heartbeat(self, tenant, runs, **more):
        return {"run": "lost"}
    def complete(self, tenant, run, status, **more):
        gevent.sleep(0.001)
        return Answer(200, {})

client, tally, dice, tenant = Careless(), Tally(), random.Random(1), Tenant("tenant", "token", "orchestrator")
repeats = Repeats(client, tally)
for _ in TURNS:
    repeats.follow(tenant, "caller", "key", client.spawn(tenant, "caller"))
at_once = lambda act, *arguments: act(*arguments)
end = time.perf_counter() + 0.3
Worker(client, tally, dice, at_once, careless=True).run([tenant], lambda: time.perf_counter() >= end)
Overdue(client, client, tally, tenant, at_once).plant(0.0)
print(json.dumps(sorted({finding.split(":")[0] for finding in tally.findings})))
"""
# A service that streams the events of its log, or what else the argument has it do.
STREAMING_SERVICE = """
import random
from gevent.pywsgi import WSGIServer
from load.storms.client import Answer, Tenant
from load.storms.followers import Followers
from load.storms.tally import Tally
import load.storms.followers
load.storms.followers.MOST_LINES, load.storms.followers.PAGE = 40, 30

log = [f"{n}.0" for n in range(1, 101)]

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    after = environ.get("HTTP_LAST_EVENT_ID")
    start = log.index(after) + 1 if after else 0
    if ARGUMENT == "repeats":
        start = max(0, start - 1)
    if ARGUMENT == "loses" and after:
        start += 1
    yield b": connected\\nretry: 1000\\n\\n"
    for event_id in log[start:] if ARGUMENT != "ends early" else log[start:90]:
        yield b"id: %b\\nevent: x\\ndata: {}\\n\\n: heartbeat\\n\\n" % event_id.encode()
    yield b"event: end\\ndata: {}\\n\\n"

class Pages:
    def call(self, name, method, path, *, token):
        _, _, query = path.partition("?")
        terms = dict(term.split("=") for term in query.split("&"))
        start = log.index(terms["after"]) + 1 if "after" in terms else 0
        page = log[start : start + int(terms["limit"])]
        events = [{"id": event_id} for event_id in page]
        return Answer(200, {"events": events, "next": page[-1], "end": page[-1] == log[-1]})

server = WSGIServer(("127.0.0.1", 0), application, log=None)
server.start()
tally = Tally()
followers = Followers(
    f"http://127.0.0.1:{server.server_port}", Pages(), tally, random.Random(1),
    later=lambda act, *arguments: act(*arguments), over=lambda: False,
)
followers.take(Tenant("tenant", "token", "orchestrator"), "root")
print(json.dumps([sorted({finding.split(":")[0] for finding in tally.findings}), tally.notes, tally.errors]))
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
        ("CancellationStorm", ["cancelled root", "cancelled midway", "cancelled overlapping", "raced a fence", "logs"]),
        ("HighFanout", ["decided groups", "repeats"]),
        ("DeepTrees", ["the deepest run is at depth 0, wanted 10"]),
        ("DeniedCalls", ["max_fanout_exceeded", "target_not_published", "target_not_allowlisted", "scope_"]),
        ("MixedTenants", [f"by {way}" for way in ("read", "spawn", "cancel", "join", "complete")]),
        ("JoinHerd", ["decided by quorum", "decided by first_success", "decided by fail_fast", "decided by best_eff"]),
    ],
)
def test_a_storm_in_which_what_it_is_about_never_happened_fails(
    storm: str, promised: list[str], promises: dict[str, list[list[str]]]
) -> None:
    nothing, all_of_it = promises[storm]
    assert all(any(what in finding for finding in nothing) for what in promised), nothing
    assert all_of_it == []


def test_keys_leases_and_timeouts_that_do_not_hold_are_found() -> None:
    assert told_by(BROKEN_SERVICE) == ["conflict", "late", "lease", "overdue", "repeat", "twins"]


def test_a_stream_that_is_cut_and_resumed_is_held_against_the_log() -> None:
    found, notes, errors = told_by(STREAMING_SERVICE)
    assert (found, errors, notes["logs heard as they are"]) == ([], {}, 1)
    assert notes["streams cut"] > 5


@pytest.mark.parametrize("fault", ["repeats", "loses", "ends early"])
def test_a_stream_that_differs_from_the_log_is_found(fault: str) -> None:
    found, notes, _ = told_by(STREAMING_SERVICE, fault)
    assert found == ["events"]
    assert "logs heard as they are" not in notes


def test_who_waits_for_a_decision_takes_no_connection_from_the_arrivals() -> None:
    assert told_by(WAITING) == [["client", False], ["waiters", True]]


def test_users_begin_together_when_the_slowest_has_prepared() -> None:
    told = told_by(BEGINNING)
    # One could not prepare, which is told, and holds nobody up.
    assert told["happened"] == [*["prepared"] * 3, *["began"] * 2]
    assert told["errors"] == ["slow: ValueError: this one cannot prepare (1 times)"]
