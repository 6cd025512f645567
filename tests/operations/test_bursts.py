"""What happens between two scrapes is on the dashboards, too: a counter may be born with all that it ever counts."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.operations.expressions import of_dashboards
from tests.operations.programs import find

# Prometheus scrapes each second; the range of the dashboards is the last minute.
BURST_S, NOW_S = 90, 110
OLD = {"up": "1x120", "process_start_time_seconds": "-100000x120"}
ASKED = {"surface": "option_b_runtime_primitives", "action": "spawn_run"}
DENIED = f"_x{BURST_S} 40x30"
WHO = {"tenant": "acme", "action": "spawn_run", "reason": "surface_disabled"}


def panel(title: str, reference: str) -> str:
    (text,) = [one.text for one in of_dashboards() if one.where.endswith(f": {title} [{reference}]")]
    return text


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    told = ", ".join(f'{label}="{value}"' for label, value in {"job": "remit", **labels}.items())
    return {"series": f"{name}{{{told}}}", "values": values}


def check(
    tmp_path: Path, given: list[dict[str, str]], expr: str, wanted: dict[str, float], *, now_s: int = NOW_S
) -> None:
    """Hold an expression at a time against its samples, each by its labels."""
    samples = [{"labels": labels, "value": value} for labels, value in wanted.items()]
    case: dict[str, Any] = {
        "interval": "1s",
        "input_series": given,
        "promql_expr_test": [{"expr": expr, "eval_time": f"{now_s}s", "exp_samples": samples}],
    }
    path = tmp_path / "bursts.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1s", "tests": [case]}))
    done = subprocess.run([find("promtool"), "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def burst() -> list[dict[str, str]]:
    """Forty denials of one tenant, between two scrapes of a process that has been there for long."""
    here = {"instance": "a", "tenant": "acme", **ASKED}
    return [
        *(series(name, values, instance="a") for name, values in OLD.items()),
        series("remit_decisions_total", f"0x{BURST_S - 1} 40x30", **here, outcome="deny"),
        series("remit_denials_total", DENIED, **here, reason="surface_disabled"),
        series("remit_surface_requests_total", f"0x{BURST_S - 1} 40x30", **here, enabled="false"),
    ]


@pytest.fixture
def found() -> list[dict[str, str]]:
    """A process that is old, and is scraped for the first time: when its denials were, nobody knows."""
    here = {"instance": "b", "tenant": "past", **ASKED}
    return [
        series("up", f"_x{BURST_S} 1x30", instance="b"),
        series("process_start_time_seconds", f"_x{BURST_S} -100000x30", instance="b"),
        series("remit_denials_total", f"_x{BURST_S} 5000x30", **here, reason="surface_disabled"),
    ]


def test_who_was_denied_why_and_how_often(
    burst: list[dict[str, str]], found: list[dict[str, str]], tmp_path: Path
) -> None:
    who = ", ".join(f'{label}="{value}"' for label, value in WHO.items())
    check(tmp_path, [*burst, *found], panel("Who is denied, why, and since when", "A"), {f"{{{who}}}": 40})


def test_since_when(burst: list[dict[str, str]], tmp_path: Path) -> None:
    who = ", ".join(f'{label}="{value}"' for label, value in WHO.items())
    check(tmp_path, burst, panel("Who is denied, why, and since when", "B"), {f"{{{who}}}": BURST_S * 1000})


def test_who_was_denied_most(burst: list[dict[str, str]], tmp_path: Path) -> None:
    wanted = f"{panel('Top deniers in this time range', 'A')} > bool 30"
    check(tmp_path, burst, wanted, {'{tenant="acme"}': 1})


def test_what_a_flag_refused(burst: list[dict[str, str]], tmp_path: Path) -> None:
    wanted = panel("Requests in this time range, and those that a flag refused", "B")
    check(tmp_path, burst, wanted, {'{tenant="acme", surface="option_b_runtime_primitives"}': 40})


def test_the_leases_of_a_worker_that_died(tmp_path: Path) -> None:
    # As long ago as the panel looks back, its process was there and the series was not.
    given = [
        *(series(name, values.replace("120", "900"), instance="a") for name, values in OLD.items()),
        series("remit_leases_expired_total", "_x700 50x200", instance="a", tenant="acme"),
    ]
    expr = panel("Leases that ran out within ten minutes, by tenant", "A")
    check(tmp_path, given, expr, {'{tenant="acme"}': 50}, now_s=800)


def test_a_process_that_has_just_begun_is_believed(tmp_path: Path) -> None:
    here = {"instance": "new", "tenant": "acme", **ASKED}
    given = [
        series("up", f"_x{BURST_S} 1x30", instance="new"),
        series("process_start_time_seconds", f"_x{BURST_S} {BURST_S - 1}x30", instance="new"),
        series("remit_denials_total", DENIED, **here, reason="surface_disabled"),
    ]
    who = ", ".join(f'{label}="{value}"' for label, value in WHO.items())
    check(tmp_path, given, panel("Who is denied, why, and since when", "A"), {f"{{{who}}}": 40})
