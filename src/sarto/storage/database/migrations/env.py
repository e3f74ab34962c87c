"""Entry point of Alembic: applies revisions on the connection of `upgrade`, inside its transaction."""

from alembic import context

from sarto.storage.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
