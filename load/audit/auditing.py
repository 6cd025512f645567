"""All the checks, asked of one instant of a database."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg

from load.audit.check import Check
from load.audit.decisions import DECISIONS
from load.audit.events import EVENTS
from load.audit.fences import FENCES
from load.audit.groups import GROUPS
from load.audit.lineage import LINEAGE
from load.audit.side_rows import SIDE_ROWS

CHECKS = (*LINEAGE, *EVENTS, *FENCES, *GROUPS, *DECISIONS, *SIDE_ROWS)
# One kind of damage may be in every row; it hides no other kind.
MOST_PER_CHECK = 25

# Whoever lends the connection may have told its planner what suits calls on behalf of one run: no reading of whole
# tables, one plan whatever is asked. So planned, a check took minutes where it takes a second.
PLANNER = """
SET LOCAL enable_seqscan = on;
SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL jit = off;
SET LOCAL work_mem = '64MB'
"""

FOUND = """
SELECT q.finding, count(*) OVER () AS total FROM ({sql}) q
WHERE $1::uuid IS NULL OR q.tenant_id = $1 ORDER BY q.finding LIMIT $2
"""


async def audit(
    connection: asyncpg.Connection,
    *,
    tenant_id: UUID | str | None = None,
    checks: Sequence[Check] = CHECKS,
    most: int = MOST_PER_CHECK,
) -> list[str]:
    """What is wrong with a database, or with one tenant in it; each finding a sentence that begins with its check.

    All the checks see the same instant: the database may be in use meanwhile.

    Args:
        most: so many findings of each check are told; of more, how many there are.
    """
    tenant = UUID(str(tenant_id)) if tenant_id is not None else None
    findings: list[str] = []
    async with _one_instant(connection):
        await connection.execute(PLANNER)
        for check in checks:
            rows = await connection.fetch(FOUND.format(sql=check.sql), tenant, most)
            findings.extend(f"{check.name}: {row['finding']}" for row in rows)
            rest = rows[0]["total"] - len(rows) if rows else 0
            if rest:
                findings.append(f"{check.name}: and {rest} more")
    return findings


@asynccontextmanager
async def _one_instant(connection: asyncpg.Connection) -> AsyncIterator[None]:
    if connection.is_in_transaction():
        yield
        return
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        yield
