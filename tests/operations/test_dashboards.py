"""The dashboards: current, complete, and made of expressions that parse."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernel import metrics
from tests.operations import expressions
from tests.operations.expressions import DASHBOARDS, DEPLOY, load, panels_of

SHOWN_BY = {"rollout", "denials", "storms", "service"}


def test_the_dashboards_are_what_their_code_makes() -> None:
    command = [sys.executable, str(DEPLOY / "grafana" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dashboard_that_was_edited_is_noticed(tmp_path: Path) -> None:
    for path in (DEPLOY / "grafana").rglob("*.*"):
        if path.suffix in {".py", ".json"}:
            copy = tmp_path / path.relative_to(DEPLOY / "grafana")
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    edited = tmp_path / "dashboards" / "storms.json"
    edited.write_text(edited.read_text().replace("Storms", "Calm"))
    command = [sys.executable, str(tmp_path / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "storms.json" in done.stderr


def test_there_is_a_dashboard_for_each_question() -> None:
    assert {path.stem for path in DASHBOARDS} == SHOWN_BY
    boards = [load(path) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len(boards)
    assert len({board["title"] for board in boards}) == len(boards)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_what_grafana_needs(path: Path) -> None:
    board = load(path)
    assert board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = " ".join(target["expr"] for panel in panels_of(board) for target in panel["targets"])
    for name, variable in variables.items():
        if name != "datasource":
            assert f"${name}" in used, f"{name} narrows nothing"
            assert variable["query"].startswith("label_values(remit_")
            assert variable["datasource"]["uid"] == "${datasource}"
            assert variable["allValue"] == ".*"
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_says_what_is_normal_and_what_to_do_otherwise(path: Path) -> None:
    for panel in panels_of(load(path)):
        normal, _, otherwise = panel["description"].partition("\n\n")
        assert normal.startswith("Normal: "), panel["title"]
        assert len(otherwise) > 20, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target.get("instant") or target.get("range")


def test_every_dashboard_is_narrowed_by_tenant_and_surface() -> None:
    for path in DASHBOARDS:
        board = load(path)
        asked = " ".join(target["expr"] for panel in panels_of(board) for target in panel["targets"])
        for name in ("tenant", "surface"):
            assert name in {variable["name"] for variable in board["templating"]["list"]}, path.stem
            assert f'{name}=~"${name}"' in asked, path.stem


def test_every_metric_is_shown_on_some_dashboard() -> None:
    shown = " ".join(expression.text for expression in expressions.of_dashboards())
    names = [metric._name for metric in vars(metrics).values() if hasattr(metric, "_name")]
    assert len(names) > 20
    assert [name for name in names if name not in shown] == []


def test_quantiles_over_time_ask_for_the_traces_that_are_their_examples() -> None:
    targets = [
        target
        for path in DASHBOARDS
        for panel in panels_of(load(path))
        for target in panel["targets"]
        if panel["type"] == "timeseries"
    ]
    quantiles = [target for target in targets if "histogram_quantile" in target["expr"]]
    assert len(quantiles) >= 8
    assert all(target.get("exemplar") is True for target in quantiles)
