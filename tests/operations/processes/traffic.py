"""Light load over every API of a fleet: callers that insist on an answer, and remember what they were told."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.kit import Run

PAUSE_S = 0.05
PATIENCE_S = 30.0
TARGET = "worker"


@dataclass
class Traffic:
    """What was acknowledged: spawns by key, fences by id, and the runs that were completed."""

    clients: Sequence[httpx2.AsyncClient]
    token: str
    callers: Sequence[Run]
    spawned: dict[tuple[str, str], str] = field(default_factory=dict)
    fenced: dict[str, str] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    refused: int = 0
    _told: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def more(self, spawns: int) -> None:
        """Return when so many further spawns are acknowledged."""
        async with self._told, asyncio.timeout(PATIENCE_S):
            wanted = len(self.spawned) + spawns
            await self._told.wait_for(lambda: len(self.spawned) >= wanted)

    async def insist(
        self, path: str, body: Mapping[str, object], token: str, *, first: int = 0, final: Sequence[int] = ()
    ) -> httpx2.Response:
        """Ask one API after the other until one of them answers; an answer among `final` is one, too."""
        async with asyncio.timeout(PATIENCE_S):
            turn = first
            while True:
                client = self.clients[turn % len(self.clients)]
                turn += 1
                with suppress(httpx2.TransportError):
                    answer = await client.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
                    if answer.is_success or answer.status_code in final:
                        return answer
                    assert answer.status_code == 503, answer.text
                    self.refused += 1
                await asyncio.sleep(PAUSE_S)

    async def spawn(self, caller: Run, key: str, first: int) -> dict[str, Any]:
        body = {
            "caller_run_id": caller.run_id,
            "target_agent_slug": TARGET,
            "scope_subset": ["read"],
            "idempotency_key": key,
        }
        spawned: dict[str, Any] = (
            await self.insist("/internal/orchestration/spawn-run", body, caller.token, first=first)
        ).json()
        return spawned

    async def keep_spawning(self, number: int) -> None:
        dice = random.Random(number)
        turn = 0
        while True:
            turn += 1
            caller, key = dice.choice(self.callers), f"{number}-{turn}"
            (run_id,) = (await self.spawn(caller, key, turn))["spawned_run_ids"]
            async with self._told:
                self.spawned[caller.run_id, key] = run_id
                self._told.notify_all()
            await asyncio.sleep(PAUSE_S)

    async def keep_cancelling(self) -> None:
        dice = random.Random(0)
        by_caller = {caller.run_id: caller for caller in self.callers}
        while True:
            await self.more(5)
            (caller_id, _), run_id = dice.choice(list(self.spawned.items()))
            caller = by_caller[caller_id]
            body = {"caller_run_id": caller_id, "run_id": run_id}
            answer = await self.insist("/internal/orchestration/cancel-subtree", body, caller.token)
            self.fenced[answer.json()["cancellation_id"]] = run_id

    async def keep_working(self) -> None:
        claim = {"agent_slugs": [TARGET], "max_runs": 2, "lease_s": 30, "wait_s": 0.5}
        turn = 0
        while True:
            turn += 1
            for run in (await self.insist("/work/claim", claim, self.token, first=turn)).json()["runs"]:
                body = {"run_id": run["run_id"], "lease": run["lease"], "status": "completed", "output": {"n": turn}}
                # What was cancelled meanwhile cannot be completed any more.
                answer = await self.insist("/work/complete", body, self.token, first=turn, final=[409])
                if answer.is_success:
                    self.completed.add(run["run_id"])


@asynccontextmanager
async def flowing(urls: Sequence[str], token: str, callers: Sequence[Run]) -> AsyncIterator[Traffic]:
    """Traffic for as long as the block lasts. Nothing is under way any more when it has ended."""
    clients = [httpx2.AsyncClient(base_url=url, timeout=10.0, trust_env=False) for url in urls]
    traffic = Traffic(clients, token, callers)
    doing = [
        asyncio.create_task(work)
        for work in (
            *(traffic.keep_spawning(number) for number in range(3)),
            traffic.keep_cancelling(),
            traffic.keep_working(),
        )
    ]
    try:
        yield traffic
    finally:
        for task in doing:
            task.cancel()
        ends = await asyncio.gather(*doing, return_exceptions=True)
        for client in clients:
            await client.aclose()
    assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == [], "a caller gave up"
