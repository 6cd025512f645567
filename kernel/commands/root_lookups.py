"""In which tree a run is: many who ask at once share a statement."""

from collections.abc import Sequence
from uuid import UUID

from kernel.commands.lanes import Lanes
from kernel.domain.errors import NotFoundError
from kernel.store import runs
from kernel.store.engine import Database


class RootLookups:
    """Looks roots up. A run's root never changes, so it is known before the lock of its tree is taken."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lanes: Lanes[UUID, UUID, UUID] = Lanes(self._look_up)

    async def root_of(self, tenant_id: UUID, run_id: UUID) -> UUID:
        """The root of a run.

        Raises:
            NotFoundError: when the tenant has no such run.
        """
        return await self._lanes.take(tenant_id, run_id)

    async def _look_up(self, tenant_id: UUID, run_ids: Sequence[UUID]) -> list[UUID | Exception]:
        async with self._database.read() as session:
            found = await runs.roots(session, tenant_id, run_ids)
        return [found.get(run_id) or NotFoundError(f"run_id: there is no run {run_id}") for run_id in run_ids]
