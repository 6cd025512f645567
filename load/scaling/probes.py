"""How each figure is taken. Every probe leaves the deployment fit for the next one."""

import asyncio
import os
import re
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path

from load.generator import find_or_install
from load.scaling.catalogue import Figure
from load.scaling.records import Record
from load.scaling.stage import Caller, Cpu, Stage, memory, used

ROUNDS = 3
CONNECTIONS = 32
SPAWN_S = 2
DECIDE_S = 1
GROUP_SIZE = 1_000
GROUPS = 6
FENCES = 5
DRAINED = 10_000
WORKERS = 16
WORKED = 960
MAX_CLAIMED = ROUNDS * WORKED
CLAIMED_AT_ONCE = 10
PAGES = 40
SCRAPES = 10
LOOK_S = 0.02
SPAWN = "/internal/orchestration/spawn-run"
CALLS = Path(__file__).with_name("calls.lua")


@dataclass(frozen=True, slots=True)
class Scene:
    """Where figures are taken.

    Attributes:
        x: the point on the axis.
        x: the point on the axis.
        callers: the runs that spawn, in turn.
        viewed: the run whose subtree is looked at.
        links: a chain below a caller, whose links are fenced.
    """

    stage: Stage
    x: int
    callers: Sequence[Caller]
    viewed: Caller
    links: Sequence[Caller]


@dataclass(frozen=True, slots=True)
class Round:
    """One taking of a figure: its value, and what it cost for how many of what it counts."""

    value: float
    cpu: Cpu | None = None
    count: int = 0


Probe = Callable[[Scene], Awaitable[list[Round]]]


async def spawn(scene: Scene) -> list[Round]:
    """Single spawns over the callers, as fast as 32 connections are answered."""
    return [await _flood(scene, SPAWN, SPAWN_S) for _ in range(ROUNDS)]


async def decide(scene: Scene) -> list[Round]:
    """Likewise, without writing anything."""
    return [await _flood(scene, f"{SPAWN}?dry_run=true", DECIDE_S) for _ in range(ROUNDS)]


async def group(scene: Scene) -> list[Round]:
    """Groups of 1,000, one after the other."""
    rounds = []
    for caller in islice(cycle(scene.callers), GROUPS):
        before, started = used(), time.perf_counter()
        await scene.stage.group(caller, GROUP_SIZE)
        seconds = time.perf_counter() - started
        rounds.append(Round(GROUP_SIZE / seconds, used().since(before), GROUP_SIZE))
    return rounds


async def work(scene: Scene) -> list[Round]:
    """Workers that claim ten runs at a time and complete each, over the callers' tenants."""
    return [await _work(scene) for _ in range(ROUNDS)]


async def tree_page(scene: Scene) -> list[Round]:
    """The first 200 nodes of a subtree."""
    rounds = []
    for _ in range(PAGES):
        before, started = used(), time.perf_counter()
        await scene.stage.primitive("query-tree", scene.viewed.token, run_id=scene.viewed.run_id)
        rounds.append(Round((time.perf_counter() - started) * 1000, used().since(before), 1))
    return rounds


async def fence_and_drain(scene: Scene) -> dict[Figure, list[Round]]:
    """Fence links of a chain from the lowest up, each drained before the next; the first one's drain is the figure."""
    fences: list[Round] = []
    drains: list[Round] = []
    for link in reversed(scene.links):
        before, started = used(), time.perf_counter()
        answer = await scene.stage.primitive(
            "cancel-subtree", link.token, caller_run_id=link.run_id, run_id=link.run_id, reason="measured"
        )
        fences.append(Round((time.perf_counter() - started) * 1000))
        runs, seconds = await _drained(scene, link, answer["cancellation_id"])
        if not drains:
            drains.append(Round(runs / seconds, used().since(before), runs))
    return {Figure.FENCE: fences, Figure.DRAIN: drains}


async def scrape(scene: Scene) -> list[Round]:
    """Read the metrics of an API process."""
    rounds = []
    for _ in range(SCRAPES):
        before, started = used(), time.perf_counter()
        async with scene.stage.http.get(f"{scene.stage.urls[0]}/metrics") as response:
            await response.read()
        rounds.append(Round((time.perf_counter() - started) * 1000, used().since(before), 1))
    return rounds


async def take(scene: Scene, wanted: frozenset[Figure]) -> list[Record]:
    """The wanted figures of a scene. What changes it most comes last."""
    rounds: dict[Figure, list[Round]] = {}
    for figure, probe in PROBES.items():
        if figure in wanted:
            rounds[figure] = await probe(scene)
    if wanted & {Figure.FENCE, Figure.DRAIN}:
        found = await fence_and_drain(scene)
        rounds |= {figure: found[figure] for figure in found if figure in wanted}
    if Figure.SCRAPE in wanted:
        rounds[Figure.SCRAPE] = await scrape(scene)
    if Figure.MEMORY in wanted:
        rounds[Figure.MEMORY] = [Round(memory())]
    return [summary(scene.x, figure, taken) for figure, taken in rounds.items()]


