"""A service of its own for the storms, which nobody else's runs are in."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.remit import Remit


@pytest.fixture(scope="session")
async def stormed(opa_binary: Path) -> AsyncIterator[Remit]:
    # Short, because the socket of PostgreSQL lies in it.
    directory = Path(tempfile.mkdtemp(prefix="remit-storm-", dir="/tmp"))
    # Other tests share the machine: policy may be slow here, and is not what these are about.
    settings = {"REMIT_OPA_BINARY": str(opa_binary), "REMIT_OPA_TIMEOUT_S": "30", "REMIT_LOG_LEVEL": "warning"}
    async with Remit(directory / "d", environment=settings) as remit:
        await remit.start()
        yield remit
    shutil.rmtree(directory, ignore_errors=True)
