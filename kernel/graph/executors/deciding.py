"""Nodes that say where to go on: router, judge, if_else."""

from kernel.graph.executors.visit import Outcome, Visit, holds, same, search
from kernel.graph.spec import DEFAULT_ROUTE, ELSE, IfElseConfig, JudgeConfig, RouterConfig

GO_ON = "continue"
GOOD = frozenset({"completed", "completed_with_errors"})


async def router(visit: Visit) -> Outcome:
    """Holds a value of the latest orchestration output against the routes."""
    config = visit.config(RouterConfig)
    value = search(config.route_key, visit.latest, visit.node.id)
    for route in config.routes:
        if any(same(value, expected) for expected in route.equals):
            return Outcome({"route": route.name, "value": value}, route.name)
    return Outcome({"route": DEFAULT_ROUTE, "value": value}, DEFAULT_ROUTE)


async def judge(visit: Visit) -> Outcome:
    """Passes or fails what the latest join or replan gave."""
    config, latest = visit.config(JudgeConfig), visit.latest or {}
    action, status = latest.get("suggested_action"), latest.get("status")
    outcome = next((word for word in (action, status) if word in config.outcomes), None)
    if outcome is None:
        # What asks for help or says stop has not passed either.
        failed = (action is not None and action != GO_ON) or (status is not None and status not in GOOD)
        outcome = config.failing if failed or (action is None and status is None) else config.passing
    return Outcome({"outcome": outcome, "suggested_action": action, "status": status}, outcome)


async def if_else(visit: Visit) -> Outcome:
    """Takes the first condition that holds."""
    for condition in visit.config(IfElseConfig).conditions:
        if holds(visit.search(condition.expression)):
            return Outcome({"branch": condition.name}, condition.name)
    return Outcome({"branch": ELSE}, ELSE)
