"""A service that takes the request of a spawn and does nothing about it: what FastAPI makes of this machine.

Aims are rates of the machine that they were set on. How fast another one is, and this one on another day, shows in
what both make of the same thing. Run `python -m load.bare`; it prints its URL, and ends with SIGTERM.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import uvicorn
import uvloop
from fastapi import FastAPI

from load.subject import REPOSITORY
from service.routers.spawning import SpawnRunBody
from service.serving import listen, url_of

# Requests a second at 32 connections on the machine and the day on which the aims were set: DESIGN.md, "Spawn".
WHERE_AIMED = 10_500
START_TIMEOUT_S = 60.0

app = FastAPI()


@app.post("/internal/orchestration/spawn-run")
async def spawn_run(body: SpawnRunBody) -> dict[str, object]:
    """Answer as though something had been spawned."""
    return {"spawned_run_ids": [str(uuid4())], "caller_run_id": str(body.caller_run_id), "idempotent": False}


@asynccontextmanager
async def running() -> AsyncIterator[str]:
    """Start it, and stop it; its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "load.bare"), cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise RuntimeError(f"load.bare ended with {await process.wait()}; why, it has said above")
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def main() -> None:
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, loop="none", http="httptools", access_log=False, log_level="warning")
    print(url_of(listener), flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main())
