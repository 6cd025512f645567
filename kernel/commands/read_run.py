"""Read one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from kernel.commands import asking
from kernel.commands.query_tree import Tree, read_tree
from kernel.domain.fences import Fence
from kernel.domain.principal import Principal
from kernel.domain.run import ACTIVE, RunStatus
from kernel.policy.engine import PolicyEngine
from kernel.store import drains, lineage
from kernel.store.engine import Database


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with all that is stored of it, its effective status, and the fence that cancelled it.

    `row` has the columns of `lineage.RUN`.
    """

    row: Mapping[str, Any]
    status: str
    fence: Fence | None
    tree: Tree | None


class ReadRun:
    """Asks policy, then reads."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._engine = engine

    async def execute(self, principal: Principal, run_id: UUID, *, include_tree: bool = False) -> RunView:
        """A run; with `include_tree` also the tree around it.

        Raises:
            NotFoundError: when the tenant has no such run.
            ForbiddenError: when it is outside the reach of the token.
        """
        standing = await asking.check_may_read(self._database, self._engine, principal, run_id)
        async with self._database.read() as session:
            # Anew, so that what is answered together was true together.
            standing = await asking.subject_facts(session, principal, run_id)
            row = await lineage.run(session, principal.tenant, run_id)
            # It may have ended since; it never comes back.
            status = row["status"] if RunStatus(row["status"]) not in ACTIVE else standing.subject.status
            fence = None
            if status == RunStatus.CANCELLED:
                end = (row["root_run_id"], row["finalized_seq"] or 0)
                fence = (await drains.fences_of_ends(session, principal.tenant, {run_id: end})).get(run_id)
            tree = await read_tree(session, principal, standing) if include_tree else None
        return RunView(row, status, fence, tree)
