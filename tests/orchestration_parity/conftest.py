"""The loops and a graph worker in the process of the tests, for as long as a module of them runs."""

from collections.abc import AsyncIterator, Iterator

import pytest

from kernel import metrics
from service.dependencies import Services
from service.graph_worker import GraphWorker, working
from service.loops import loops_of


@pytest.fixture(scope="module", autouse=True)
async def graph_worker(services: Services, database_url: str) -> AsyncIterator[GraphWorker]:
    loops = loops_of(services.settings, services.database, services.wakeups)
    for loop in loops:
        await loop.start()
    async with working(services, database_url) as worker:
        yield worker
    for loop in loops:
        await loop.stop()


@pytest.fixture(scope="module", autouse=True)
def tenants_by_name() -> Iterator[None]:
    """Every tenant has a label of its own, however many there are: what is counted of it is compared."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "MAX_TENANT_LABELS", 1_000_000)
        yield
