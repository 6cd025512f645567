"""Clients that spawn, work and cancel in one tree at once, and know at each moment what must not succeed any more."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2

from kernel.store.engine import Database
from tests.kit import Kit, Run
from tests.orchestration_runtime_primitives.work import crew

CANCEL = "/internal/orchestration/cancel-subtree"
# What a client may hear in such a tree, and be right to.
REFUSALS = frozenset({"run_cancelled", "caller_not_active", "lease_lost", "facts_changed"})


@dataclass
class Storm:
    """One tree. Once a cancel has been answered, whatever is sent later on behalf of what it covers is refused."""

    kit: Kit
    root: Run
    dice: random.Random
    parents: dict[str, str | None] = field(default_factory=dict)
    orchestrators: list[str] = field(default_factory=list)
    fenced: set[str] = field(default_factory=set)
    starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    escapes: list[str] = field(default_factory=list)
    spawned: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.parents[self.root.run_id] = None
        self.orchestrators.append(self.root.run_id)

    def is_covered(self, run_id: str) -> bool:
        """Whether a fence over the run has been answered, as far as the clients know the way up."""
        above: str | None = run_id
        while above is not None:
            if above in self.fenced:
                return True
            above = self.parents.get(above)
        return False

    async def grow(self, size: int) -> None:
        """Begin with some branches, and so many workers below them."""
        for _ in range(max(1, min(12, size // 5))):
            await self.spawn_one("orchestrator")
        left = size - len(self.parents)
        while left > 0:
            left -= await self.spawn_group(min(left, max(1, size // 4)))

    async def spawn_one(self, target: str) -> None:
        parent, key = self.dice.choice(self.orchestrators), f"s{self.dice.getrandbits(64):x}"
        before = self.is_covered(parent)
        answer = self._heard(await self.kit.spawn(parent, key, target), before, f"{parent} spawned {key}")
        for run_id in answer.get("spawned_run_ids", ()):
            self.parents[run_id] = parent
            self.spawned += 1
            if target == "orchestrator":
                self.orchestrators.append(run_id)

    async def spawn_group(self, size: int) -> int:
        parent, key = self.dice.choice(self.orchestrators), f"g{self.dice.getrandbits(64):x}"
        mode = self.dice.choice(["all", "fail_fast", "first_success"])
        before = self.is_covered(parent)
        response = await self.kit.spawn_group(parent, key, size, join_mode=mode)
        answer = self._heard(response, before, f"{parent} spawned {key}")
        for run_id in answer.get("spawned_run_ids", ()):
            self.parents[run_id] = parent
            self.spawned += 1
        return size

    async def keep_spawning(self) -> None:
        """Spawn until all of the tree is cancelled, and then once more."""
        while not self.over:
            await self._spawn_something()
        await self._spawn_something()

    async def keep_working(self) -> None:
        """Claim, renew and complete until all of the tree is cancelled, and then once more."""
        while not self.over:
            await self._work()
        await self._work()

    async def cancel(self, run_id: str, **more: object) -> None:
        body = {"caller_run_id": self.root.run_id, "run_id": run_id, **more}
        before = self.root.run_id in self.fenced
        answer = self._heard(await self.kit.api.post(CANCEL, body), before, f"{run_id} was cancelled")
        if answer and more.get("include_root", True):
            self.fenced.add(run_id)
            self.over = self.over or run_id == self.root.run_id

    def _heard(self, response: httpx2.Response, covered_before: bool, what: str) -> dict[str, Any]:
        answer: dict[str, Any] = response.json()
        if response.is_success:
            if covered_before:
                self.escapes.append(f"{what}, which was covered when that was asked for")
            return answer
        self.refusals[answer["code"]] += 1
        assert answer["code"] in REFUSALS, answer
        return {}

    async def _spawn_something(self) -> None:
        draw = self.dice.random()
        if draw < 0.2:
            await self.spawn_group(self.dice.randint(1, 5))
        else:
            await self.spawn_one("orchestrator" if draw < 0.4 else "worker")

    async def _work(self) -> None:
        was_over = self.over
        body = {"agent_slugs": ["worker", "orchestrator"], "max_runs": self.dice.randint(1, 8), "lease_s": 120}
        runs = self._heard(await self.kit.api.post("/work/claim", body), False, "a claim").get("runs", [])
        for run in runs:
            self.parents.setdefault(run["run_id"], run["context"]["parent_run_id"])
            self.starts[run["run_id"], run["attempt"]] += 1
            if was_over:
                self.escapes.append(f"{run['run_id']} was claimed, though all was cancelled when that was asked for")
        for run in runs:
            await self._renew(run)
            await self._complete(run)

    async def _renew(self, run: dict[str, Any]) -> None:
        before = self.is_covered(run["run_id"])
        body = {"leases": [{"run_id": run["run_id"], "lease": run["lease"]}], "extend_s": 120}
        (told,) = self._heard(await self.kit.api.post("/work/heartbeat", body), False, "a heartbeat")["leases"]
        if before and told["status"] == "continue":
            self.escapes.append(f"{run['run_id']} was renewed, though covered when that was asked for")

    async def _complete(self, run: dict[str, Any]) -> None:
        before = self.is_covered(run["run_id"])
        status = self.dice.choice(["completed", "completed", "failed"])
        body = {"run_id": run["run_id"], "lease": run["lease"], "status": status}
        if self._heard(await self.kit.api.post("/work/complete", body), before, f"{run['run_id']} ended"):
            self.ends[run["run_id"]] += 1


async def rage(storm: Storm, *, spawners: int, claimers: int) -> None:
    """Let the clients loose, cancel branches under their feet, and at last all of it."""

    async def cancel() -> None:
        for _ in range(3):
            await asyncio.sleep(storm.dice.uniform(0, 0.05))
            await storm.cancel(storm.dice.choice(storm.orchestrators[1:]))
        await storm.cancel(storm.root.run_id, include_root=False)
        await storm.cancel(storm.root.run_id)

    await asyncio.gather(
        cancel(),
        *(storm.keep_spawning() for _ in range(spawners)),
        *(storm.keep_working() for _ in range(claimers)),
    )


@dataclass
class Floor:
    """Workers of one tenant that share what they hold, so that a run is renewed, ended and expired at once."""

    kit: Kit
    database: Database
    dice: random.Random
    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    async def claim(self) -> None:
        runs = await crew.claim(self.kit, "worker", "orchestrator", max_runs=self.dice.randint(1, 30), lease_s=60)
        self.starts.update((run["run_id"], run["attempt"]) for run in runs)
        self.held.update({run["run_id"]: run for run in runs})

    async def renew(self) -> None:
        some = self._some(40)
        if some:
            await crew.heartbeat(self.kit, *some)

    async def complete(self) -> None:
        some = self._some(4)
        answers = await asyncio.gather(*(crew.complete(self.kit, run) for run in some))
        for run, answer in zip(some, answers, strict=True):
            told = answer.json()
            assert answer.is_success or told["code"] in {"lease_lost", "run_cancelled"}, told
            if answer.is_success and "X-Idempotency-Reused" not in answer.headers:
                self.ends[run["run_id"]] += 1

    async def let_one_expire(self) -> None:
        for run in self._some(1):
            await crew.let_expire(self.database, run["run_id"])

    def _some(self, most: int) -> list[dict[str, Any]]:
        return [self.held[run_id] for run_id in self.dice.sample(sorted(self.held), min(len(self.held), most))]
