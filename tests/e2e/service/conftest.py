"""Data directories for services that are processes of their own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded.opa_binary import find_or_build_opa


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Short, because the socket of PostgreSQL lies in it."""
    directory = Path(tempfile.mkdtemp(prefix="remit-e2e-", dir="/tmp"))
    yield directory / "d"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
async def real_opa() -> Path:
    """The opa that a service finds for itself, without the session's servers."""
    return await find_or_build_opa()
