"""Tenants, catalog, lineage, fences, events and decisions."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None

TABLES = (
    "policy_decisions",
    "run_events",
    "cancellations",
    "run_leases",
    "run_deadlines",
    "run_payloads",
    "root_run_keys",
    "agent_runs",
    "orchestration_groups",
    "run_trees",
    "orchestrator_allowlist",
    "orchestrator_policies",
    "agents",
    "tenant_flags",
    "tenants",
)


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Many statements at once are what PostgreSQL's simple protocol takes, and asyncpg speaks it in `execute`.
    connection = op.get_bind().connection.dbapi_connection
    if connection is None:
        raise RuntimeError("migrations need a live connection: Alembic's offline mode has none")
    connection.run_async(lambda driver: driver.execute(script))


def downgrade() -> None:
    # CASCADE: the groups and the runs refer to each other.
    op.execute(f"DROP TABLE {', '.join(TABLES)} CASCADE")
