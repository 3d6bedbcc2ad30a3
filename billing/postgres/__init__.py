"""PostgreSQL: the schema, engines, partitions, locks and migrations."""
