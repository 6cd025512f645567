"""Ids, new and stored. New ones are UUID version 7 (RFC 9562), so that they sort by the time they were made.

They are of the kind in which the driver reads ids: it makes, prints, hashes and sends them in C, which the standard
library's does in Python, a dozen times for each spawn.
"""

from uuid import UUID

from asyncpg.pgproto import pgproto
from uuid_utils import uuid7


def new_id() -> UUID:
    """A new id."""
    made: UUID = pgproto.UUID(uuid7().bytes)
    return made


def stored_id(text: str) -> UUID:
    """An id that the database wrote as text, in JSON for instance."""
    read: UUID = pgproto.UUID(text)
    return read
