"""The finished trees that measurements are taken beside are such as the kernel leaves."""

from uuid import UUID

import asyncpg
from sqlalchemy import make_url

from load.audit import audit
from load.scaling import history
from tests.kit import Kit, done
from tests.orchestration_runtime_primitives.work.crew import claim, complete, report

TREES = 3


async def test_trees_that_are_written_are_in_order_by_the_audit(kit: Kit, database_url: str) -> None:
    url = make_url(database_url)

    async def connect() -> asyncpg.Connection:
        connection: asyncpg.Connection = await asyncpg.connect(
            host=str(url.query["host"]), port=int(str(url.query["port"])), user=url.username, database=url.database
        )
        return connection

    root, _ = await kit.team(max_fanout=history.MEMBERS, max_children_total=history.MEMBERS)
    done(await kit.spawn_group(root, "template", 2))
    for run in await claim(kit, "worker", max_runs=2):
        done(await complete(kit, run))
    done(await report(kit.api, root.run_id, "completed"))

    await history.write_history(
        connect, tenant_id=kit.tenant_id, template_root=root.run_id, runs=TREES * history.MEMBERS
    )

    connection = await connect()
    try:
        trees = await connection.fetchval("SELECT count(*) FROM run_trees WHERE tenant_id = $1", UUID(kit.tenant_id))
        runs = await connection.fetchval("SELECT count(*) FROM agent_runs WHERE tenant_id = $1", UUID(kit.tenant_id))
        assert (trees, runs) == (1 + TREES, 3 + TREES * (1 + history.MEMBERS))
        assert await audit(connection, tenant_id=kit.tenant_id) == []
    finally:
        await connection.close()
