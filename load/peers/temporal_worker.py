"""The process in which Temporal's workers and its client run: parents that start children, and cancels of both.

No worker asks for what lies on the children's queue, so they stay started and not begun, as our runs stay queued.
"""

import asyncio
import sys
import time
from contextlib import AsyncExitStack

from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from temporalio.workflow import ParentClosePolicy

from load.peers.worker_process import Figures, take_orders

PARENTS = "parents"
CHILDREN = "children"
WORKED = "children-with-workers"
POLLERS = 16
TASKS = 200
# Nothing is evicted while it is measured.
CACHED = 5_000
CANCEL_TIMEOUT_S = 120.0
POLL_S = 0.25
LEAD_S = 1.5


@workflow.defn
class Waiting:
    """A child, which would wait until it is cancelled."""

    @workflow.run
    async def run(self, _: int) -> None:
        """Wait."""
        await workflow.wait_condition(lambda: False)


@workflow.defn
class Spawner:
    """A parent that starts one child after the other, within a span of time."""

    @workflow.run
    async def run(self, begin: float, seconds: float) -> int:
        """Return how many had started before the end of the span."""
        await workflow.sleep(max(0.0, begin - workflow.time()))
        count = 0
        while True:
            await workflow.start_child_workflow(
                Waiting.run, count, task_queue=CHILDREN, parent_close_policy=ParentClosePolicy.ABANDON
            )
            if workflow.time() > begin + seconds:
                return count
            count += 1


@workflow.defn
class Group:
    """A parent that starts many children in one task, and stays open."""

    def __init__(self) -> None:
        """Begin without children."""
        self._started = False

    @workflow.run
    async def run(self, size: int, queue: str, policy: int) -> None:
        """Start them all, and wait to be ended; the policy says what becomes of them then."""
        await asyncio.gather(
            *(
                workflow.start_child_workflow(
                    Waiting.run, n, task_queue=queue, parent_close_policy=ParentClosePolicy(policy)
                )
                for n in range(size)
            )
        )
        self._started = True
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def all_started(self) -> None:
        """Answer once the server has acknowledged every child."""
        await workflow.wait_condition(lambda: self._started)


class Orders:
    """What the client does when it is asked."""

    def __init__(self, client: Client) -> None:
        """Work through this client."""
        self._client = client

    async def singles(self, name: str, parents: float, seconds: float) -> Figures:
        """Many parents at once, each with one start at a time."""
        begin = time.time() + LEAD_S
        handles = await asyncio.gather(
            *(
                self._client.start_workflow(
                    Spawner.run, args=[begin, seconds], id=f"{name}-{number}", task_queue=PARENTS
                )
                for number in range(int(parents))
            )
        )
        if time.time() > begin:
            raise RuntimeError("the parents took longer to start than they were given")
        counts = await asyncio.gather(*(handle.result() for handle in handles))
        # Each has one more, which came after the end.
        return {"children": sum(counts), "seconds": seconds, "there": sum(counts) + len(counts)}

    async def spawn(self, name: str, size: float, queue: str) -> Figures:
        """A parent with a group of children, to be ended with it: by their workers, where they have some."""
        policy = ParentClosePolicy.REQUEST_CANCEL if queue == WORKED else ParentClosePolicy.TERMINATE
        started = time.perf_counter()
        handle = await self._client.start_workflow(
            Group.run, args=[int(size), queue, policy], id=name, task_queue=PARENTS
        )
        await handle.execute_update(Group.all_started)
        return {"seconds": time.perf_counter() - started}

    async def terminate(self, name: str) -> Figures:
        """End a parent; the server ends its children, as they were started to be."""
        return await self._end(self._client.get_workflow_handle(name), by_workers=False)

    async def cancel(self, name: str) -> Figures:
        """Ask a parent to cancel; it hands that on, and each child's worker acknowledges."""
        return await self._end(self._client.get_workflow_handle(name), by_workers=True)

    async def _end(self, handle: WorkflowHandle[object, object], *, by_workers: bool) -> Figures:
        begun, started = time.time(), time.perf_counter()
        await (handle.cancel() if by_workers else handle.terminate())
        acknowledged = time.perf_counter() - started
        children = f"ParentWorkflowId = '{handle.id}'"
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            running = f"{children} AND ExecutionStatus = 'Running'"
            while (await self._client.count_workflows(running)).count:  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(POLL_S)
        ended = {WorkflowExecutionStatus.CANCELED if by_workers else WorkflowExecutionStatus.TERMINATED}
        # By the server's own clock, which is this machine's: how often we ask does not count.
        closed = [
            child.close_time.timestamp()
            async for child in self._client.list_workflows(children)
            if child.close_time is not None and child.status in ended
        ]
        return {"acknowledged": acknowledged, "seconds": max(closed) - begun, "children": len(closed)}

    async def count(self, query: str) -> Figures:
        """How many executions there are."""
        return {"count": (await self._client.count_workflows(query)).count}


async def main(address: str) -> None:
    """Connect, start the workers, and take orders."""
    client = await Client.connect(address)
    orders = Orders(client)
    async with AsyncExitStack() as stack:
        for queue, kinds in ((PARENTS, [Spawner, Group]), (WORKED, [Waiting])):
            await stack.enter_async_context(
                Worker(
                    client,
                    task_queue=queue,
                    workflows=kinds,
                    # The workflows here are known to be deterministic, and the sandbox costs.
                    workflow_runner=UnsandboxedWorkflowRunner(),
                    max_cached_workflows=CACHED,
                    max_concurrent_workflow_tasks=TASKS,
                    max_concurrent_workflow_task_polls=POLLERS,
                )
            )
        await take_orders(
            {
                "singles": orders.singles,
                "spawn": orders.spawn,
                "terminate": orders.terminate,
                "cancel": orders.cancel,
                "count": orders.count,
            }
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
