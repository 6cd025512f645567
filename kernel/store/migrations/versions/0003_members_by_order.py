"""Members of a group are found in the tree's order: they share the root and the number of their spawn.

Every status of a run is a new version of its row in each index, so an index less is a part less of every transition.
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # While this version is rolled out, a process of the one before finds members without it, too, only not so fast.
    op.execute("DROP INDEX agent_runs_group")


def downgrade() -> None:
    op.execute(
        "CREATE INDEX agent_runs_group ON agent_runs (tenant_id, orchestration_group_id, ordinal)"
        " WHERE orchestration_group_id IS NOT NULL"
    )
