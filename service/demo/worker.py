"""An agent runtime: a process that knows nothing but Remit's HTTP API. Claim, work, heartbeat, complete."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from pydantic import BaseModel, JsonValue, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.demo.cast import Role
from service.demo.client import Client, RefusedError
from service.demo.tasks import Task, Workplace, tasks_at
from service.demo.wire import Claim, Claimed, Heartbeat, LeaseVerdict

_LARGEST_CLAIM = 16
_CLAIM_WAIT_S = 10
_LARGEST_HEARTBEAT = 100


class WorkerSettings(BaseSettings):
    """Where the service is and the right to work for it; a token never stands among the arguments."""

    model_config = SettingsConfigDict(env_prefix="REMIT_DEMO_")

    url: str
    worker_token: SecretStr


@dataclass(frozen=True)
class Post:
    """What a worker takes on: for which agents, how many runs at once, and how it holds them."""

    roles: tuple[Role, ...]
    slots: int
    lease_s: int
    heartbeat_s: float


class _Acknowledged(BaseModel):
    """An answer to a completion; that it came is all that matters."""


@dataclass
class Held:
    """A run that this worker has leased."""

    client: Client
    claimed: Claimed
    token: str
    stopped: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def run_id(self) -> str:
        return self.claimed.run_id

    @property
    def input(self) -> dict[str, JsonValue]:
        return self.claimed.input

    async def complete(self, status: str, *, output: JsonValue = None, error: JsonValue = None) -> None:
        """Report how the run ended.

        Raises:
            RefusedError: when the lease is lost or a fence covers the run.
        """
        body: dict[str, JsonValue] = {"run_id": self.run_id, "lease": self.claimed.lease, "status": status}
        if output is not None:
            body["output"] = output
        if error is not None:
            body["error"] = error
        await self.client.post("/work/complete", body, _Acknowledged)

    async def complete_late(self) -> tuple[int, str]:
        try:
            await self.complete("completed", output={"late": True})
        except RefusedError as refused:
            return refused.problem.status, refused.problem.code
        return httpx2.codes.OK, "accepted"

    def stop(self) -> None:
        """Stop the work: what it would report is not wanted any more."""
        self.stopped = True
        if self.task is not None:
            self.task.cancel()


class Worker:
    """Claims as many runs as it has free slots, and keeps their leases alive until they are reported."""

    def __init__(self, client: Client, post: Post, tasks: dict[Role, Task]) -> None:
        self._client = client
        self._post = post
        self._tasks = tasks
        self._held: dict[str, Held] = {}
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as running:
            running.create_task(self._keep_leases())
            while True:
                for claimed in await self._claim():
                    held = Held(self._client, claimed, claimed.run_token)
                    self._held[claimed.run_id] = held
                    held.task = running.create_task(self._work(held))

    async def _claim(self) -> Sequence[Claimed]:
        while (free := self._post.slots - len(self._held)) == 0:
            self._freed.clear()
            await self._freed.wait()
        body: dict[str, JsonValue] = {
            "agent_slugs": list(self._post.roles),
            "max_runs": min(free, _LARGEST_CLAIM),
            "lease_s": self._post.lease_s,
            "wait_s": _CLAIM_WAIT_S,
        }
        return (await self._client.post("/work/claim", body, Claim)).runs

    async def _work(self, held: Held) -> None:
        try:
            await self._perform(held)
        except asyncio.CancelledError:
            # Told so by a heartbeat: this run ends here, the worker goes on. Otherwise the worker itself ends.
            if not held.stopped:
                raise
        except RefusedError as refused:
            # The lease is lost or the run is under a fence: somebody else has the last word on it.
            sys.stderr.write(f"{held.run_id}: {refused}\n")
        finally:
            if self._held.get(held.run_id) is held:
                del self._held[held.run_id]
            self._freed.set()

    async def _perform(self, held: Held) -> None:
        try:
            output = await self._tasks[Role(held.claimed.agent_slug)](held)
        except Exception as error:  # noqa: BLE001 - whatever a task raises is how its run failed
            sys.stderr.write(f"{held.run_id}: {error!r}\n")
            await held.complete("failed", error={"message": str(error)})
        else:
            await held.complete("completed", output=output)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._post.heartbeat_s)
            held = list(self._held.values())
            for start in range(0, len(held), _LARGEST_HEARTBEAT):
                for verdict in await self._heartbeat(held[start : start + _LARGEST_HEARTBEAT]):
                    self._heed(verdict)

    async def _heartbeat(self, held: Sequence[Held]) -> Sequence[LeaseVerdict]:
        leases: list[JsonValue] = [{"run_id": h.run_id, "lease": h.claimed.lease} for h in held]
        body: dict[str, JsonValue] = {"leases": leases, "extend_s": self._post.lease_s}
        return (await self._client.post("/work/heartbeat", body, Heartbeat)).leases

    def _heed(self, verdict: LeaseVerdict) -> None:
        held = self._held.get(verdict.run_id)
        if held is None:
            return
        if verdict.run_token is not None:
            held.token = verdict.run_token
        if verdict.status != "continue" and not held.stopped:
            held.stop()


async def work(post: Post, root: Path, journals: Path) -> None:
    """Be a worker until SIGTERM."""
    settings = WorkerSettings()
    with ThreadPoolExecutor(max_workers=1) as parsing:
        async with Client(settings.url, settings.worker_token.get_secret_value()) as client:
            worker = Worker(client, post, tasks_at(Workplace(client, root, journals, parsing)))
            running = asyncio.ensure_future(worker.run())
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, running.cancel)
            await asyncio.wait([running])
            if not running.cancelled():
                running.result()


def main() -> None:
    """Read the arguments and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", dest="roles", type=Role, action="append", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--lease-s", type=int, default=30)
    parser.add_argument("--heartbeat-s", type=float, default=5.0)
    given = parser.parse_args()
    post = Post(tuple(given.roles), given.slots, given.lease_s, given.heartbeat_s)
    asyncio.run(work(post, given.root, given.journals))


if __name__ == "__main__":
    main()
