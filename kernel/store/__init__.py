"""PostgreSQL: tables, migrations, and the queries by noun. One dialect, one truth."""
