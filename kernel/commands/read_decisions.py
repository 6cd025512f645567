"""Reading what policy decided."""

from uuid import UUID

from kernel.domain.errors import ForbiddenError, NotFoundError
from kernel.domain.principal import Principal
from kernel.store import decision_pages
from kernel.store.decision_pages import DecisionFilter, DecisionPage, Row
from kernel.store.engine import Database


class ReadDecisions:
    """The records of a tenant's decisions.

    They tell of the whole tenant, so a run's token reads none of them, whatever its scopes: it acts as that run only.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, principal: Principal, wanted: DecisionFilter, *, before: UUID | None, limit: int
    ) -> DecisionPage:
        """The decisions that match, the newest first.

        Raises:
            ForbiddenError: for a run's token.
        """
        _check_reader(principal)
        async with self._database.read() as session:
            return await decision_pages.page(session, principal.tenant, wanted, before=before, limit=limit)

    async def one(self, principal: Principal, decision_id: UUID) -> Row:
        """A decision, with what was asked and what was answered.

        Raises:
            ForbiddenError: for a run's token.
            NotFoundError: when the tenant has no such decision, or it is older than what is kept.
        """
        _check_reader(principal)
        async with self._database.read() as session:
            found = await decision_pages.find(session, principal.tenant, decision_id)
        if found is None:
            raise NotFoundError(f"decision_id: there is no decision {decision_id}")
        return found


def _check_reader(principal: Principal) -> None:
    if principal.kind == "run":
        raise ForbiddenError("a run's token does not read the tenant's decisions; a tenant's token does")
