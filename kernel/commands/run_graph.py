"""Run a graph: a claimed run of a graph agent, from where it stands to its end."""

from typing import Any
from uuid import UUID

import orjson
import structlog

from kernel.commands.claim_work import ClaimedRun
from kernel.commands.complete_work import CompleteWork, CompleteWorkCommand
from kernel.domain.errors import LeaseLostError, NotFoundError, RunCancelledError
from kernel.domain.principal import Principal
from kernel.domain.run import RunStatus
from kernel.graph.checkpoints import Checkpoints
from kernel.graph.executors.visit import GraphInterruptedError, GraphRunError
from kernel.graph.ir import Graph, build
from kernel.graph.langgraph_runtime import LangGraphRuntime
from kernel.graph.reading import read_spec
from kernel.graph.state import Lineage
from kernel.store import graph_runs
from kernel.store.engine import Database

log = structlog.get_logger()


class RunGraphCommand:
    """Executes claimed runs of graph agents and reports how they ended. One per process."""

    def __init__(
        self, database: Database, runtime: LangGraphRuntime, checkpoints: Checkpoints, completions: CompleteWorkCommand
    ) -> None:
        self._database = database
        self._runtime = runtime
        self._checkpoints = checkpoints
        self._completions = completions

    async def execute(self, principal: Principal, claimed: ClaimedRun, *, again: bool = False) -> RunStatus | None:
        """Run it to its end, wherever it was left: by another process, or (`again`) by an earlier try under this lease.

        Returns:
            How it ended; None when it is not ours any more, and nothing was reported.
        """
        tenant_id = principal.tenant
        status, output, error = RunStatus.COMPLETED, None, None
        try:
            async with self._database.write() as session:
                begun = await graph_runs.begin(session, tenant_id, claimed.run_id)
            lineage = _lineage(tenant_id, claimed, begun.surface)
            run_input = {name: value for name, value in claimed.input.items() if name != "context"}
            resumed = again or claimed.attempt > 1
            output = await self._runtime.run(_compiled(begun.graph), lineage, run_input, resumed=resumed)
        except GraphInterruptedError as interruption:
            log.info("a graph is left", run_id=str(claimed.run_id), reason=str(interruption))
            if isinstance(interruption.__cause__, RunCancelledError):
                return await self._complete(principal, claimed, RunStatus.CANCELLED, None, None)
            return None
        except GraphRunError as failure:
            status, error = RunStatus.FAILED, failure.error
        return await self._complete(principal, claimed, status, output, error)

    async def acknowledge(self, principal: Principal, claimed: ClaimedRun) -> None:
        """Tell that a run which is cancelled has been stopped."""
        await self._complete(principal, claimed, RunStatus.CANCELLED, None, None)

    async def give_up(self, principal: Principal, claimed: ClaimedRun) -> None:
        """Tell that a run has failed which could not be executed, however often it was tried."""
        error = {"code": "internal_error", "message": "the graph could not be executed; the log says why"}
        await self._complete(principal, claimed, RunStatus.FAILED, None, error)

    async def forget(self, tenant_id: UUID, run_id: UUID) -> None:
        """Delete what is kept of a run that has ended."""
        await self._checkpoints.forget(tenant_id, run_id)

    async def _complete(
        self, principal: Principal, claimed: ClaimedRun, status: RunStatus, output: Any, error: Any
    ) -> RunStatus | None:
        report = CompleteWork(claimed.run_id, claimed.lease, status, _text(output), _text(error))
        reported: RunStatus | None = None
        try:
            reported = (await self._completions.execute(principal, report)).status
        except RunCancelledError:
            if status is not RunStatus.CANCELLED:
                return await self._complete(principal, claimed, RunStatus.CANCELLED, None, None)
        except (LeaseLostError, NotFoundError) as lost:
            log.info("a graph ended that was not ours any more", run_id=str(claimed.run_id), reason=lost.detail)
            return None
        await self._checkpoints.forget(principal.tenant, claimed.run_id)
        return reported


def _compiled(definition: Any) -> Graph:
    """The graph of a run.

    Raises:
        GraphRunError: when there is none, or it does not compile: it was published under other rules.
    """
    spec, findings = read_spec(definition)
    if findings:
        raise GraphRunError("graph_invalid", findings[0].message)
    try:
        return build(spec)
    except (ValueError, KeyError) as error:
        raise GraphRunError("graph_invalid", str(error)) from error


def _lineage(tenant_id: UUID, claimed: ClaimedRun, surface: str) -> Lineage:
    context: dict[str, Any] = claimed.context
    return Lineage(
        tenant_id=tenant_id,
        run_id=claimed.run_id,
        root_run_id=context["root_run_id"],
        parent_run_id=context["parent_run_id"],
        parent_node_id=context["parent_node_id"],
        depth=context["depth"],
        scopes=tuple(context["requested_scopes"]),
        spawn_key=context["spawn_key"],
        orchestration_group_id=context["orchestration_group_id"],
        surface=surface,
        trace_parent=context.get("traceparent"),
    )


def _text(value: Any) -> str | None:
    return orjson.dumps(value, default=str).decode() if value is not None else None
