"""Tools, retrieval pipelines and their documents."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = ("retrieval_chunks", "retrieval_documents", "retrieval_pipelines", "tool_versions", "tools")

# Only what the upgrade has installed is taken back.
DROP_EXTENSION = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'vector'
               AND obj_description(oid, 'pg_extension') = 'installed by remit migrate') THEN
        DROP EXTENSION vector;
    END IF;
END
$$
"""


def upgrade() -> None:
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Many statements at once are what PostgreSQL's simple protocol takes, and asyncpg speaks it in `execute`.
    connection = op.get_bind().connection.dbapi_connection
    if connection is None:
        raise RuntimeError("migrations need a live connection: Alembic's offline mode has none")
    connection.run_async(lambda driver: driver.execute(script))


def downgrade() -> None:
    op.execute(f"DROP TABLE {', '.join(TABLES)}")
    op.execute(DROP_EXTENSION)
