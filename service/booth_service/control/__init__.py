"""API, job life cycle and SQL. Never imports torch."""
