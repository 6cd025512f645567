"""Without an answer from policy nothing is cancelled, read or judged, and each failure is on record."""

from uuid import UUID

import pytest

from kernel.commands.cancel_subtree import CancelSubtree, CancelSubtreeCommand
from kernel.commands.evaluate_and_replan import EvaluateAndReplan, EvaluateAndReplanCommand
from kernel.commands.query_tree import QueryTree, QueryTreeCommand
from kernel.domain.errors import PolicyUnavailableError
from kernel.domain.principal import Principal
from kernel.policy.opa import OpaAddress, OpaEngine
from kernel.store.engine import Database
from tests.kit import Kit


async def test_without_policy_nothing_is_cancelled_read_or_judged(kit: Kit, database: Database) -> None:
    root, _ = await kit.team()
    run_id = UUID(root.run_id)
    principal = Principal("tenant", UUID(kit.tenant_id), frozenset({"agents.execute"}))
    # Nothing listens on the discard port of loopback.
    async with OpaEngine(OpaAddress("127.0.0.1", 9, tls=False)) as engine:
        with pytest.raises(PolicyUnavailableError):
            await CancelSubtreeCommand(database, engine).execute(principal, CancelSubtree(run_id, run_id))
        with pytest.raises(PolicyUnavailableError):
            await QueryTreeCommand(database, engine).execute(principal, QueryTree(run_id))
        with pytest.raises(PolicyUnavailableError):
            await EvaluateAndReplanCommand(database, engine).execute(principal, EvaluateAndReplan(run_id, run_id))
    async with database.read() as session:
        rows = await session.driver.fetch(
            "SELECT action, outcome FROM policy_decisions WHERE tenant_id = $1 AND outcome <> 'allow' ORDER BY 1",
            UUID(kit.tenant_id),
        )
        assert [tuple(row) for row in rows] == [
            ("cancel_subtree", "error"),
            ("evaluate_and_replan", "error"),
            ("query_tree", "error"),
        ]
        count = "SELECT count(*) FROM cancellations WHERE tenant_id = $1"
        assert await session.driver.fetchval(count, UUID(kit.tenant_id)) == 0
