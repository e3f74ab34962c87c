from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sarto.storage.buckets.store import Buckets
from sarto.storage.database.database import Database
from sarto.storage.database.tables import metadata
from sarto.storage.encryption.key_service import KeyService
from sarto.storage.encryption.keyset_store import KeyMaterial
from sarto.storage.encryption.master_key import read_master
from sarto.storage.encryption.scratch_folder import PrivateFolder
from sarto.storage.encryption.sealer import Sealer
from tests.control.conftest import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]

OWNER, STRANGER = "101", "202"


ON_BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
"""Runs a test on both databases; without it, on SQLite."""


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    is_postgres = getattr(request, "param", "sqlite") == "postgresql"
    database = Database.in_home(tmp_path, request.getfixturevalue("postgres_url") if is_postgres else "")
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def buckets(database: Database, tmp_path: Path) -> Buckets:
    keys = KeyService(database, KeyMaterial(tmp_path / "keys", read_master(tmp_path)))
    buckets = Buckets(database, tmp_path, Sealer(keys, PrivateFolder(tmp_path / "private")))
    buckets.create_bucket(OWNER, "data")
    return buckets
