"""Callers that spawn without a pause, keep account of what was promised, and insist on a key after a fault."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.kit import Api, Kit

# What a caller may hear while the service, its database or its policy engine is away.
AWAY = {503}
RETRY_S = 0.1


@dataclass
class Load:
    """What the callers have been promised: for each key, the runs."""

    kit: Kit
    callers: Sequence[str]
    acknowledged: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    unavailable: int = 0
    _more: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def acknowledge(self, more: int) -> None:
        """Return when so many further spawns have been acknowledged."""
        async with self._more:
            wanted = len(self.acknowledged) + more
            await asyncio.wait_for(self._more.wait_for(lambda: len(self.acknowledged) >= wanted), 120)

    async def check(self, connection: asyncpg.Connection) -> None:
        """Every promise is kept: the runs are there, under their keys."""
        rows = await connection.fetch(
            "SELECT run_id::text, parent_run_id::text, spawn_key FROM agent_runs WHERE tenant_id = $1::uuid",
            self.kit.tenant_id,
        )
        kept = {row["run_id"]: (row["parent_run_id"], row["spawn_key"]) for row in rows}
        for (caller, key), run_ids in self.acknowledged.items():
            keys = [key] if len(run_ids) == 1 else [f"{key}:{number}" for number in range(len(run_ids))]
            assert [kept.get(run_id) for run_id in run_ids] == [(caller, name) for name in keys]

    async def repeat(self, sample: int) -> None:
        """Some of the keys, sent again, answer as the first time."""
        promised = list(self.acknowledged.items())
        for (caller, key), run_ids in random.Random(0).sample(promised, min(sample, len(promised))):
            answer = await self._send(self.kit, caller, key, len(run_ids))
            assert answer.status_code == 200, answer.text
            assert answer.json()["spawned_run_ids"] == run_ids
            assert answer.json()["idempotent"] is True

    async def call(self, number: int, client: httpx2.AsyncClient) -> None:
        """Spawn for ever, one key after the other; a key is tried until it is answered."""
        mine = Kit(Api(client, self.kit.api.token), self.kit.admin, self.kit.tenant_id, self.kit.slug)
        dice = random.Random(number)
        turn = 0
        while True:
            turn += 1
            caller, key = dice.choice(self.callers), f"{number}-{turn}"
            size = dice.choice([1, 1, 3])
            answer = await self._insist(mine, caller, key, size)
            async with self._more:
                self.acknowledged[caller, key] = answer["spawned_run_ids"]
                self._more.notify_all()

    async def _insist(self, mine: Kit, caller: str, key: str, size: int) -> dict[str, Any]:
        while True:
            with suppress(httpx2.TransportError):
                answer = await self._send(mine, caller, key, size)
                if answer.status_code == 200:
                    spawned: dict[str, Any] = answer.json()
                    return spawned
                assert answer.status_code in AWAY, answer.text
                self.unavailable += 1
            await asyncio.sleep(RETRY_S)

    async def _send(self, mine: Kit, caller: str, key: str, size: int) -> httpx2.Response:
        return await (mine.spawn(caller, key) if size == 1 else mine.spawn_group(caller, key, size))


@asynccontextmanager
async def under_load(kit: Kit, url: str, callers: Sequence[str], *, clients: int = 8) -> AsyncIterator[Load]:
    """Let clients spawn on behalf of some runs while the block runs."""
    load = Load(kit, callers)
    async with httpx2.AsyncClient(base_url=url, timeout=60.0, verify=False) as client:
        calling = [asyncio.create_task(load.call(number, client)) for number in range(clients)]
        try:
            yield load
        finally:
            for task in calling:
                task.cancel()
            ends = await asyncio.gather(*calling, return_exceptions=True)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError):
            pytest.fail(f"a caller gave up: {end!r}")
