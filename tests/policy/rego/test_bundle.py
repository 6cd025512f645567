"""What is in the bundle, and what it may call."""

import json
import tarfile
from pathlib import Path

from tests.policy.rego.opa import Opa


def test_the_bundle_holds_rules_and_their_data_only(opa: Opa, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    opa.succeed("build", "--bundle", ".", "--capabilities", "capabilities.json", "--output", str(bundle))
    with tarfile.open(bundle) as archive:
        names = {name.lstrip("/") for name in archive.getnames()}
        data = archive.extractfile("/data.json")
        assert data is not None
        document = json.load(data)
    assert {name for name in names if not name.endswith(".rego")} == {"data.json", ".manifest"}
    assert set(document) == {"orchestration"}
    assert set(document["orchestration"]) == {"defaults", "surfaces", "thresholds"}


def test_the_capabilities_are_those_of_this_opa_less_what_reaches_out_or_is_not_a_function(opa: Opa) -> None:
    current = json.loads(opa.succeed("capabilities", "--current"))
    kept = json.loads((opa.directory / "capabilities.json").read_text())
    assert kept["allow_net"] == []
    assert kept["features"] == current["features"]
    assert {builtin["name"] for builtin in kept["builtins"]} == {
        builtin["name"]
        for builtin in current["builtins"]
        if not builtin.get("nondeterministic") and not builtin["name"].startswith("net.")
    }


def test_forbidden_built_ins_do_not_build(copied: Opa, tmp_path: Path) -> None:
    for call in (
        'http.send({"method": "get", "url": "http://a"})',
        "opa.runtime()",
        "time.now_ns()",
        'rand.intn("a", 9)',
    ):
        copied.write("orchestration/join/planted.rego", f"package orchestration.join\n\nplanted := {call}\n")
        finished = copied(
            "build", "--bundle", ".", "--capabilities", "capabilities.json", "--output", str(tmp_path / "bundle.tar.gz")
        )
        assert finished.returncode != 0
        assert "undefined function" in finished.stderr + finished.stdout


def test_time_zones_are_known_in_an_empty_environment(opa: Opa) -> None:
    noon = 'time.clock([time.parse_rfc3339_ns("2026-07-01T12:00:00Z"), "Europe/Berlin"])'
    assert json.loads(opa.succeed("eval", "--format", "raw", noon)) == [14, 0, 0]
