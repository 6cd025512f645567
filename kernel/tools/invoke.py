"""Call a tool on behalf of a run, whichever way it is carried out, from whichever surface."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kernel.domain.errors import ConflictError, NotFoundError, RemitError, SpawnKeyConflictError
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.store import tools
from kernel.tools.agent_call import Called, call_agent, check_repeat, follow
from kernel.tools.configs import AgentCallConfig, RagRetrievalConfig, check
from kernel.tools.parts import ToolCall, ToolParts
from kernel.tools.rag_retrieval import retrieve
from kernel.tools.schemas import check_instance

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool answered, as the wire shows it. `repeated`: an earlier call with the same key was answered."""

    body: Mapping[str, object]
    repeated: bool = False


async def invoke(parts: ToolParts, principal: Principal, call: ToolCall) -> ToolAnswer:
    """Call a tool.

    An agent_call with a key that was used before answers as the first call did, or goes on waiting for its child,
    whatever has become of the tool since. A rag_retrieval changes nothing, so with or without a key it searches anew.

    Raises:
        NotFoundError: when the tenant has no such tool, run, agent or pipeline.
        ForbiddenError: when the token belongs to another run.
        ConflictError: when the tool is not active.
        InvalidRequestError: when the input does not match the tool's schema, naming the path.
        SpawnKeyConflictError: when the key was used with another input.
        RemitError: see `call_agent` and `retrieve`.
    """
    principal.check_acts_as(call.caller_run_id)
    row = await _load(parts, principal, call)
    if row["earlier_run_id"] is not None:
        return await _follow_earlier(parts, principal, call, row)
    if row["tool_id"] is None:
        raise NotFoundError(f"there is no tool {call.slug}")
    if row["caller_run_id"] is None:
        raise NotFoundError(f"caller_run_id: there is no run {call.caller_run_id}")
    if not row["is_active"]:
        raise ConflictError(f"tool {call.slug} is not active")
    if row["input_schema"] is not None:
        await _validate(row["input_schema"], call.input, where="input")
    if row["implementation_type"] == "rag_retrieval":
        found = await retrieve(parts, principal, call, check(RagRetrievalConfig, row["config"], where="config"))
        answer = found.answer()
        if row["output_schema"] is not None:
            await _validate(row["output_schema"], answer, where="output")
        return ToolAnswer(answer)
    config = check(AgentCallConfig, row["config"], where="config")
    try:
        called = await call_agent(parts, principal, call, config, tuple(row["caller_scopes"]))
    except SpawnKeyConflictError:
        # Another call with this key was quicker, and the tool has changed between the two.
        row = await _load(parts, principal, call)
        if row["earlier_run_id"] is None:
            raise
        return await _follow_earlier(parts, principal, call, row)
    return await _answer(row, called)


async def _load(parts: ToolParts, principal: Principal, call: ToolCall) -> Row:
    async with parts.database.read() as session:
        return await tools.load_call(session, principal.tenant, call.slug, call.caller_run_id, call.spawn_key)


async def _follow_earlier(parts: ToolParts, principal: Principal, call: ToolCall, row: Row) -> ToolAnswer:
    check_repeat(call, row["earlier_digests"])
    called = await follow(parts, principal.tenant, call, row["earlier_run_id"], repeated=True)
    return await _answer(row, called)


async def _answer(row: Row, called: Called) -> ToolAnswer:
    """The answer of a call; an output that is not what the tool promises makes it a failure."""
    if called.status is RunStatus.COMPLETED and row["output_schema"] is not None:
        try:
            await _validate(row["output_schema"], called.output, where="output")
        except RemitError as error:
            called = replace(called, status=RunStatus.FAILED, output=None, error=error.detail)
    return ToolAnswer(called.answer(), called.repeated)


async def _validate(schema: Mapping[str, Any], value: object, *, where: str) -> None:
    # In a thread: a schema and a value of a tenant's choosing may take some tenths of a second.
    await asyncio.to_thread(check_instance, schema, value, where=where)
