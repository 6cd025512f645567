"""What has been due for too long: it says that nobody sees to it, and nothing of what a database holds."""

from load.audit.check import Check

# The reconcilers look each second or so; on a busy machine they are late, but not as late as this.
OVERDUE_S = 60

OVERDUE = (
    Check(
        "overdue",
        f"""
        SELECT tenant_id, format('run %s: its lease ran out at %s', run_id, expires_at) AS finding
        FROM run_leases WHERE lease IS NOT NULL AND expires_at < now() - interval '{OVERDUE_S} s'
        UNION ALL
        SELECT tenant_id, format('run %s: its deadline was at %s', run_id, deadline)
        FROM run_deadlines WHERE deadline < now() - interval '{OVERDUE_S} s'
        UNION ALL
        SELECT tenant_id, format('group %s: is undecided, and its deadline was at %s', group_id, deadline)
        FROM orchestration_groups WHERE status = 'running' AND deadline < now() - interval '{OVERDUE_S} s'
        """,
    ),
)
