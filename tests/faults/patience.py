"""Those who wait for no lock for long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kernel.store.engine import Database


@asynccontextmanager
async def impatient(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """The same database as of a process that gives up its waits for locks after a moment."""
    monkeypatch.setattr("kernel.store.engine.LOCK_TIMEOUT", "300ms")
    impatiently = Database(database.url, pool_size=8)
    try:
        yield impatiently
    finally:
        await impatiently.close()
