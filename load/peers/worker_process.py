"""A peer in a process of its own, which is given orders by lines of JSON and answers likewise."""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15

Figures = Mapping[str, float]
Handler = Callable[..., Awaitable[Figures]]


class WorkerError(RuntimeError):
    """A peer could not do what it was asked for; the message holds what it said."""


@dataclass(frozen=True)
class Worker:
    """A running peer."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    async def ask(self, order: str, *, timeout_s: float, **arguments: float | str) -> Figures:
        """Have one thing done, and return the figures of it.

        Raises:
            WorkerError: it failed, ended, or took longer than `timeout_s`.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"order": order, "arguments": arguments}).encode() + b"\n")
        try:
            async with asyncio.timeout(timeout_s):
                return await self.answer()
        except TimeoutError as error:
            raise WorkerError(f"{self.name} has not done {order} within {timeout_s:.0f} s; see {self.log}") from error

    async def answer(self) -> Figures:
        """Read one answer."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} has ended:\n{self.log.read_text(errors='replace')[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        figures: Figures = answer["figures"]
        return figures


@asynccontextmanager
async def started(module: str, *arguments: str, log: Path) -> AsyncIterator[Worker]:
    """Start `python -m module`, wait until it is ready, and stop it in the end."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            cwd=REPOSITORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    worker = Worker(module.rpartition(".")[2], process, log)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await worker.answer()
        yield worker
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def take_orders(handlers: Mapping[str, Handler]) -> None:
    """Within the worker: say that it is ready, and do what is asked for until nothing more is."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def say(answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"figures": {}})
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        try:
            say({"figures": await handlers[asked["order"]](**asked["arguments"])})
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked is told
            traceback.print_exc()
            say({"error": f"{asked['order']}: {error!r}"})
