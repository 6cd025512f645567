import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import policies
from service.embedded.opa import find_or_build_opa
from tests.policy.rego.opa import Opa, serving

POLICIES = Path(policies.__file__).parent


@pytest.fixture(scope="session")
async def opa_binary() -> Path:
    chosen = os.environ.get("REMIT_OPA_BINARY")
    return await find_or_build_opa(Path(chosen) if chosen else None)


@pytest.fixture(scope="session")
def opa(opa_binary: Path) -> Opa:
    """The command, on the repository's policies."""
    return Opa(opa_binary, POLICIES)


@pytest.fixture
def copied(opa_binary: Path, tmp_path: Path) -> Opa:
    """The command, on a copy of the policies that a test may spoil."""
    return Opa(opa_binary, Path(shutil.copytree(POLICIES, tmp_path / "policies")))


@pytest.fixture(scope="session")
def opa_url(opa_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on the repository's policies."""
    with serving(opa_binary, POLICIES, tmp_path_factory.mktemp("opa")) as url:
        yield url
