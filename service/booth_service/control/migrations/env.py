"""Alembic's entry: upgrades the connection that Database.migrate hands over."""

from alembic import context

from booth_service.control.records import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
