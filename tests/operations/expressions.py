"""The expressions of dashboards, as Prometheus would get them from Grafana."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = DEPLOY / "prometheus" / "rules.yaml"

# What Grafana puts in for `All`, and for a scrape each second.
VARIABLES = {"$__interval": "1s", "$__rate_interval": "30s", "$__range": "1m", "$tenant": ".*", "$surface": ".*"}


@dataclass(frozen=True)
class Expression:
    """Where it is shown, and what it is."""

    where: str
    text: str


def load(path: Path) -> dict[str, Any]:
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return board


def panels_of(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels, without the headings of the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def of_dashboards() -> list[Expression]:
    """Every expression of every dashboard, with its variables filled in."""
    return [
        Expression(f"{path.stem}: {panel['title']} [{target['refId']}]", _fill(target["expr"]))
        for path in DASHBOARDS
        for panel in panels_of(load(path))
        for target in panel["targets"]
    ]


def _fill(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, f"a variable that no dashboard has: {expr}"
    return expr
