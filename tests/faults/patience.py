"""Those who wait for no lock for long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kernel.store.engine import Database


@asynccontextmanager
async def impatient(database: Database) -> AsyncIterator[Database]:
    """The same database as of a process that gives up its waits for locks after a moment."""
    impatiently = Database(database.url, pool_size=8, lock_timeout="300ms")
    try:
        yield impatiently
    finally:
        await impatiently.close()
