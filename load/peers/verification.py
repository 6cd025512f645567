"""What was claimed, held against what is there."""

from dataclasses import dataclass, field

import asyncpg


class UnverifiedError(RuntimeError):
    """A contender does not have what it has acknowledged: its figures mean nothing."""


@dataclass
class Verified:
    """What has been seen to be true, in words, each once; and how many things were counted for it."""

    counts: dict[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """The sentences of the report."""
        return [f"{what}: {count:,} counted" if count else what for what, count in self.counts.items()]


def expect(what: str, found: float, claimed: float, verified: Verified) -> None:
    """Take down that as many are there as were acknowledged.

    Raises:
        UnverifiedError: they are not.
    """
    if found != claimed:
        raise UnverifiedError(f"{what}: {claimed:,.0f} were acknowledged, {found:,.0f} are there")
    verified.counts[what] = verified.counts.get(what, 0) + int(found)


async def durable(connection: asyncpg.Connection, whose: str, verified: Verified) -> None:
    """Take down that what is committed through this connection's database is on disk.

    Raises:
        UnverifiedError: the server may lose what it has acknowledged.
    """
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        value = await connection.fetchval(f"SHOW {setting}")
        if value != "on":
            raise UnverifiedError(f"{whose}: {setting} is {value}")
    verified.counts.setdefault(f"{whose} commits with fsync, synchronous_commit and full_page_writes on", 0)
