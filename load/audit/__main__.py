"""`python -m load.audit DATABASE`: what is wrong with a database, a sentence a line; it fails if anything is."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
from asyncpg.exceptions import InterfaceError, PostgresError

from load.audit.auditing import CHECKS, audit
from load.audit.overdue import OVERDUE

# The exit codes of a database that cannot be read, and of an interrupt.
UNUSABLE, INTERRUPTED = 2, 130


async def run(url: str, tenant_id: UUID | None) -> int:
    """Audit the database at a URL, and print the findings; how many there are."""
    connection = await asyncpg.connect(url)
    try:
        findings = await audit(connection, tenant_id=tenant_id, checks=(*CHECKS, *OVERDUE))
    finally:
        await connection.close()
    sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return len(findings)


def url_of(database: str) -> str:
    """The URL of a database that is named by its URL, by its host, or by the data directory of a service."""
    if "://" in database:
        return database.replace("+asyncpg", "", 1)
    socket = Path(database, "postgres")
    host = str(socket.absolute()) if socket.is_dir() else database
    return f"postgresql://remit@/remit?host={host}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m load.audit", description="What is wrong with a database.")
    parser.add_argument(
        "database", help="its URL; or its host; or the data directory of a service that runs on a PostgreSQL of its own"
    )
    parser.add_argument("--tenant", type=UUID, help="only what belongs to the tenant with this id")
    options = parser.parse_args(arguments)
    try:
        return 1 if asyncio.run(run(url_of(options.database), options.tenant)) else 0
    except (OSError, ValueError, PostgresError, InterfaceError) as error:
        print(f"{parser.prog}: {options.database}: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