async def warm_up(scene: Scene) -> None:
    """Do a little of everything."""
    await _flood(scene, SPAWN, SPAWN_S)
    await scene.stage.group(scene.callers[0], GROUP_SIZE)
    await _work(scene)
    await fence_and_drain(scene)


# In this order.
PROBES: dict[Figure, Probe] = {
    Figure.TREE_PAGE: tree_page,
    Figure.DECISION: decide,
    Figure.SPAWN: spawn,
    Figure.GROUP: group,
    Figure.WORK: work,
}


def summary(x: int, figure: Figure, rounds: Sequence[Round]) -> Record:
    """The rounds of a figure as one record: medians of values, and CPU time over all that was counted."""
    values = [taken.value for taken in rounds]
    counted = sum(taken.count for taken in rounds)
    shares: list[float | None] = [None, None, None]
    if counted:
        costs = [taken.cpu for taken in rounds if taken.cpu is not None]
        shares = [
            sum(cpu.api for cpu in costs) * 1000 / counted,
            sum(cpu.postgres for cpu in costs) * 1000 / counted,
            sum(cpu.opa for cpu in costs) * 1000 / counted,
        ]
    return Record(x, figure, statistics.median(values), min(values), max(values), *shares)


async def _flood(scene: Scene, path: str, seconds: int) -> Round:
    before = used()
    answers = await asyncio.gather(
        *(_wrk(url, scene.callers, path, seconds, len(scene.stage.urls)) for url in scene.stage.urls)
    )
    count = sum(requests for requests, _ in answers)
    return Round(sum(rate for _, rate in answers), used().since(before), count)


async def _wrk(url: str, callers: Sequence[Caller], path: str, seconds: int, share: int) -> tuple[int, float]:
    """Requests answered, and how many a second, of one of `share` load generators."""
    program = find_or_install()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{caller.run_id} {caller.token}\n" for caller in callers)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *(program, "-t1", f"-c{CONNECTIONS // share}", f"-d{seconds}", "--timeout", "30s", "-s", str(CALLS), url),
            env={**os.environ, "CALLS_FILE": file.name, "CALLS_PATH": path, "CALLS_SALT": uuid.uuid4().hex},
            stdout=asyncio.subprocess.PIPE,
        )
        out = (await process.communicate())[0].decode()
    return read_wrk(out)


def read_wrk(out: str) -> tuple[int, float]:
    """What `wrk` says of how many requests were answered, and how many a second.

    Raises:
        RuntimeError: when one was refused, or none answered.
    """
    requests = re.search(r"(\d+) requests in", out)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", out)
    if "Non-2xx" in out or "Socket errors" in out or requests is None or rate is None:
        raise RuntimeError(out)
    return int(requests[1]), float(rate[1])


async def _work(scene: Scene) -> Round:
    stage = scene.stage
    at_work = list(islice(cycle(scene.callers), WORKERS))
    tokens = list(dict.fromkeys(caller.token for caller in at_work))
    by_token = {caller.token: caller for caller in at_work}
    each = -(-WORKED // len(tokens))
    for token in tokens:
        await stage.group(by_token[token], each)
    left = dict.fromkeys(tokens, each)

    async def one(token: str) -> int:
        done = 0
        while left[token] > 0:
            wanted = min(CLAIMED_AT_ONCE, left[token])
            left[token] -= wanted
            body = {"agent_slugs": ["worker"], "max_runs": wanted, "lease_s": 120}
            runs = (await stage.call("POST", "/work/claim", body, token))["runs"]
            for run in runs:
                end = {"run_id": run["run_id"], "lease": run["lease"], "status": "completed", "output": {"ok": 1}}
                await stage.call("POST", "/work/complete", end, token)
            done += len(runs)
        return done

    before, started = used(), time.perf_counter()
    count = sum(await asyncio.gather(*(one(caller.token) for caller in at_work)))
    return Round(count / (time.perf_counter() - started), used().since(before), count)


async def _drained(scene: Scene, link: Caller, cancellation_id: str) -> tuple[int, float]:
    path = f"/internal/orchestration/cancellations/{cancellation_id}"
    while True:
        shown = await scene.stage.call("GET", path, None, link.token)
        if shown["state"] == "drained":
            took = datetime.fromisoformat(shown["drained_at"]) - datetime.fromisoformat(shown["fenced_at"])
            return shown["cancelled_count"], max(took.total_seconds(), 1e-3)
        await asyncio.sleep(LOOK_S)
