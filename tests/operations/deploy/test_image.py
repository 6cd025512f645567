"""The image's recipe: from pinned bases and locked packages, with every source it copies, to a user who is not root."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from service.embedded.opa_binary import OPA_VERSION
from tests.operations.deploy import wheel_programs
from tests.operations.deploy.settings_names import known_settings

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
IGNORED = ROOT / "deploy" / "Dockerfile.dockerignore"
LOCK = ROOT / "deploy" / "requirements.lock"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The instructions in their order, continued lines joined, without comments."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in steps if name == instruction]


async def test_a_linter_that_parses_it_finds_nothing_to_say(tmp_path: Path) -> None:
    linted = await wheel_programs.run(wheel_programs.HADOLINT, str(DOCKERFILE))
    assert linted.returncode == 0, linted.stdout + linted.stderr
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.read_text().replace("COPY --from=opa", "COPY --form=opa"))
    assert (await wheel_programs.run(wheel_programs.HADOLINT, str(broken))).returncode != 0


def test_bases_are_pinned(steps: list[tuple[str, str]]) -> None:
    arguments = dict(argument.split("=", 1) for argument in values(steps, "ARG"))
    bases = values(steps, "FROM")
    assert bases
    for base in bases:
        image = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base.split(" ")[0])
        tag = image.partition(":")[2]
        assert re.match(r"\d+\.\d+", tag), f"{image} is not pinned"


def test_the_opa_in_the_image_is_the_pinned_one(steps: list[tuple[str, str]]) -> None:
    assert f"OPA_VERSION={OPA_VERSION}" in values(steps, "ARG")
    assert any('opa@v${OPA_VERSION}"' in run for run in values(steps, "RUN"))


def test_whatever_is_copied_is_in_the_repository_and_not_ignored(steps: list[tuple[str, str]]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    allowed = {line[1:] for line in IGNORED.read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for copy in values(steps, "COPY"):
        words = shlex.split(copy)
        if not words[0].startswith("--from="):
            copied |= set(words[:-1])
    assert copied == allowed
    for source in copied:
        assert any(name == source or name.startswith(f"{source}/") for name in tracked), source


def test_what_is_packaged_is_copied(steps: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = " ".join(values(steps, "COPY"))
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"{package} ./{package}" in copied
    for file in (project["project"]["readme"], *project["project"]["license-files"]):
        assert file in copied


def test_packages_are_installed_by_their_digests(steps: list[tuple[str, str]]) -> None:
    runs = values(steps, "RUN")
    assert any("--require-hashes --requirement requirements.lock" in run for run in runs)
    assert any(run.endswith("--no-deps .") for run in runs)
    pins = [line for line in LOCK.read_text().splitlines() if line and line[0] not in " #"]
    assert pins
    assert all(re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", pin) for pin in pins)
    assert LOCK.read_text().count("--hash=sha256:") >= len(pins)


def test_it_does_not_run_as_root_and_is_given_no_secret(steps: list[tuple[str, str]]) -> None:
    last = [number for number, (name, _) in enumerate(steps) if name == "FROM"][-1]
    final = steps[last:]
    assert values(final, "USER") == ["10001:10001"]
    assert values(final, "ENTRYPOINT") == ['["remit"]']
    given = " ".join([*values(steps, "ENV"), *values(steps, "ARG")])
    assert not re.search(r"(?i)token|secret|password|key", given)
    named = set(re.findall(r"REMIT_\w+", " ".join(values(final, "ENV"))))
    assert named
    assert named <= known_settings()
