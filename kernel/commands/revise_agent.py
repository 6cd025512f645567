"""Publish an agent, take it back, or change it. A graph that is published, or is to be, has to compile."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from kernel.commands.compile_graph import CompileGraph, CompileGraphCommand, Judged
from kernel.commands.spawning.refusals import MAX_ATTEMPTS, count_decisions
from kernel.domain.errors import FactsChangedError, GraphInvalidError, InvalidRequestError, NotFoundError
from kernel.domain.principal import Principal
from kernel.graph.diagnostics import Diagnostic, Severity
from kernel.policy.engine import PolicyEngine
from kernel.store import catalog, decisions
from kernel.store.engine import Database

Row = Mapping[str, Any]


class ReviseAgentCommand:
    """Changes agents; a graph is compiled on the facts that the change is committed on."""

    def __init__(self, database: Database, engine: PolicyEngine) -> None:
        self._database = database
        self._compile = CompileGraphCommand(database, engine)

    async def execute(self, principal: Principal, agent_id: UUID, changes: Row) -> Row:
        """Change an agent: its `name`, `capability_tags`, `graph_definition` or `status`. What runs goes on.

        Raises:
            NotFoundError: when the tenant has no such agent.
            InvalidRequestError: for the graph of an agent that is none.
            GraphInvalidError: with every finding, when a published graph would not compile.
            FactsChangedError: when the agent changed three times in between.
        """
        for _ in range(MAX_ATTEMPTS):
            async with self._database.read() as session:
                agent = _found(await catalog.find_agent(session, principal.tenant, agent_id), agent_id)
            if agent["kind"] != "graph" and changes.get("graph_definition") is not None:
                raise InvalidRequestError("graph_definition: belongs to agents of kind graph", field="graph_definition")
            if not changes:
                return agent
            judged = await self._judge(principal, agent_id, agent, changes)
            try:
                return await self._commit(principal.tenant, agent, changes, judged)
            except _ChangedError:
                continue
        raise FactsChangedError(f"agent_id: agent {agent_id} changed {MAX_ATTEMPTS} times meanwhile; try again")

    async def _judge(self, principal: Principal, agent_id: UUID, agent: Row, changes: Row) -> Judged | None:
        """The compiled graph where the change needs one; None where it does not."""
        after = {**agent, **changes}
        concerns = changes.keys() & {"graph_definition", "status"}
        if agent["kind"] != "graph" or after["status"] != "published" or not concerns:
            return None
        request = CompileGraph(after["graph_definition"], agent_id)
        judged = await self._compile.judge(principal, request)
        if not judged.compiled.valid:
            async with self._database.write() as session:
                await decisions.append(session, judged.record)
            count_decisions([judged.record])
            raise invalid(judged)
        return judged

    async def _commit(self, tenant_id: UUID, agent: Row, changes: Row, judged: Judged | None) -> Row:
        async with self._database.write() as session:
            # The update waits for other writers; the revision then tells whether there was one since policy was asked.
            changed = await catalog.change_agent(session, tenant_id, agent["agent_id"], dict(changes))
            after = _found(changed, agent["agent_id"])
            seen = agent["revision"] if judged is None else judged.revision
            if agent["kind"] == "graph" and (seen != agent["revision"] or after["revision"] != agent["revision"] + 1):
                raise _ChangedError
            if judged is not None:
                await decisions.append(session, judged.record)
        if judged is not None:
            count_decisions([judged.record])
        return after


class _ChangedError(Exception):
    """Somebody else changed the agent meanwhile; nothing is committed."""


def invalid(judged: Judged) -> GraphInvalidError:
    """The refusal of a graph that does not compile."""
    errors = [finding for finding in judged.compiled.diagnostics if finding.severity is Severity.ERROR]
    return GraphInvalidError(
        f"the graph does not compile: {_said(errors)}",
        diagnostics=[finding.render() for finding in judged.compiled.diagnostics],
        decision_id=str(judged.record.decision_id),
    )


def _said(errors: list[Diagnostic]) -> str:
    shown = "; ".join(f"{finding.code}: {finding.message}" for finding in errors[:3])
    return shown if len(errors) <= 3 else f"{shown}; and {len(errors) - 3} more"  # noqa: PLR2004


def _found(row: Row | None, agent_id: UUID) -> Row:
    if row is None:
        raise NotFoundError(f"there is no agent {agent_id}")
    return row
