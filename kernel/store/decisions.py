"""The records of decisions."""

from collections.abc import Iterable

from kernel.policy.records import DecisionRecord
from kernel.store.engine import WriteSession

APPEND = """
INSERT INTO policy_decisions (tenant_id, decision_id, action, surface, outcome, reasons, revision, caller_run_id,
  root_run_id, input, result, duration_us)
SELECT q.tenant_id, q.decision_id, q.action, q.surface, q.outcome, q.reasons::json, q.revision, q.caller_run_id,
  q.root_run_id, q.input::json, q.result::json, q.duration_us
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[],
  $9::uuid[], $10::text[], $11::text[], $12::int[])
  AS q (tenant_id, decision_id, action, surface, outcome, reasons, revision, caller_run_id, root_run_id, input,
  result, duration_us)
"""


def columns(records: Iterable[DecisionRecord]) -> list[list[object]]:
    """The arrays that `APPEND` takes."""
    turned = [list(column) for column in zip(*(record.row() for record in records), strict=True)]
    return turned or [[] for _ in range(12)]


async def append(session: WriteSession, *records: DecisionRecord) -> None:
    """Write records in the transaction of what they decided."""
    await session.driver.execute(APPEND, *columns(records))
