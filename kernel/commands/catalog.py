"""The catalog: tenants, agents, and what orchestrators may do.

Whatever a spawn's permission rests on raises the revision of the agent it belongs to, in the same transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from asyncpg import exceptions as pg
from sqlalchemy.exc import IntegrityError

from kernel.domain.errors import ConflictError, ForbiddenError, NotFoundError
from kernel.domain.principal import Principal
from kernel.identifiers import new_id
from kernel.store import catalog
from kernel.store.engine import Database, cause_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AllowlistEntry:
    """One entry, by exactly one of the three."""

    target_agent_id: UUID | None = None
    target_agent_slug: str | None = None
    capability_tag: str | None = None


class Tenants:
    """Tenants and their flags. Only the admin makes them; a tenant's token reaches its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, principal: Principal, values: Row) -> Row:
        """Make a tenant.

        Raises:
            ForbiddenError: to anybody but the admin.
            ConflictError: when the slug is taken.
        """
        check_admin(principal)
        try:
            async with self._database.write() as session:
                return await catalog.insert_tenant(session, {"tenant_id": new_id(), **values})
        except IntegrityError as error:
            _taken(error, f"slug: there is a tenant {values['slug']!r} already")

    async def change(self, principal: Principal, tenant_id: UUID, values: Row) -> Row:
        """Change a tenant's name, time zone or bound of active runs."""
        check_admin(principal)
        async with self._database.write() as session:
            changed = await catalog.update_tenant(session, tenant_id, values) if values else None
            return _found(changed or await catalog.find_tenant(session, tenant_id), f"tenant {tenant_id}")

    async def get(self, principal: Principal, tenant_id: UUID) -> Row:
        """A tenant with its flags, which are null where it has set none."""
        check_reaches(principal, tenant_id)
        async with self._database.read() as session:
            return _found(await catalog.find_tenant(session, tenant_id), f"tenant {tenant_id}")

    async def put_flags(self, principal: Principal, tenant_id: UUID, values: Row) -> None:
        """Set which surfaces the tenant has on. What is running goes on; new work is asked about at once."""
        check_reaches(principal, tenant_id)
        async with self._database.write() as session:
            _found(await catalog.find_tenant(session, tenant_id), f"tenant {tenant_id}")
            await catalog.put_flags(session, tenant_id, values)


class Agents:
    """A tenant's agents, their policies and allowlists. Changing an agent itself is a command: `revise_agent`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, tenant_id: UUID, values: Row) -> Row:
        """Make an agent, as a draft.

        Raises:
            ConflictError: when the tenant has an agent of this slug.
            NotFoundError: when an admin names a tenant that does not exist.
        """
        try:
            async with self._database.write() as session:
                return await catalog.insert_agent(session, {"tenant_id": tenant_id, "agent_id": new_id(), **values})
        except IntegrityError as error:
            if isinstance(cause_of(error), pg.ForeignKeyViolationError):
                raise NotFoundError(f"X-Tenant-ID: there is no tenant {tenant_id}") from error
            _taken(error, f"slug: the tenant has an agent {values['slug']!r} already")

    async def get(self, tenant_id: UUID, agent_id: UUID) -> Row:
        """One agent."""
        async with self._database.read() as session:
            return _agent(await catalog.find_agent(session, tenant_id, agent_id), agent_id)

    async def page(self, tenant_id: UUID, after: UUID | None, limit: int) -> tuple[Sequence[Row], UUID | None]:
        """A page of agents, and the id to go on after."""
        async with self._database.read() as session:
            rows = await catalog.page_of_agents(session, tenant_id, after, limit + 1)
        more = len(rows) > limit
        return rows[:limit], rows[limit - 1]["agent_id"] if more else None

    async def put_policy(self, tenant_id: UUID, agent_id: UUID, values: Row) -> None:
        """Set what an orchestrator may do."""
        async with self._database.write() as session:
            # The agent's row first: it is what a second writer waits for.
            _agent(await catalog.change_agent(session, tenant_id, agent_id, {}), agent_id)
            await catalog.put_policy(session, tenant_id, agent_id, values)

    async def get_policy(self, tenant_id: UUID, agent_id: UUID) -> Row | None:
        """The stored policy; None: the platform's defaults hold."""
        async with self._database.read() as session:
            _agent(await catalog.find_agent(session, tenant_id, agent_id), agent_id)
            return await catalog.find_policy(session, tenant_id, agent_id)

    async def put_allowlist(self, tenant_id: UUID, agent_id: UUID, entries: Sequence[AllowlistEntry]) -> None:
        """Set whom an orchestrator may spawn.

        Raises:
            NotFoundError: when an entry names an agent that the tenant does not have.
        """
        named = [entry.target_agent_id for entry in entries if entry.target_agent_id is not None]
        async with self._database.write() as session:
            _agent(await catalog.change_agent(session, tenant_id, agent_id, {}), agent_id)
            missing = await catalog.missing_agents(session, tenant_id, named) if named else set()
            for number, entry in enumerate(entries):
                if entry.target_agent_id in missing:
                    raise NotFoundError(f"entries[{number}].target_agent_id: there is no agent {entry.target_agent_id}")
            await catalog.replace_allowlist(
                session,
                tenant_id,
                agent_id,
                [
                    {
                        "target_agent_id": entry.target_agent_id,
                        "target_agent_slug": entry.target_agent_slug,
                        "capability_tag": entry.capability_tag,
                    }
                    for entry in entries
                ],
            )

    async def get_allowlist(self, tenant_id: UUID, agent_id: UUID) -> Sequence[Row]:
        """The entries, in order."""
        async with self._database.read() as session:
            _agent(await catalog.find_agent(session, tenant_id, agent_id), agent_id)
            return await catalog.find_allowlist(session, tenant_id, agent_id)


def check_admin(principal: Principal) -> None:
    """Check that it is the admin who asks.

    Raises:
        ForbiddenError: to anybody else.
    """
    if principal.kind != "admin":
        raise ForbiddenError("only the admin's token may do this")


def check_reaches(principal: Principal, tenant_id: UUID) -> None:
    """Check that a tenant is the caller's own; another's is answered as if it did not exist.

    Raises:
        NotFoundError: when it is not.
    """
    if principal.kind != "admin" and principal.tenant_id != tenant_id:
        raise NotFoundError(f"there is no tenant {tenant_id}")


def _found(row: Row | None, what: str) -> Row:
    if row is None:
        raise NotFoundError(f"there is no {what}")
    return row


def _agent(row: Row | None, agent_id: UUID) -> Row:
    return _found(row, f"agent {agent_id}")


def _taken(error: IntegrityError, detail: str) -> NoReturn:
    if isinstance(cause_of(error), pg.UniqueViolationError):
        raise ConflictError(detail) from error
    raise error
