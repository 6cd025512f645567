"""Temporal: its dev server on a file, workers in a process of their own."""

from pathlib import Path

from load.peers import temporal_server, worker_process
from load.peers.comparison import Contender, Measurements, Work
from load.peers.processor_time import milliseconds_each, spent
from load.peers.verification import Verified, expect

CONCURRENT = 32
GROUP = 1_000
TIMEOUT_S = 180
WARM_UP_S = 1.0
WORKER = "load.peers.temporal_worker"
CHILDREN = "children"
WORKED = "children-with-workers"


async def measure(
    program: Path,
    directory: Path,
    measurements: Measurements,
    verified: Verified,
    seconds: float,
    *,
    cooperative: bool,
) -> None:
    """Take one run's figures on a database of its own, and count what is there after the server has been restarted."""
    database, log = directory / "temporal.db", directory / "temporal.log"
    async with (
        temporal_server.running(program, database, log) as server,
        worker_process.started(WORKER, server.address, log=directory / "temporal-worker.log") as worker,
    ):
        await worker.ask("singles", name="warm-up", parents=CONCURRENT, seconds=WARM_UP_S, timeout_s=TIMEOUT_S)
        everything = (server.pid, worker.process.pid)
        idle = spent(*everything)
        singles = await worker.ask("singles", name="single", parents=CONCURRENT, seconds=seconds, timeout_s=TIMEOUT_S)
        cost = milliseconds_each(idle, spent(*everything), singles["there"])
        measurements.add(Work.SINGLE_COST, Contender.TEMPORAL, cost)
        measurements.add(Work.SINGLES, Contender.TEMPORAL, singles["children"] / singles["seconds"])

        group = await worker.ask("spawn", name="group", size=GROUP, queue=CHILDREN, timeout_s=TIMEOUT_S)
        measurements.add(Work.GROUPS, Contender.TEMPORAL, GROUP / group["seconds"])
        ended = await worker.ask("terminate", name="group", timeout_s=TIMEOUT_S)
        measurements.add(Work.ACKNOWLEDGED, Contender.TEMPORAL, ended["acknowledged"] * 1000)
        measurements.add(Work.CANCELLED, Contender.TEMPORAL, ended["seconds"] * 1000)
        measurements.add(Work.DRAIN, Contender.TEMPORAL, (GROUP + 1) / ended["seconds"])
        expect("Temporal children terminated with their parent", ended["children"], GROUP, verified)

        if cooperative:
            await worker.ask("spawn", name="worked", size=GROUP, queue=WORKED, timeout_s=TIMEOUT_S)
            ended = await worker.ask("cancel", name="worked", timeout_s=TIMEOUT_S)
            measurements.add(Work.CANCELLED, Contender.TEMPORAL_COOPERATIVE, ended["seconds"] * 1000)
            expect("Temporal children cancelled by their workers", ended["children"], GROUP, verified)
    async with (
        temporal_server.running(program, database, log) as server,
        worker_process.started(WORKER, server.address, log=directory / "temporal-worker.log") as worker,
    ):
        children = "WorkflowType = 'Waiting' AND ParentWorkflowId"
        kept = await worker.ask(
            "count", query=f"{children} STARTS_WITH 'single-' AND ExecutionStatus = 'Running'", timeout_s=TIMEOUT_S
        )
        expect("Temporal children started singly, after a restart", kept["count"], singles["there"], verified)
        kept = await worker.ask(
            "count", query=f"{children} = 'group' AND ExecutionStatus = 'Terminated'", timeout_s=TIMEOUT_S
        )
        expect("Temporal children terminated, after a restart", kept["count"], GROUP, verified)
