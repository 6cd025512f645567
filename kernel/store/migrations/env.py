"""How Alembic reaches the database: over a connection that `kernel.store.migrate` has opened."""

from alembic import context

from kernel.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="remit_schema_version",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
