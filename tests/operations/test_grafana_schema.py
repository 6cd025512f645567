"""The dashboards by Grafana's own schema: the types that it publishes for its JSON, as strict JSON Schema.

There is no Grafana to be had where these tests run. This is what its import would check, and more: nothing that the
schema does not know, nothing missing that it wants, in dashboards and in the options of each kind of panel. Checked for
the version that the JSON is made for, and for the one that compose.yaml runs.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml
from jsonschema import Draft7Validator

from tests.operations.expressions import DASHBOARDS, DEPLOY, load, panels_of

pytestmark = [pytest.mark.xdist_group("grafana-schema"), pytest.mark.timeout(300)]

MADE_FOR = "11.6.0"
RUN_BY_COMPOSE: str = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]["image"].split(":")[
    1
]
TOOLS = ("typescript@5.8.3", "ts-json-schema-generator@2.4.0")
INSTALL_S = 240.0

# Where its releases keep the types: earlier ones have those of dashboards in the second place only.
PLACES = ("dist/types/raw", "dist/esm/raw")
DASHBOARD = "dashboard/x/dashboard_types.gen"
KINDS = {"timeseries": "TimeSeries", "bargauge": "BarGauge", "stat": "Stat", "table": "Table"}
COMPILER = {"compilerOptions": {"moduleResolution": "node", "skipLibCheck": True, "strict": True, "module": "es2022"}}


def _types(installed: Path) -> str:
    """A program that names the types, for the generator to make a schema of."""
    place = next(place for place in PLACES if (installed / place / f"{DASHBOARD}.d.ts").exists())
    raw = f"@grafana/schema/{place}"
    panels = {name: f"{raw}/composable/{kind}/panelcfg/x/{name}PanelCfg_types.gen" for kind, name in KINDS.items()}
    return "\n".join(
        (
            f'import type {{ Dashboard }} from "{raw}/{DASHBOARD}";',
            *(f'import type {{ Options as {name} }} from "{path}";' for name, path in panels.items()),
            f'import type {{ FieldConfig }} from "{panels["TimeSeries"]}";',
            "export interface Grafana {",
            "  board: Dashboard; custom: FieldConfig;",
            *(f"  {kind}: {name};" for kind, name in KINDS.items()),
            "}",
        )
    )


def _run(directory: Path, *command: str) -> None:
    """A step towards the schema; the test is skipped, with the reason, where it fails."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode != 0:
        pytest.skip(f"Grafana's schema is not to be had: {(done.stdout + done.stderr).strip()[-500:]}")


def _schema(version: str) -> dict[str, Any]:
    """The schema of a version of Grafana, made once and kept in the user's cache."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which has Grafana's schema")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    directory = (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "remit" / f"grafana-{version}"
    directory.mkdir(parents=True, exist_ok=True)
    made = directory / "schema.json"
    with filelock.FileLock(directory / "lock", timeout=INSTALL_S):
        if not made.exists():
            (directory / "package.json").write_text("{}")
            (directory / "tsconfig.json").write_text(json.dumps({**COMPILER, "include": ["types.ts"]}))
            _run(directory, npm, "install", "--no-audit", "--no-fund", f"@grafana/schema@{version}", *TOOLS)
            (directory / "types.ts").write_text(_types(directory / "node_modules" / "@grafana" / "schema"))
            generator = str(directory / "node_modules" / ".bin" / "ts-json-schema-generator")
            options = ("--path", "types.ts", "--tsconfig", "tsconfig.json", "--no-type-check", "--expose", "none")
            _run(directory, generator, *options, "--type", "Grafana", "-o", "half-made.json")
            (directory / "half-made.json").rename(made)
    schema: dict[str, Any] = json.loads(made.read_text())
    return schema


@pytest.fixture(scope="module", params=[MADE_FOR, RUN_BY_COMPOSE])
async def schema(request: pytest.FixtureRequest) -> dict[str, Any]:
    return await asyncio.to_thread(_schema, request.param)


def errors(schema: dict[str, Any], part: str, value: object) -> list[str]:
    wanted = {**schema, "$ref": f"#/definitions/Grafana/properties/{part}"}
    return [f"{error.json_path}: {error.message[:300]}" for error in Draft7Validator(wanted).iter_errors(value)]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_by_grafanas_schema(path: Path, schema: dict[str, Any]) -> None:
    board = load(path)
    assert errors(schema, "board", board) == []
    for panel in panels_of(board):
        assert errors(schema, panel["type"], panel["options"]) == [], panel["title"]
        custom = panel["fieldConfig"]["defaults"].get("custom")
        if panel["type"] == "timeseries":
            assert errors(schema, "custom", custom) == [], panel["title"]
        else:
            assert custom is None, panel["title"]


def test_the_schema_would_find_a_mistake(schema: dict[str, Any]) -> None:
    text = DASHBOARDS[0].read_text()
    for was, mistake in (
        ('"gridPos"', '"gridpos"'),
        ('"cursorSync": 1', '"cursorSync": "one"'),
        ('"h": 8', '"h": "8"'),
    ):
        if was in text:
            assert errors(schema, "board", json.loads(text.replace(was, mistake, 1))), mistake
    legend = {"calcs": [], "displayMode": "tabular", "placement": "bottom", "showLegend": True}
    assert errors(schema, "timeseries", {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}})


def test_the_dashboards_are_made_for_this_version() -> None:
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    assert re.search(r"grafana-foundation-sdk==\d+!" + re.escape(MADE_FOR), project)
