"""The verdicts that a run was given, so that a graph which asks again after a crash is told the same."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Not `json` like what is only kept: one verdict is replaced among others.
    op.execute("ALTER TABLE run_payloads ADD COLUMN verdicts jsonb")


def downgrade() -> None:
    op.execute("ALTER TABLE run_payloads DROP COLUMN verdicts")
