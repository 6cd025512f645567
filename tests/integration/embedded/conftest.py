"""What the tests of the embedded servers share."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.embedded.opa import EmbeddedOpa, find_or_build_opa
from service.embedded.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
async def opa_binary() -> Path:
    return await find_or_build_opa(progress=print)


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    package = directory / "orchestration" / "main"
    package.mkdir(parents=True)
    (directory / ".manifest").write_text('{"roots": ["orchestration"], "revision": "r1"}')
    (package / "main.rego").write_text('package orchestration.main\n\ndecision := {"allow": input.x == 1}\n')
    return directory


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory whose path is short enough for a socket's."""
    directory = Path(tempfile.mkdtemp(prefix="remit-test-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def postgres(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data_dir, progress=print)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def opa(opa_binary: Path, data_dir: Path, bundle_dir: Path) -> AsyncIterator[EmbeddedOpa]:
    server = EmbeddedOpa(opa_binary, data_dir, bundle_path=bundle_dir)
    await server.start()
    yield server
    await server.stop()
