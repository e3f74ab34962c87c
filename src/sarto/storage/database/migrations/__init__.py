"""Upgrades a database to the schema of this version: `upgrade`. Revisions are in `versions/`; a released revision never
changes. A database of a newer version is refused."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from sarto.errors import FailedPrecondition
from sarto.storage.database.database import Database, Lock


def upgrade(database: Database) -> None:
    """Create or upgrade every table. Raises FailedPrecondition for a database of a newer version."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    with database.transaction() as connection:
        database.without_limits(connection)
        database.lock(connection, Lock.UPGRADE)
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None:
            _check_known(scripts, current)
        if current != scripts.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def is_known(revision: str) -> bool:
    """Whether this version has the revision."""
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
            f"The database has schema {revision}, which this version of Sarto does not know: a newer one created it. "
            "Start that version, or restore a backup from before its upgrade."
        ) from None
