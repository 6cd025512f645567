"""A gate before the checkpoint of one step: what comes to it has done its work, and has not told of it yet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy import make_url

KEY = 0x47415445
LOOK_S = 0.02

# The first checkpoint is that of the input, step -1; the step of a number is the one that wrote it.
CLOSE = """
CREATE FUNCTION langgraph.gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.thread_id LIKE '{tenant_id}:%' AND NEW.metadata ->> 'step' = '{step}' THEN
        PERFORM pg_advisory_xact_lock({key});
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER gate BEFORE INSERT ON langgraph.checkpoints FOR EACH ROW EXECUTE FUNCTION langgraph.gate();
"""
OPEN = "DROP TRIGGER IF EXISTS gate ON langgraph.checkpoints; DROP FUNCTION IF EXISTS langgraph.gate()"
WAITING = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted"


class Gate:
    """A gate that is closed."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def reached(self, *, within_s: float = 30.0) -> None:
        """Wait until somebody waits at the gate."""
        async with asyncio.timeout(within_s):
            while not await self._connection.fetch(WAITING, KEY):  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(LOOK_S)

    async def turn_away(self) -> None:
        """Open the gate, and end the connections of those that wait at it: nothing of theirs is kept."""
        waiting = await self._connection.fetch(WAITING, KEY)
        # It goes with those that wait, who hold the table: so it is not waited for before they are gone.
        await self._connection.execute(
            "CREATE OR REPLACE FUNCTION langgraph.gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
        )
        for row in waiting:
            await self._connection.execute("SELECT pg_terminate_backend($1, 10000)", row["pid"])


@asynccontextmanager
async def gate(database_url: str, tenant_id: str, step: int) -> AsyncIterator[Gate]:
    """Close the gate before the checkpoint of a step of a tenant's graphs; it opens with the end of the block."""
    url = make_url(database_url)
    connection = await asyncpg.connect(
        host=str(url.query["host"]), port=int(str(url.query["port"])), user=url.username, database=url.database
    )
    try:
        await connection.execute(OPEN)
        await connection.execute("SELECT pg_advisory_lock($1)", KEY)
        await connection.execute(CLOSE.format(tenant_id=tenant_id, step=step, key=KEY))
        yield Gate(connection)
        await connection.execute(OPEN)
    finally:
        await connection.close()
