"""A tenant's tools: made in versions that never change, the newest of which is used."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from asyncpg import exceptions as pg

from kernel.domain.errors import InvalidRequestError, NotFoundError
from kernel.identifiers import new_id
from kernel.store import retrieval, tools
from kernel.store.engine import Database, ReadSession
from kernel.tools.configs import AgentCallConfig, ImplementationType, RagRetrievalConfig, check
from kernel.tools.schemas import check_schema

Row = Mapping[str, Any]
Json = Mapping[str, Any]

# The catalogue's own path; a tool of this name could not be reached.
RESERVED_SLUG = "templates"
MAX_LISTED_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A tool, or the next version of one."""

    slug: str
    name: str
    implementation_type: ImplementationType
    config: Json
    input_schema: Json | None = None
    output_schema: Json | None = None


class Tools:
    """The registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, tenant_id: UUID, new: NewVersion) -> Row:
        """Make a tool, or the next version of the tool with this slug, which is used from then on.

        Raises:
            InvalidRequestError: for a configuration or a schema that is wrong, or a target that cannot be called.
            NotFoundError: when the configuration names an agent or a pipeline that the tenant does not have.
        """
        if new.slug == RESERVED_SLUG:
            raise InvalidRequestError(f"slug: {RESERVED_SLUG!r} is the catalogue's own name", field="slug")
        for name, schema in (("input_schema", new.input_schema), ("output_schema", new.output_schema)):
            if schema is not None:
                # In a thread: a schema of a tenant's choosing may take a second.
                await asyncio.to_thread(check_schema, schema, where=name)
        config: AgentCallConfig | RagRetrievalConfig
        if new.implementation_type == "agent_call":
            config = check(AgentCallConfig, new.config, where="config")
        else:
            config = check(RagRetrievalConfig, new.config, where="config")
        try:
            async with self._database.write() as session:
                if isinstance(config, AgentCallConfig):
                    await _check_target(session, tenant_id, config)
                else:
                    await _check_pipeline(session, tenant_id, config)
                version = await tools.next_version(session, tenant_id, new_id(), new.slug)
                await tools.insert_version(
                    session,
                    tenant_id,
                    version["tool_id"],
                    version["version"],
                    name=new.name,
                    implementation_type=new.implementation_type,
                    config=config.model_dump_json(exclude_none=True),
                    input_schema=_text(new.input_schema),
                    output_schema=_text(new.output_schema),
                )
                return _found(await tools.find(session, tenant_id, new.slug), new.slug)
        except pg.ForeignKeyViolationError as error:
            raise NotFoundError(f"X-Tenant-ID: there is no tenant {tenant_id}") from error

    async def set_active(self, tenant_id: UUID, slug: str, *, is_active: bool | None) -> Row:
        """Switch a tool on or off (None leaves it as it is); calls that are under way go on."""
        async with self._database.write() as session:
            if is_active is not None:
                await tools.set_active(session, tenant_id, slug, is_active=is_active)
            return _found(await tools.find(session, tenant_id, slug), slug)

    async def get(self, tenant_id: UUID, slug: str) -> tuple[Row, Sequence[Row]]:
        """A tool, and its versions, the newest first, at most 100."""
        async with self._database.read() as session:
            tool = _found(await tools.find(session, tenant_id, slug), slug)
            return tool, await tools.versions(session, tenant_id, tool["tool_id"], MAX_LISTED_VERSIONS)

    async def page(self, tenant_id: UUID, after: str | None, limit: int) -> tuple[Sequence[Row], str | None]:
        """A page of tools by slug, and the slug to go on after."""
        async with self._database.read() as session:
            rows = await tools.page(session, tenant_id, after or "", limit + 1)
        return rows[:limit], rows[limit - 1]["slug"] if len(rows) > limit else None


async def _check_target(session: ReadSession, tenant_id: UUID, config: AgentCallConfig) -> None:
    target = await tools.target(session, tenant_id, config.target_agent_id, config.target_agent_slug)
    named = config.target_agent_id or config.target_agent_slug
    field = f"config.target_agent_{'id' if config.target_agent_id else 'slug'}"
    if target is None:
        raise NotFoundError(f"{field}: there is no agent {named}")
    if target["status"] != "published":
        raise InvalidRequestError(f"{field}: agent {named} is not published; observed: {target['status']}", field=field)


async def _check_pipeline(session: ReadSession, tenant_id: UUID, config: RagRetrievalConfig) -> None:
    pipeline = await retrieval.find_pipeline(session, tenant_id, config.pipeline_id)
    if pipeline is None:
        raise NotFoundError(f"config.pipeline_id: there is no pipeline {config.pipeline_id}")
    if not pipeline["is_active"]:
        raise InvalidRequestError(
            f"config.pipeline_id: pipeline {config.pipeline_id} is not active", field="config.pipeline_id"
        )


def _found(row: Row | None, slug: str) -> Row:
    if row is None:
        raise NotFoundError(f"there is no tool {slug}")
    return row


def _text(value: Json | None) -> str | None:
    return orjson.dumps(value).decode() if value is not None else None
