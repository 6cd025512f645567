"""No foreign keys between rows that one transaction writes together and nothing ever deletes.

A member is written with its group, and a payload with its run, in one transaction each, so nothing can come between
them; the audit of the storms and tests looks for strays. Each foreign key is a query per row for PostgreSQL, which made
two fifths of what a group cost it.
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("ALTER TABLE agent_runs DROP CONSTRAINT agent_runs_tenant_id_orchestration_group_id_fkey")
    op.execute("ALTER TABLE run_payloads DROP CONSTRAINT run_payloads_tenant_id_run_id_fkey")


def downgrade() -> None:
    op.execute("ALTER TABLE run_payloads ADD FOREIGN KEY (tenant_id, run_id) REFERENCES agent_runs")
    op.execute(
        "ALTER TABLE agent_runs ADD FOREIGN KEY (tenant_id, orchestration_group_id) REFERENCES orchestration_groups"
    )
