"""What the tests of the kernel's invariants ask of the database when they are done."""

from collections.abc import Awaitable, Callable

import pytest

from kernel.store.engine import Database
from load.audit import audit
from tests.kit import Kit

Audited = Callable[[Kit], Awaitable[None]]


@pytest.fixture
def audited(database: Database) -> Audited:
    """Audit what a tenant has written."""

    async def look(kit: Kit) -> None:
        async with database.read() as session:
            assert await audit(session.driver, tenant_id=kit.tenant_id) == []

    return look
