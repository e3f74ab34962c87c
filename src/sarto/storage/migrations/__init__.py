"""Brings a database to the schema of this program: `upgrade`. Revisions lie in `versions/`; none is ever changed once
it was released. A database of a newer program is refused, never touched.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from sarto.errors import FailedPrecondition
from sarto.storage.database import Database

UPGRADE_LOCK = 7410
"""Number of the advisory lock under which servers that share a PostgreSQL database upgrade it one by one."""


def upgrade(database: Database) -> None:
    """Create or upgrade every table. Raises FailedPrecondition for a database of a newer program."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    with database.transaction() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None:
            _check_known(scripts, current)
        if current != scripts.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def is_known(revision: str) -> bool:
    """Whether this program has the revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    try:
        _check_known(ScriptDirectory.from_config(config), revision)
    except FailedPrecondition:
        return False
    return True


def _check_known(scripts: ScriptDirectory, revision: str) -> None:
    try:
        scripts.get_revision(revision)
    except CommandError:
        raise FailedPrecondition(
            f"The database has schema {revision}, which this version of Sarto does not know: a newer one made it. "
            "Start that version, or restore a backup from before its upgrade."
        ) from None
