"""Nodes that only compute: start, end, transform, parallel."""

from kernel.graph.executors.visit import Outcome, Visit
from kernel.graph.spec import EndConfig, TransformConfig


async def start(visit: Visit) -> Outcome:
    """Gives the run's input."""
    return Outcome(visit.document["input"])


async def end(visit: Visit) -> Outcome:
    """Gives the run's output."""
    expressions = visit.config(EndConfig).output
    if expressions:
        return Outcome({name: visit.search(expression) for name, expression in expressions.items()})
    return Outcome(visit.mapped or visit.ways.output_before(visit.state, visit.node.id))


async def transform(visit: Visit) -> Outcome:
    """Makes a document."""
    return Outcome(
        {name: visit.search(expression) for name, expression in visit.config(TransformConfig).expressions.items()}
    )


async def parallel(_visit: Visit) -> Outcome:
    """Goes on to all that follows it."""
    return Outcome(None)
