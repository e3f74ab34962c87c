"""A database and the folder its rows name belong together, and a server sees that before it touches either."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarto.errors import FailedPrecondition
from sarto.storage.data_folder import claim
from sarto.storage.database.database import Database
from sarto.storage.database.migrations import upgrade


def opened(home: Path, url: str = "") -> Database:
    home.mkdir(exist_ok=True)
    database = Database.in_home(home, url)
    upgrade(database)
    return database


def test_a_folder_and_its_database_know_each_other(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "a"), opened(tmp_path / "b")
    for _ in range(2):
        claim(first, tmp_path / "a")
    with pytest.raises(FailedPrecondition, match="belongs to the data folder"):
        claim(first, tmp_path / "b")
    claim(second, tmp_path / "b")
    with pytest.raises(FailedPrecondition, match="data_folder"):
        claim(first, tmp_path / "b")
    for database in (first, second):
        database.close()


def test_a_new_database_over_the_objects_of_another_is_refused_before_they_look_like_leftovers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    claim(old := opened(home), home)
    old.close()
    (home / "sarto.db").unlink()
    claim(again := opened(home), home)
    again.close()
    (home / "sarto.db").unlink()
    (home / "objects" / "ab").mkdir(parents=True)
    (home / "objects" / "ab" / "abcd").write_bytes(b"x")
    new = opened(home)
    with pytest.raises(FailedPrecondition, match="objects of another database"):
        claim(new, home)
    new.close()


def test_a_home_from_before_folders_had_ids_gets_one(tmp_path: Path) -> None:
    (tmp_path / "objects" / "ab").mkdir(parents=True)
    (tmp_path / "objects" / "ab" / "abcd").write_bytes(b"x")
    database = opened(tmp_path)
    for _ in range(2):
        claim(database, tmp_path)
    database.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_folder_that_was_moved_goes_on(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else f"sqlite:///{tmp_path / 'rows.db'}"
    there = opened(tmp_path / "before", url)
    claim(there, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    claim(there, tmp_path / "after")
    (tmp_path / "other").mkdir()
    with pytest.raises(FailedPrecondition, match=f"was last at {tmp_path / 'after'}"):
        claim(there, tmp_path / "other")
    there.close()
