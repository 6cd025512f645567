"""The alerts: well-formed, tested to fire and to be quiet, and each explained to who is woken by it."""

import re
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from kernel.store import trees
from kernel.store.engine import Database
from tests.faults.scale import TORTURE
from tests.kit import Kit
from tests.operations.deploy.go_programs import PROMTOOL, find_or_build, path_of
from tests.operations.expressions import DEPLOY, RULES, of_dashboards
from tests.operations.programs import find

# Building promtool takes minutes, once.
pytestmark = [pytest.mark.torture, pytest.mark.timeout(900), pytest.mark.xdist_group("helm")]

UNIT_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yaml"))
RUNBOOK = DEPLOY / "RUNBOOK.md"
# What the alerts are there for; a new one joins the list when it has its section and its tests.
WANTED = {
    "RemitApiAbsent",
    "RemitAvailabilityBurnFast",
    "RemitAvailabilityBurnSlow",
    "RemitFailClosedBurnFast",
    "RemitFailClosedBurnSlow",
    "RemitTenantDenialsJump",
    "RemitFlagOffWithTraffic",
    "RemitLeasesExpiring",
    "RemitOpaDown",
    "RemitBundleRevisionsDiffer",
    "RemitBundleStale",
    "RemitPolicySourcesRefused",
    "RemitDrainBacklogStuck",
    "RemitReconcilerStalled",
    "RemitReconcilerSetAside",
}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["of the machine", "of compose.yaml"])
async def promtool(request: pytest.FixtureRequest) -> Path:
    """Debian's is of Prometheus 2, the deployment's of Prometheus 3: windows are left-open there, among others."""
    if request.param == "of the machine":
        return Path(find("promtool"))
    if not (path_of(PROMTOOL).exists() or TORTURE):
        pytest.skip("Prometheus 3's promtool takes many minutes to build: `poe torture` does so, once")
    return await find_or_build(PROMTOOL)


def test_the_rules_are_well_formed(promtool: Path) -> None:
    run(promtool, "check", "rules", RULES)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path, promtool: Path) -> None:
    run(promtool, "test", "rules", path)


def test_every_expression_of_the_dashboards_parses(promtool: Path, tmp_path: Path) -> None:
    expressions = [{"record": f"dashboard:{place}", "expr": one.text} for place, one in enumerate(of_dashboards())]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": expressions}]}))
    run(promtool, "check", "rules", path)


def test_the_promtool_that_is_built_is_of_the_prometheus_that_is_deployed() -> None:
    image = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prometheus"]["image"]
    major, minor, patch = re.fullmatch(r"prom/prometheus:v(\d+)\.(\d+)\.(\d+)", image).groups()  # type: ignore[union-attr]
    assert PROMTOOL.version == f"v0.{major}{int(minor):02d}.{patch}"


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires, quiet = set(), set()
    for path in UNIT_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for expected in case["promql_expr_test"]:
                named = _named(expected["expr"])
                if expected["exp_samples"]:
                    told = " ".join(sample.get("labels", "") for sample in expected["exp_samples"])
                    # A count by name says which of several fire.
                    fires |= {name for name in named if len(named) == 1 or f'"{name}"' in told}
                else:
                    quiet |= named
    assert fires == WANTED
    assert quiet == WANTED


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    assert set(alerts()) == WANTED
    anchors = {_anchor(line.removeprefix("## ")) for line in RUNBOOK.read_text().splitlines() if line.startswith("## ")}
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in {"page", "ticket"}, name
        notes = alert["annotations"]
        assert notes["summary"], name
        assert notes["description"], name
        page, _, anchor = notes["runbook_url"].partition("#")
        assert page == "deploy/RUNBOOK.md", name
        assert anchor in anchors, name
        assert name.lower().startswith(anchor), name


def test_every_section_of_the_runbook_says_what_it_means_how_to_look_and_what_to_do() -> None:
    text = RUNBOOK.read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    wanted = {alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts().values()}
    assert {_anchor(section.splitlines()[0]) for section in sections} == wanted
    for section in sections:
        for part in ("**What it means.**", "**How to look.**", "**What to do.**"):
            assert part in section, section.splitlines()[0]
    below = {_anchor(heading) for heading in re.findall(r"^### (.*)$", text, flags=re.MULTILINE)}
    for anchor in re.findall(r"\]\(#([a-z-]+)\)", text):
        assert anchor in wanted | below


async def test_the_runbook_finds_who_holds_a_tree_though_nobody_waits_for_it(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    (query,) = re.findall(r"```sql\n(select a\.pid.*?);\n```", RUNBOOK.read_text(), flags=re.DOTALL)
    query = query.replace("10 seconds", "0 seconds")
    async with database.write() as holding, database.read() as looking:
        await holding.driver.execute("SELECT 1")
        pid = await holding.driver.fetchval("SELECT pg_backend_pid()")
        assert pid not in [row["pid"] for row in await looking.driver.fetch(query)]
        await trees.lock_one(holding, UUID(kit.tenant_id), UUID(root.run_id))
        assert pid in [row["pid"] for row in await looking.driver.fetch(query)]


def _named(expr: str) -> set[str]:
    """The alerts that an expression on `ALERTS` is about."""
    found = re.search(r'alertname(=~?)"([^"]+)"', expr)
    if found is None:
        return set()
    operator, pattern = found.groups()
    return {name for name in WANTED if re.fullmatch(pattern, name)} if operator == "=~" else {pattern}


def _anchor(heading: str) -> str:
    return heading.strip().lower().replace(" ", "-")
