"""Looking decisions up: one by its id, and pages of them, the newest first.

The table is partitioned by `created_at` and its ids are UUIDs of version 7, so an id tells which partition its record
is in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from kernel.store.engine import ReadSession

Row = Mapping[str, Any]

# The id's time is the service's and `created_at` is the database's. Clocks further apart than this are an outage of
# their own: tokens would no longer verify.
CLOCK_SKEW = timedelta(days=1)

# What is filtered without an index is looked for among so many records a page.
MAX_SCANNED = 5_000

_TIME_ORDERED_VERSION = 7
_TIMESTAMP_SHIFT = 80
_MAX_TIMESTAMP_MS = 2**48 - 1

_LISTED = """
d.decision_id, d.action, d.surface, d.outcome, d.reasons, d.revision, d.caller_run_id, d.root_run_id, d.duration_us,
d.created_at
"""

ONE = f"""
SELECT {_LISTED}, d.input, d.result
FROM policy_decisions d
WHERE d.tenant_id = $1 AND d.decision_id = $2 AND d.created_at >= $3 AND d.created_at < $4
"""


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Which decisions are wanted; None: whichever.

    `run_id` is the run that asked or the root of its tree; `reason` a denial's code; `since` is the first moment of the
    time wanted and `until` the first one after it.
    """

    run_id: UUID | None = None
    action: str | None = None
    outcome: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """Decisions without their inputs and results, and the id beyond which the next page goes on; None at the end.

    With a filter, a page may be shorter than asked for, even empty, before the end.
    """

    items: list[Row]
    following: UUID | None


async def find(session: ReadSession, tenant_id: UUID, decision_id: UUID) -> Row | None:
    """A decision of the tenant, in full."""
    made = made_at(decision_id)
    if made is None:
        return None
    row: Row | None = await session.driver.fetchrow(ONE, tenant_id, decision_id, _less(made), _more(made))
    return row


async def page(
    session: ReadSession, tenant_id: UUID, wanted: DecisionFilter, *, before: UUID | None, limit: int
) -> DecisionPage:
    """A page of the tenant's decisions, the newest first.

    Args:
        before: the id beyond which the page begins.
        limit: how many decisions at most.
    """
    statement, arguments = compose(tenant_id, wanted, before=before, limit=limit)
    rows = await session.driver.fetch(statement, *arguments)
    items = [row for row in rows if row["decision_id"] is not None]
    following = None
    if len(items) > limit:
        items = items[:limit]
        following = items[-1]["decision_id"]
    elif rows[0]["scanned"] == MAX_SCANNED:
        following = rows[0]["last_scanned"]
    return DecisionPage(items, following)


def compose(tenant_id: UUID, wanted: DecisionFilter, *, before: UUID | None, limit: int) -> tuple[str, list[object]]:
    """The statement of a page, with its arguments.

    It takes a stretch of records straight down an index, and of these the ones that match what no index knows.
    """
    arguments: list[object] = []

    def bound(value: object) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    indexed = _indexed(tenant_id, wanted, before, bound)
    matched = _matched(wanted, bound)
    at_most = bound(limit + 1)
    stretch = str(MAX_SCANNED) if matched else at_most
    if wanted.run_id is None:
        scanned = _descending(indexed, stretch)
    else:
        run = bound(wanted.run_id)
        # Two disjoint ways to belong to a run, each with an index that has the order.
        of_tree = _descending([*indexed, f"d.root_run_id = {run}"], stretch)
        of_caller = _descending(
            [*indexed, f"d.caller_run_id = {run}", "d.caller_run_id IS DISTINCT FROM d.root_run_id"], stretch
        )
        scanned = f"""
SELECT d.* FROM (({of_tree}) UNION ALL ({of_caller})) d ORDER BY d.decision_id DESC LIMIT {stretch}"""
    statement = f"""
WITH scanned AS MATERIALIZED ({scanned})
SELECT s.scanned, s.last_scanned, p.*
FROM (
  SELECT count(*) AS scanned, (SELECT d.decision_id FROM scanned d ORDER BY d.decision_id LIMIT 1) AS last_scanned
  FROM scanned
) s
LEFT JOIN (
  SELECT d.* FROM scanned d WHERE {" AND ".join(matched) or "true"} ORDER BY d.decision_id DESC LIMIT {at_most}
) p ON true
ORDER BY p.decision_id DESC
"""
    return statement, arguments


def _indexed(tenant_id: UUID, wanted: DecisionFilter, before: UUID | None, bound: Callable[[object], str]) -> list[str]:
    """The conditions that an index, or the choice of partitions, answers."""
    conditions = [f"d.tenant_id = {bound(tenant_id)}"]
    if before is not None:
        conditions.append(f"d.decision_id < {bound(before)}")
        made = made_at(before)
        if made is not None:
            conditions.append(f"d.created_at < {bound(_more(made))}")
    if wanted.since is not None:
        conditions.append(f"d.created_at >= {bound(wanted.since)}")
        conditions.append(f"d.decision_id >= {bound(first_id_at(_less(wanted.since)))}")
    if wanted.until is not None:
        conditions.append(f"d.created_at < {bound(wanted.until)}")
        conditions.append(f"d.decision_id < {bound(first_id_at(_more(wanted.until)))}")
    if wanted.reason is not None or wanted.outcome in {"deny", "error"}:
        # In the words of the partial index, which a parameter does not imply.
        conditions.append("d.outcome <> 'allow'")
    return conditions


def _matched(wanted: DecisionFilter, bound: Callable[[object], str]) -> list[str]:
    """The conditions that each record is held against."""
    conditions = []
    if wanted.action is not None:
        conditions.append(f"d.action = {bound(wanted.action)}")
    if wanted.outcome is not None:
        conditions.append(f"d.outcome = {bound(wanted.outcome)}")
    if wanted.reason is not None:
        code = bound(wanted.reason)
        conditions.append(
            f"EXISTS (SELECT FROM json_array_elements(d.reasons) AS r (reason) WHERE r.reason ->> 'code' = {code})"
        )
    return conditions


def made_at(decision_id: UUID) -> datetime | None:
    """When an id was made, by the clock of who made it; None where it does not say."""
    if decision_id.version != _TIME_ORDERED_VERSION:
        return None
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=decision_id.int >> _TIMESTAMP_SHIFT)
    except OverflowError:
        return None


def first_id_at(moment: datetime) -> UUID:
    """The lowest id that can be made at a moment; version and variant are left out, which sorts it before them all."""
    milliseconds = (moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
    return UUID(int=max(0, min(milliseconds, _MAX_TIMESTAMP_MS)) << _TIMESTAMP_SHIFT)


def _descending(conditions: list[str], limit: str) -> str:
    return f"""
SELECT {_LISTED} FROM policy_decisions d WHERE {" AND ".join(conditions)} ORDER BY d.decision_id DESC LIMIT {limit}"""


def _less(moment: datetime) -> datetime:
    try:
        return moment - CLOCK_SKEW
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _more(moment: datetime) -> datetime:
    try:
        return moment + CLOCK_SKEW
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
