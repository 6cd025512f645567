"""What the planner is told of tenants instead of counting them: each may be all there is.

Every key begins with the tenant. To a planner that has counted, a tenant that is new, or too small to have been seen,
has one row: then any index that begins with the tenant looks as good as the one by the whole key, and a look-up reads
all that the tenant has. (Seen with ten million runs of one tenant and a thousand of a new one: a walk up a thousand
levels read a million rows. The same goes for a database in which nothing has been counted yet.)
"""

from kernel.store.engine import WriteSession

# Nothing is collected for the column any more, so what is said here stays.
_SAY = """
DO $$
DECLARE
  told record;
BEGIN
  FOR told IN
    SELECT c.oid::regclass AS name, c.relname::text AS relname, n.nspname::text AS nspname, c.relkind = 'p' AS inherited
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attname = 'tenant_id' AND a.attstattarget IS DISTINCT FROM 0 AND {which}
  LOOP
    EXECUTE format('ALTER TABLE ONLY %s ALTER COLUMN tenant_id SET STATISTICS 0', told.name);
    PERFORM pg_clear_attribute_stats(told.nspname, told.relname, 'tenant_id', told.inherited);
    PERFORM pg_restore_attribute_stats(
      'schemaname', told.nspname, 'relname', told.relname, 'attname', 'tenant_id', 'inherited', told.inherited,
      'null_frac', 0::real, 'avg_width', 16, 'n_distinct', 1::real);
  END LOOP;
END
$$
"""

# `tenants` is the one table that has a row for each.
SAY_OF_ALL = _SAY.format(which="c.relnamespace = current_schema()::regnamespace AND c.relname <> 'tenants'")


async def say_of(session: WriteSession, table: str) -> None:
    """Tell the planner of the tenants in a table that is new."""
    await session.driver.execute(_SAY.format(which=f"c.oid = '{table}'::regclass"))
