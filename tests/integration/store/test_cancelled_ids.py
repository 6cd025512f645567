"""What a fence has cancelled is read out of the events of its tree."""

import re
import uuid

from kernel.store import drains, partitions
from kernel.store.engine import Database

# Ten events of a hundred runs and ten of one, in turns, among events of others; then 20,000 of the week after.
TOLD = """
INSERT INTO run_events (tenant_id, root_run_id, seq, type, surface, run_id, subjects, data, created_at)
SELECT $1, $2, n,
  CASE n % 4 WHEN 0 THEN 'orchestration.cancellation_propagation' ELSE 'orchestration.child_lifecycle' END, 's', $2,
  ARRAY(SELECT gen_random_uuid() FROM generate_series(1, CASE n % 4 WHEN 0 THEN 100 ELSE 1 END) WHERE n > 0),
  CASE WHEN n BETWEEN 8 AND 47 AND n % 4 < 2 THEN json_build_object('cancellation_id', $3::text) ELSE '{}' END,
  now() + CASE WHEN n > 100 THEN interval '7 days' ELSE '0' END
FROM generate_series(1, 20100) AS n
"""


async def test_what_a_fence_has_cancelled_is_found_without_reading_what_the_tree_has_told_since(
    own_database: Database,
) -> None:
    tenant_id, root_run_id, cancellation_id = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    at = (tenant_id, root_run_id, str(cancellation_id))
    await partitions.ensure(own_database)
    async with own_database.write() as session:
        await session.driver.execute(TOLD, *at)
        await session.driver.execute("ANALYZE run_events")
        expected = await session.driver.fetch(
            "SELECT s.run_id FROM run_events e, unnest(subjects) WITH ORDINALITY AS s (run_id, n)"
            " WHERE tenant_id = $1 AND root_run_id = $2 AND data ->> 'cancellation_id' = $3 ORDER BY e.seq, n",
            *at,
        )
    ids = [row["run_id"] for row in expected]
    assert len(ids) == 1_010
    async with own_database.read() as session:
        for limit in (len(ids), 503, 0):
            found = await drains.cancelled_ids(session, tenant_id, root_run_id, cancellation_id, 5, limit)
            assert found == ids[:limit]
        explain = f"EXPLAIN (ANALYZE, TIMING off, BUFFERS off) {drains.CANCELLED_IDS}"
        plan = await session.driver.fetch(explain, tenant_id, root_run_id, 5, at[-1], len(ids))
    text = "\n".join(row[0] for row in plan)
    read = [float(rows) for rows in re.findall(r"Scan using \S+ on run_events\S*.*actual rows=([\d.]+)", text)]
    removed = [float(rows) for rows in re.findall(r"Rows Removed by Filter: (\d+)", text)]
    assert read, text
    assert sum(read) + sum(removed) < 200, text
