from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.storage.buckets import Buckets
from sarto.storage.database import Database
from sarto.storage.tables import metadata

OWNER, STRANGER = "101", "202"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.in_home(tmp_path)
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def buckets(database: Database, tmp_path: Path) -> Buckets:
    buckets = Buckets(database, tmp_path)
    buckets.create_bucket(OWNER, "data")
    return buckets
