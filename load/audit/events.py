"""What the events of a tree tell: everything, once, and in order."""

from load.audit.check import Check

# What events tell of the statuses of runs; a fence's own event has ended nothing yet. What is told of several runs at
# once stands in `children`, and whom a drain has cancelled in `subjects`.
LIFECYCLE = """
SELECT e.tenant_id, e.root_run_id, e.seq, (k ->> 'child_run_id')::uuid AS run_id, k ->> 'status' AS status
FROM run_events e
CROSS JOIN LATERAL json_array_elements(coalesce(e.data -> 'children', json_build_array(e.data))) AS k
WHERE e.type = 'orchestration.child_lifecycle'
"""
# OFFSET 0, or the whole document would be read for each of the runs that it tells of.
_ENDS = """
SELECT e.tenant_id, e.root_run_id, e.seq, s.run_id, e.cancellation_id
FROM (
  SELECT tenant_id, root_run_id, seq, subjects, data ->> 'cancellation_id' AS cancellation_id FROM run_events
  WHERE {which} OFFSET 0
) e
CROSS JOIN LATERAL unnest(e.subjects) AS s (run_id)
"""
DRAINS = _ENDS.format(which="type = 'orchestration.cancellation_propagation' AND (data ->> 'count')::int > 0")
# With whoever ended under a fence by itself: of those, too, the event of the end names the fence.
CANCELLED_BY = _ENDS.format(
    which="""CASE type
    WHEN 'orchestration.cancellation_propagation' THEN (data ->> 'count')::int > 0
    WHEN 'orchestration.child_lifecycle' THEN data ->> 'cancellation_id' IS NOT NULL
  END"""
)
TOLD = f"""
{LIFECYCLE}
UNION ALL
SELECT d.tenant_id, d.root_run_id, d.seq, d.run_id, 'cancelled' FROM ({DRAINS}) d
"""

EVENTS = (
    Check(
        "sequence",
        """
        SELECT t.tenant_id, format('tree %s: seq is %s, and it has %s events with %s numbers from %s to %s',
          t.root_run_id, t.seq, coalesce(e.n, 0), coalesce(e.numbers, 0), e.first, e.last) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id, count(*) AS n, count(DISTINCT seq) AS numbers, min(seq) AS first,
            max(seq) AS last FROM run_events GROUP BY 1, 2) e
          ON e.tenant_id = t.tenant_id AND e.root_run_id = t.root_run_id
        WHERE (coalesce(e.n, 0), coalesce(e.numbers, 0), e.first, e.last) IS DISTINCT FROM (t.seq, t.seq, 1, t.seq)
        """,
    ),
    Check(
        "event_without_tree",
        """
        SELECT e.tenant_id, format('event %s of tree %s: there is no such tree', e.seq, e.root_run_id) AS finding
        FROM run_events e LEFT JOIN run_trees t ON t.tenant_id = e.tenant_id AND t.root_run_id = e.root_run_id
        WHERE t.root_run_id IS NULL
        """,
    ),
    Check(
        "transitions_in_order",
        """
        SELECT r.tenant_id, format('run %s: spawned at %s, started at %s, ended at %s, in a tree that is at %s',
          r.run_id, r.spawned_seq, r.started_seq, r.finalized_seq, t.seq) AS finding
        FROM agent_runs r JOIN run_trees t ON t.tenant_id = r.tenant_id AND t.root_run_id = r.root_run_id
        WHERE r.spawned_seq < 1 OR r.started_seq < r.spawned_seq OR r.finalized_seq <= r.spawned_seq
          OR r.finalized_seq <= r.started_seq
          OR greatest(r.spawned_seq, r.started_seq, r.finalized_seq) > t.seq
        """,
    ),
    Check(
        "transitions_told",
        """
        SELECT r.tenant_id, format('run %s: no event with the number %s tells of it', r.run_id, q.seq) AS finding
        FROM agent_runs r
        -- Spawned and started by one event, a run misses it once.
        CROSS JOIN LATERAL (
          SELECT DISTINCT v.seq FROM (VALUES (r.spawned_seq), (r.started_seq), (r.finalized_seq)) AS v (seq)
        ) q
        LEFT JOIN (SELECT tenant_id, root_run_id, seq, unnest(subjects) AS run_id FROM run_events) e
          ON e.tenant_id = r.tenant_id AND e.root_run_id = r.root_run_id AND e.seq = q.seq AND e.run_id = r.run_id
        WHERE q.seq IS NOT NULL AND e.seq IS NULL
        """,
    ),
    Check(
        "status_told",
        f"""
        SELECT r.tenant_id, format('run %s: is %s, ended at %s, and was last told to be %s, at %s', r.run_id, r.status,
          r.finalized_seq, e.status, e.seq) AS finding
        FROM agent_runs r
        LEFT JOIN (SELECT DISTINCT ON (tenant_id, run_id) tenant_id, run_id, seq, status FROM ({TOLD}) t
          ORDER BY tenant_id, run_id, seq DESC) e ON e.tenant_id = r.tenant_id AND e.run_id = r.run_id
        -- Of what nobody has taken up since its spawn, only the spawn is told.
        WHERE r.status <> coalesce(e.status, CASE WHEN r.background THEN 'queued' ELSE 'running' END)
          OR (r.finalized_seq IS NOT NULL AND r.finalized_seq IS DISTINCT FROM e.seq)
        """,
    ),
    Check(
        "told_after_end",
        f"""
        SELECT r.tenant_id, format('run %s: ended at %s, and is told to be %s at %s', r.run_id, r.finalized_seq,
          e.status, e.seq) AS finding
        FROM ({TOLD}) e
        JOIN agent_runs r ON r.tenant_id = e.tenant_id AND r.run_id = e.run_id
        WHERE e.seq > r.finalized_seq
        """,
    ),
)
