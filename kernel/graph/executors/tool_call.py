"""The node that calls a tool."""

from kernel.commands.spawning.order import digest
from kernel.graph.executors.visit import GraphRunError, Outcome, ToolCall, Visit
from kernel.graph.spec import ToolCallConfig


async def tool_call(visit: Visit) -> Outcome:
    """Calls one of the tenant's tools, once for each visit of the node."""
    config, invoke = visit.config(ToolCallConfig), visit.commands.invoke_tool
    if invoke is None:
        raise GraphRunError("tools_unavailable", "there are no tools in this process", visit.node.id)
    given = {**config.input, **visit.mapped}
    mark = digest([str(visit.lineage.run_id), visit.node.id, visit.iteration, config.tool_slug, given])
    output = await invoke(
        ToolCall(
            principal=visit.principal,
            run_id=visit.lineage.run_id,
            tool_slug=config.tool_slug,
            input=given,
            key=f"{visit.node.id}:{visit.iteration}:{mark}",
            node_id=visit.node.id,
            trace_parent=visit.lineage.trace_parent,
        )
    )
    return Outcome(output)
