"""What is set up for each point of a dimension."""

from collections.abc import AsyncIterator, Callable, Sequence

from load.scaling.catalogue import Dimension, Figure
from load.scaling.history import write_history
from load.scaling.probes import DRAINED, FENCES, MAX_CLAIMED, Scene, take, warm_up
from load.scaling.records import Record
from load.scaling.stage import LONG_S, Caller, Stage, Tenant, all_in_one, gather, several

# As many trees as there are connections, where nothing else is said.
TREES = 32
TEMPLATE = 3

Measure = Callable[[Sequence[int], frozenset[Figure]], AsyncIterator[list[Record]]]


async def tree_size(points: Sequence[int], wanted: frozenset[Figure]) -> AsyncIterator[list[Record]]:
    """One tree, with so many runs below the callers' root when the first figure is taken."""
    async with all_in_one() as stage:
        await prepare(stage)
        for x in points:
            (tenant,) = await stage.found(1)
            (root,) = await stage.roots(tenant, 1)
            links = await stage.chain(root, FENCES)
            # Where there are so many that it makes no difference, some of them will be claimed and completed.
            await stage.plant(links[-1], x, "worker" if x >= 10 * MAX_CLAIMED else "filler")
            await stage.settle()
            yield await take(Scene(stage, x, [root], root, links), wanted)


async def depth(points: Sequence[int], wanted: frozenset[Figure]) -> AsyncIterator[list[Record]]:
    """One caller so deep in a tree with another fence open, for without one nobody walks up."""
    async with all_in_one() as stage:
        await prepare(stage)
        for x in points:
            (tenant,) = await stage.found(1)
            (root,) = await stage.roots(tenant, 1)
            caller = (await stage.chain(root, x))[-1]
            await hold_open(stage, tenant, root)
            yield await take(await _ordinary(stage, x, [caller]), wanted)


async def tenants(points: Sequence[int], wanted: frozenset[Figure]) -> AsyncIterator[list[Record]]:
    """So many tenants, each with a tree that spawns in turn."""
    async with all_in_one() as stage:
        await prepare(stage)
        callers: list[Caller] = []
        for x in points:
            founded = await stage.found(x - len(callers))
            for roots in await gather([stage.roots(tenant, 1) for tenant in founded]):
                callers.extend(roots)
            yield await take(await _ordinary(stage, x, callers), wanted)


async def processes(points: Sequence[int], wanted: frozenset[Figure]) -> AsyncIterator[list[Record]]:
    """So many `remit serve`, and a `remit reconcile`, on one PostgreSQL and one OPA."""
    for x in points:
        async with several(x) as stage:
            await prepare(stage)
            (tenant,) = await stage.found(1)
            yield await take(await _ordinary(stage, x, await stage.roots(tenant, TREES)), wanted)


async def finished_runs(points: Sequence[int], wanted: frozenset[Figure]) -> AsyncIterator[list[Record]]:
    """So many runs of the tenant that have ended in earlier trees."""
    async with all_in_one() as stage:
        await prepare(stage)
        (tenant,) = await stage.found(1)
        template = await finished_tree(stage, tenant)
        present = 0
        for x in points:
            if x > present:
                seconds = await write_history(
                    stage.connect, tenant_id=tenant.tenant_id, template_root=template.run_id, runs=x - present
                )
                print(f"    {x - present:,} finished runs written in {seconds:.0f} s")
                present = x
            yield await take(await _ordinary(stage, x, await stage.roots(tenant, TREES)), wanted)


MEASURES: dict[Dimension, Measure] = {
    Dimension.TREE_SIZE: tree_size,
    Dimension.DEPTH: depth,
    Dimension.TENANTS: tenants,
    Dimension.PROCESSES: processes,
    Dimension.FINISHED_RUNS: finished_runs,
}


async def prepare(stage: Stage) -> None:
    """Have everything done once that is dearer the first time."""
    (tenant,) = await stage.found(1)
    await warm_up(await _ordinary(stage, 0, await stage.roots(tenant, TREES)))


async def hold_open(stage: Stage, tenant: Tenant, root: Caller) -> None:
    """Fence a run that a worker holds, with a grace that outlasts the measurement."""
    held = await stage.spawn(root, "patient")
    claim = {"agent_slugs": ["patient"], "max_runs": 1, "lease_s": 3600}
    runs = (await stage.call("POST", "/work/claim", claim, tenant.token))["runs"]
    if [run["run_id"] for run in runs] != [held.run_id]:
        raise RuntimeError(f"claimed {runs}")
    await stage.primitive(
        "cancel-subtree", root.token, caller_run_id=root.run_id, run_id=held.run_id, grace_s=3600, reason="held open"
    )


async def finished_tree(stage: Stage, tenant: Tenant) -> Caller:
    """A small tree, made and ended by the service itself."""
    (root,) = await stage.roots(tenant, 1)
    await stage.group(root, TEMPLATE)
    claim = {"agent_slugs": ["worker"], "max_runs": TEMPLATE, "lease_s": LONG_S // 2}
    for run in (await stage.call("POST", "/work/claim", claim, tenant.token))["runs"]:
        end = {"run_id": run["run_id"], "lease": run["lease"], "status": "completed", "output": {"ok": 1}}
        await stage.call("POST", "/work/complete", end, tenant.token)
    await stage.call("POST", f"/agents/runs/{root.run_id}/status", {"status": "completed"}, tenant.token)
    return root


async def _ordinary(stage: Stage, x: int, callers: list[Caller]) -> Scene:
    """Links to be fenced below the first caller, with some thousands of runs below them."""
    links = await stage.chain(callers[0], FENCES)
    await stage.plant(links[-1], DRAINED, "filler")
    await stage.settle()
    return Scene(stage, x, callers, callers[0], links)
