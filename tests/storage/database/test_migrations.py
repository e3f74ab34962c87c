from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from sarto.errors import FailedPrecondition
from sarto.storage.database.database import Database
from sarto.storage.database.migrations import upgrade
from sarto.storage.database.tables import metadata


def test_migrations_lead_to_the_tables_of_the_program(tmp_path: Path) -> None:
    database = Database.in_home(tmp_path)
    for _ in range(2):
        upgrade(database)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_a_database_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = Database.in_home(tmp_path)
    upgrade(database)
    with database.transaction() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '9999'")
    with pytest.raises(FailedPrecondition, match="9999"):
        upgrade(database)
    database.close()
