"""Tenants, their flags, their agents, and what their orchestrators may do."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Executable, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from kernel.store.engine import ReadSession, WriteSession
from kernel.store.tables import agents, orchestrator_allowlist, orchestrator_policies, tenant_flags, tenants

Row = Mapping[str, Any]


async def find_tenant(session: ReadSession, tenant_id: UUID) -> Row | None:
    """A tenant with its flags (null where none are stored)."""
    statement = (
        select(
            tenants,
            tenant_flags.c.option_a_graphspec_v2.label("option_a"),
            tenant_flags.c.option_b_runtime_primitives.label("option_b"),
        )
        .outerjoin(tenant_flags, tenant_flags.c.tenant_id == tenants.c.tenant_id)
        .where(tenants.c.tenant_id == tenant_id)
    )
    return await _one(session, statement)


async def insert_tenant(session: WriteSession, values: Row) -> Row:
    """A new tenant; the unique slug decides a race."""
    return await _only(session, insert(tenants).values(**values).returning(tenants))


async def update_tenant(session: WriteSession, tenant_id: UUID, values: Row) -> Row | None:
    """The tenant after a change."""
    statement = update(tenants).where(tenants.c.tenant_id == tenant_id).values(**values).returning(tenants)
    return await _one(session, statement)


async def put_flags(session: WriteSession, tenant_id: UUID, values: Row) -> None:
    """Set a tenant's flags."""
    statement = upsert(tenant_flags).values(tenant_id=tenant_id, **values)
    await session.core.execute(
        statement.on_conflict_do_update(index_elements=["tenant_id"], set_={**values, "updated_at": func.now()})
    )


async def find_agent(session: ReadSession, tenant_id: UUID, agent_id: UUID) -> Row | None:
    """An agent of the tenant."""
    statement = select(agents).where(agents.c.tenant_id == tenant_id, agents.c.agent_id == agent_id)
    return await _one(session, statement)


async def page_of_agents(session: ReadSession, tenant_id: UUID, after: UUID | None, limit: int) -> Sequence[Row]:
    """Agents in the order in which they were made, beyond `after`."""
    statement = select(agents).where(agents.c.tenant_id == tenant_id).order_by(agents.c.agent_id).limit(limit)
    if after is not None:
        statement = statement.where(agents.c.agent_id > after)
    return await _all(session, statement)


async def insert_agent(session: WriteSession, values: Row) -> Row:
    """A new agent; the slug, unique in the tenant, decides a race."""
    return await _only(session, insert(agents).values(**values).returning(agents))


async def change_agent(session: WriteSession, tenant_id: UUID, agent_id: UUID, values: Row) -> Row | None:
    """The agent after a change, which raises its revision: a spawn decided before is asked about again."""
    statement = (
        update(agents)
        .where(agents.c.tenant_id == tenant_id, agents.c.agent_id == agent_id)
        .values(**values, revision=agents.c.revision + 1, updated_at=func.now())
        .returning(agents)
    )
    return await _one(session, statement)


async def find_policy(session: ReadSession, tenant_id: UUID, agent_id: UUID) -> Row | None:
    """The stored policy of an orchestrator."""
    table = orchestrator_policies
    statement = select(table).where(table.c.tenant_id == tenant_id, table.c.agent_id == agent_id)
    return await _one(session, statement)


async def put_policy(session: WriteSession, tenant_id: UUID, agent_id: UUID, values: Row) -> None:
    """Set an orchestrator's policy; the caller raises the agent's revision in the same transaction."""
    statement = upsert(orchestrator_policies).values(tenant_id=tenant_id, agent_id=agent_id, **values)
    await session.core.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant_id", "agent_id"], set_={**values, "updated_at": func.now()}
        )
    )


async def find_allowlist(session: ReadSession, tenant_id: UUID, agent_id: UUID) -> Sequence[Row]:
    """The entries of an orchestrator's allowlist, in order."""
    table = orchestrator_allowlist
    statement = (
        select(table.c.target_agent_id, table.c.target_agent_slug, table.c.capability_tag)
        .where(table.c.tenant_id == tenant_id, table.c.agent_id == agent_id)
        .order_by(table.c.ordinal)
    )
    return await _all(session, statement)


async def replace_allowlist(session: WriteSession, tenant_id: UUID, agent_id: UUID, entries: Sequence[Row]) -> None:
    """Set an orchestrator's allowlist; the caller raises the agent's revision in the same transaction."""
    table = orchestrator_allowlist
    await session.core.execute(delete(table).where(table.c.tenant_id == tenant_id, table.c.agent_id == agent_id))
    if entries:
        await session.core.execute(
            insert(table),
            [
                {"tenant_id": tenant_id, "agent_id": agent_id, "ordinal": ordinal, **entry}
                for ordinal, entry in enumerate(entries)
            ],
        )


async def missing_agents(session: ReadSession, tenant_id: UUID, agent_ids: Sequence[UUID]) -> set[UUID]:
    """Which of some ids are not agents of the tenant."""
    statement = select(agents.c.agent_id).where(agents.c.tenant_id == tenant_id, agents.c.agent_id.in_(agent_ids))
    return set(agent_ids) - set((await session.core.execute(statement)).scalars())


async def _all(session: ReadSession, statement: Executable) -> list[Row]:
    return [dict(row._mapping) for row in await session.core.execute(statement)]  # noqa: SLF001 - its public name


async def _one(session: ReadSession, statement: Executable) -> Row | None:
    return next(iter(await _all(session, statement)), None)


async def _only(session: ReadSession, statement: Executable) -> Row:
    (row,) = await _all(session, statement)
    return row
