"""Connections and transactions.

Reading and writing are two types, so that a query which changes something cannot be called outside a transaction.
SQLAlchemy owns the pool and runs the statements written in Core; the hot statements go to the asyncpg connection
beneath, inside the same transaction. The engine is in AUTOCOMMIT because the transaction is asyncpg's, for both alike.
What is borrowed is the pool's connection: SQLAlchemy's own around it, which costs as much as two statements, is made
where Core is used.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import asyncpg
import orjson
from asyncpg import exceptions as pg
from asyncpg.transaction import Transaction
from sqlalchemy import Connection, PoolProxiedConnection, event
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kernel.domain.errors import DatabaseUnavailableError, LockTimeoutError

# A wait for a tree's lock that takes longer than this is an outage, and is answered like one.
LOCK_TIMEOUT = "15s"
# A process that stands still in the middle of a transaction (stopped, or cut off from the network) loses it, with its
# locks, before those who wait for them give up.
IDLE_IN_TRANSACTION_TIMEOUT = "10s"
CONNECT_TIMEOUT_S = 5.0

# What SQLAlchemy wraps the driver's exceptions in.
WRAPPERS = (DBAPIError, AsyncAdapt_asyncpg_dbapi.Error)
# What asyncpg raises when the server is gone, starting up, shutting down or out of connections.
UNAVAILABLE = (
    OSError,
    asyncio.TimeoutError,
    pg.PostgresConnectionError,
    pg.InterfaceError,
    # What asyncpg says of a statement during which its connection is lost.
    pg.InternalClientError,
    pg.OperatorInterventionError,
    pg.InsufficientResourcesError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.IdleSessionTimeoutError,
)


@dataclass(frozen=True, slots=True)
class ReadSession:
    """A connection for statements that change nothing; each has a snapshot of its own."""

    engine: AsyncEngine
    lent: PoolProxiedConnection
    driver: asyncpg.Connection

    @property
    def core(self) -> AsyncConnection:
        """The same connection, for statements written in Core."""
        return AsyncConnection(self.engine, Connection(self.engine.sync_engine, self.lent))


@dataclass(frozen=True, slots=True)
class WriteSession(ReadSession):
    """A connection within a transaction at READ COMMITTED, which commits when its block ends without an exception."""


class Database:
    """The pool of connections to one PostgreSQL.

    Args:
        url: an SQLAlchemy URL of the dialect `postgresql+asyncpg`.
        pool_size: how many connections this process may hold, none beyond.
        pool_timeout_s: how long a request waits for one before it is answered 503.
        lock_timeout: how long a statement waits for a lock, in PostgreSQL's notation.
    """

    def __init__(
        self, url: str, *, pool_size: int = 16, pool_timeout_s: float = 10.0, lock_timeout: str = LOCK_TIMEOUT
    ) -> None:
        self.url = url
        self._lock_timeout = lock_timeout
        self.engine: AsyncEngine = create_async_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_timeout_s,
            pool_reset_on_return=None,
            hide_parameters=True,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "server_settings": {
                    "application_name": "remit",
                    "lock_timeout": lock_timeout,
                    "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
                    "timezone": "UTC",
                    "jit": "off",
                    # Every statement here looks rows up by key. A plan that was cached while a table was nearly empty
                    # would read the whole of it for as long as the connection lives.
                    "enable_seqscan": "off",
                    # And none depends on what is asked for: planning anew for each call costs up to ten times as much
                    # as a call on behalf of one run (1.05 ms of CPU instead of 0.10 ms for the facts of a spawn).
                    "plan_cache_mode": "force_generic_plan",
                },
            },
        )
        event.listen(self.engine.sync_engine.pool, "checkout", _replace_when_closed)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[ReadSession]:
        """Borrow a connection for reading.

        Raises:
            DatabaseUnavailableError: when PostgreSQL does not answer; LockTimeoutError when it does, but a lock was not
                to be had.
        """
        async with self._borrow() as (lent, driver):
            yield ReadSession(self.engine, lent, driver)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteSession]:
        """Borrow a connection and hold a transaction around the block.

        Raises:
            DatabaseUnavailableError: when PostgreSQL does not answer; then nothing is known to have been committed.
        """
        async with self._borrow() as (lent, driver):
            transaction = driver.transaction()
            await transaction.start()
            try:
                yield WriteSession(self.engine, lent, driver)
            except BaseException:
                if not driver.is_closed():
                    # Shielded: a cancelled request must neither leak its connection nor keep its locks.
                    await asyncio.shield(_roll_back(transaction, driver))
                raise
            await transaction.commit()

    @asynccontextmanager
    async def write_on(self, session: ReadSession) -> AsyncIterator[WriteSession]:
        """Hold a transaction around the block, on a connection that is kept beyond it for the sake of what is on it."""
        async with session.driver.transaction():
            yield WriteSession(self.engine, session.lent, session.driver)

    @asynccontextmanager
    async def _borrow(self) -> AsyncIterator[tuple[PoolProxiedConnection, asyncpg.Connection]]:
        try:
            lent = await self.engine.raw_connection()
            driver = cast("asyncpg.Connection", lent.driver_connection)
            try:
                yield lent, driver
            except (asyncio.CancelledError, pg.InternalClientError):
                # What was under way may yet take effect, a BEGIN above all: whoever borrowed the connection next
                # would write into a transaction that nobody ends. The pool replaces it.
                driver.terminate()
                raise
            finally:
                # Nothing is reset on return, so this waits for nothing and cannot be cancelled.
                lent.close()
        except PoolTimeoutError as error:
            raise DatabaseUnavailableError("every connection to the database is in use; try again shortly") from error
        except (*WRAPPERS, *UNAVAILABLE, pg.LockNotAvailableError) as error:
            cause = cause_of(error) if isinstance(error, WRAPPERS) else error
            if isinstance(cause, pg.LockNotAvailableError):
                raise LockTimeoutError(
                    f"somebody has held a lock for {self._lock_timeout}; try again shortly"
                ) from error
            if isinstance(cause, UNAVAILABLE):
                raise DatabaseUnavailableError(f"the database does not answer: {cause}") from error
            raise

    def in_use(self) -> int:
        """How many connections are borrowed at this moment."""
        checked_out: int = self.engine.sync_engine.pool.checkedout()  # type: ignore[attr-defined]
        return checked_out

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def cause_of(error: BaseException) -> BaseException:
    """The driver's own exception beneath SQLAlchemy's wrappers."""
    while True:
        inner = getattr(error, "orig", None) or error.__cause__
        if inner is None or inner is error:
            return error
        error = inner


def _replace_when_closed(dbapi_connection: Any, _record: object, _proxy: object) -> None:
    # asyncpg learns of a dead server from the socket itself, so this costs no round trip.
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError


async def _roll_back(transaction: Transaction, driver: asyncpg.Connection) -> None:
    try:
        await transaction.rollback()
    except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError):
        driver.terminate()
