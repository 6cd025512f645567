"""Trees, their counters, and how runs hang together."""

from load.audit.check import Check

LINEAGE = (
    Check(
        "children_total",
        """
        SELECT t.tenant_id, format('tree %s: children_total is %s, and %s runs are below its root',
          t.root_run_id, t.children_total, coalesce(r.n, 0)) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id, count(*) AS n FROM agent_runs WHERE parent_run_id IS NOT NULL
          GROUP BY 1, 2) r ON r.tenant_id = t.tenant_id AND r.root_run_id = t.root_run_id
        WHERE t.children_total <> coalesce(r.n, 0)
        """,
    ),
    Check(
        "children_count",
        """
        SELECT p.tenant_id, format('run %s: children_count is %s, and it has %s children',
          p.run_id, p.children_count, coalesce(c.n, 0)) AS finding
        FROM agent_runs p
        LEFT JOIN (SELECT tenant_id, parent_run_id, count(*) AS n FROM agent_runs GROUP BY 1, 2) c
          ON c.tenant_id = p.tenant_id AND c.parent_run_id = p.run_id
        WHERE p.children_count <> coalesce(c.n, 0)
        """,
    ),
    Check(
        "status_counters",
        """
        SELECT t.tenant_id, format('tree %s: counts %s queued, %s running, %s paused, and has %s, %s, %s',
          t.root_run_id, t.queued_runs, t.running_runs, t.paused_runs, coalesce(r.queued, 0), coalesce(r.running, 0),
          coalesce(r.paused, 0)) AS finding
        FROM run_trees t
        LEFT JOIN (SELECT tenant_id, root_run_id,
            count(*) FILTER (WHERE status = 'queued') AS queued,
            count(*) FILTER (WHERE status = 'running') AS running,
            count(*) FILTER (WHERE status = 'paused') AS paused
          FROM agent_runs GROUP BY 1, 2) r ON r.tenant_id = t.tenant_id AND r.root_run_id = t.root_run_id
        WHERE (t.queued_runs, t.running_runs, t.paused_runs)
          <> (coalesce(r.queued, 0), coalesce(r.running, 0), coalesce(r.paused, 0))
        """,
    ),
    Check(
        "root",
        """
        SELECT t.tenant_id, format('tree %s: its root run is missing', t.root_run_id) AS finding
        FROM run_trees t
        LEFT JOIN agent_runs r ON r.tenant_id = t.tenant_id AND r.run_id = t.root_run_id AND r.parent_run_id IS NULL
        WHERE r.run_id IS NULL
        """,
    ),
    Check(
        "depth",
        """
        SELECT c.tenant_id, format('run %s: its depth is %s, and that of its parent %s',
          c.run_id, c.depth, coalesce(p.depth::text, 'none')) AS finding
        FROM agent_runs c LEFT JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE c.depth <> coalesce(p.depth + 1, 0)
        """,
    ),
    Check(
        "same_tree",
        """
        SELECT c.tenant_id, format('run %s: is in tree %s, and its parent in %s', c.run_id, c.root_run_id,
          coalesce(p.root_run_id::text, 'none')) AS finding
        FROM agent_runs c LEFT JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE c.parent_run_id IS NOT NULL AND c.root_run_id IS DISTINCT FROM p.root_run_id
        """,
    ),
    Check(
        "spawn_key",
        """
        SELECT tenant_id, format('run %s: has %s children with the key %s', parent_run_id, count(*), spawn_key)
          AS finding
        FROM agent_runs WHERE parent_run_id IS NOT NULL GROUP BY tenant_id, parent_run_id, spawn_key
        HAVING count(*) > 1 OR spawn_key IS NULL
        """,
    ),
    Check(
        "root_key",
        """
        SELECT k.tenant_id, format('idempotency key %s of agent %s: its run %s is missing, or no root of that agent',
          k.idempotency_key, k.agent_id, k.run_id) AS finding
        FROM root_run_keys k
        LEFT JOIN agent_runs r ON r.tenant_id = k.tenant_id AND r.run_id = k.run_id AND r.agent_id = k.agent_id
          AND r.parent_run_id IS NULL
        WHERE r.run_id IS NULL
        """,
    ),
    Check(
        "scopes_shrink",
        """
        SELECT c.tenant_id, format('run %s: holds %s, and its parent %s', c.run_id, c.effective_scopes,
          p.effective_scopes) AS finding
        FROM agent_runs c JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE NOT c.effective_scopes <@ p.effective_scopes
        """,
    ),
    Check(
        "acted_after_its_end",
        """
        SELECT c.tenant_id, format('run %s: was spawned at %s by a run that had ended at %s', c.run_id, c.spawned_seq,
          p.finalized_seq) AS finding
        FROM agent_runs c JOIN agent_runs p ON p.tenant_id = c.tenant_id AND p.run_id = c.parent_run_id
        WHERE c.spawned_seq >= p.finalized_seq
        """,
    ),
)
