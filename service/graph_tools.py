"""The tools that graphs call."""

from collections.abc import Mapping

from kernel.domain.errors import DatabaseUnavailableError
from kernel.domain.events import Surface
from kernel.graph.executors.visit import GraphInterruptedError, InvokeTool
from kernel.graph.executors.visit import ToolCall as NodesCall
from kernel.tools.invoke import invoke
from kernel.tools.parts import ToolCall, ToolParts
from service.dependencies import Services


def tools_of(services: Services) -> InvokeTool:
    """What a tool_call node calls. A graph that is left while it waits finds the same child when it is resumed."""
    parts = ToolParts(services.database, services.engine, services.combiner, services.wakeups)

    async def invoke_tool(call: NodesCall) -> Mapping[str, object]:
        try:
            answer = await invoke(
                parts,
                call.principal,
                ToolCall(
                    slug=call.tool_slug,
                    caller_run_id=call.run_id,
                    input=call.input,
                    idempotency_key=call.key,
                    surface=Surface.GRAPHSPEC_V2,
                    parent_node_id=call.node_id,
                    trace_parent=call.trace_parent,
                    cancel_when_abandoned=False,
                ),
            )
        except DatabaseUnavailableError as error:
            if services.wakeups.stopping:
                raise GraphInterruptedError(error.detail) from error
            raise
        return answer.body

    return invoke_tool
