"""The node that asks for a verdict on the children of a run."""

from kernel.commands.evaluate_and_replan import EvaluateAndReplan
from kernel.domain.events import Surface
from kernel.graph.executors.visit import Outcome, Visit
from kernel.graph.spec import ReplanConfig
from kernel.store.verdicts import Asking

REPLAN, CONTINUE = "replan", "continue"


async def replan(visit: Visit) -> Outcome:
    """Judges the children of the run that is named or mapped; of the graph's own run, whose children it spawned."""
    named = visit.config(ReplanConfig).run_id or visit.mapped.get("run_id") or visit.lineage.run_id
    evaluation = await visit.commands.replan.execute(
        visit.principal,
        EvaluateAndReplan(
            visit.lineage.run_id,
            visit.as_id(named, "run_id"),
            surface=Surface.GRAPHSPEC_V2,
            asking=Asking(visit.node.id, visit.iteration),
        ),
    )
    output = {
        "run_id": str(evaluation.run_id),
        "needs_replan": evaluation.needs_replan,
        "failed_children": [str(run_id) for run_id in evaluation.failed_children],
        "failed_count": evaluation.failed_count,
        "total_children": evaluation.total_children,
        "active_children": evaluation.active_children,
        "suggested_action": evaluation.suggested_action,
        "reasons": evaluation.reasons,
        "attempts": evaluation.attempts,
        "headroom": evaluation.headroom.model_dump(),
        "decision_id": str(evaluation.decision_id),
    }
    return Outcome(output, REPLAN if evaluation.needs_replan else CONTINUE)
