"""The process in which DBOS Transact works: parents that enqueue children, and cancels with children.

Nobody listens to the queue of the children, so they stay enqueued, as our runs stay queued without a worker.
"""

import asyncio
import os
import sys
import threading
import time
import uuid

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID

from load.peers.worker_process import Figures, take_orders

QUEUE = "children"
POOL = 16
# A thread for each parent that enqueues, and some to spare.
THREADS = 64
# Enqueues of one parent at a time: beyond, Python's one lock is the bound.
AT_ONCE = 16

begin, end = threading.Event(), threading.Event()


@DBOS.workflow()
def child(n: int) -> int:
    """Never dequeued."""
    return n


@DBOS.workflow()
def spawner() -> int:
    """Enqueue one child after the other, between two signals; in a thread, where an enqueue is quickest."""
    count = 0
    begin.wait()
    while not end.is_set():
        DBOS.enqueue_workflow(QUEUE, child, count)
        count += 1
    return count


class Groups:
    """Parents that are to wait after they have enqueued their group, and how long it took them."""

    seconds: asyncio.Queue[float]
    cancelled: asyncio.Event


@DBOS.workflow()
async def async_child(n: int) -> int:
    """Never dequeued."""
    return n


@DBOS.workflow()
async def group(size: int) -> None:
    """Enqueue children, several at a time, and then stay active until the cancel has been measured."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def enqueue(n: int) -> None:
        async with turns:
            await DBOS.enqueue_workflow_async(QUEUE, async_child, n)

    started = time.perf_counter()
    await asyncio.gather(*(enqueue(n) for n in range(size)))
    Groups.seconds.put_nowait(time.perf_counter() - started)
    await Groups.cancelled.wait()


async def singles(parents: float, seconds: float) -> Figures:
    """Many parents at once, each with one enqueue at a time."""
    begin.clear()
    end.clear()
    handles = [await asyncio.to_thread(DBOS.start_workflow, spawner) for _ in range(int(parents))]
    started = time.perf_counter()
    begin.set()
    await asyncio.sleep(seconds)
    end.set()
    counts = await asyncio.gather(*(asyncio.to_thread(handle.get_result) for handle in handles))
    return {"children": sum(counts), "seconds": time.perf_counter() - started}


async def spawn_and_cancel(name: str, size: float) -> Figures:
    """A parent with a group of children, and then its cancel with all of them."""
    Groups.seconds, Groups.cancelled = asyncio.Queue(), asyncio.Event()
    with SetWorkflowID(name):
        handle = await DBOS.start_workflow_async(group, int(size))
    spawning = await Groups.seconds.get()
    started = time.perf_counter()
    await DBOS.cancel_workflow_async(name, cancel_children=True)
    cancelling = time.perf_counter() - started
    Groups.cancelled.set()
    await asyncio.gather(handle.get_result(), return_exceptions=True)
    return {"spawn_seconds": spawning, "cancel_seconds": cancelling}


async def flat_group(url: str, size: float) -> Figures:
    """Workflows of nobody's, enqueued by a client in one transaction."""

    def enqueue() -> float:
        client, engine = DBOSClient(system_database_url=url), sa.create_engine(url)
        try:
            with engine.connect():
                pass  # as a pool has a connection at hand
            started = time.perf_counter()
            with engine.begin() as transaction:
                for n in range(int(size)):
                    client.enqueue_in_transaction(transaction, {"workflow_name": "child", "queue_name": QUEUE}, n)
            return time.perf_counter() - started
        finally:
            client.destroy()
            engine.dispose()

    return {"seconds": await asyncio.to_thread(enqueue)}


def main(url: str) -> None:
    """Launch DBOS on its database and take orders."""
    config: DBOSConfig = {
        "name": "peers",
        "system_database_url": url,
        "sys_db_pool_size": POOL,
        "max_executor_threads": THREADS,
        "executor_id": uuid.uuid4().hex,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.listen_queues(["nobody"])
    DBOS.launch()
    DBOS.register_queue(QUEUE, on_conflict="never_update")
    asyncio.run(take_orders({"singles": singles, "spawn_and_cancel": spawn_and_cancel, "flat_group": flat_group}))
    # Its threads would hold the process up, and everything that was acknowledged is in the database.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
