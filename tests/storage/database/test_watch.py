"""A watcher is called after each commit, when others can read what was written, and not for a rollback."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from sarto.storage.database.database import Database
from sarto.storage.database.migrations import upgrade
from sarto.storage.database.tables import meta


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made = (
        Database(request.getfixturevalue("postgres_url")) if request.param != "sqlite" else Database.in_home(tmp_path)
    )
    upgrade(made)
    yield made
    made.close()


def write(database: Database, key: str, *, only_answers: bool = False) -> None:
    with database.transaction(only_answers=only_answers) as connection:
        connection.execute(meta.insert().values(key=key, value=""))


@contextmanager
def seen(database: Database) -> Iterator[list[list[str]]]:
    """What another connection can read at each call."""
    found: list[list[str]] = []
    other = Database(database.url)

    def look() -> None:
        with other.reading() as connection:
            found.append(list(connection.execute(sa.select(meta.c.key).where(meta.c.key.like("x-%"))).scalars()))

    database.watch(look)
    yield found
    other.close()


def test_a_watcher_sees_what_was_committed_and_no_rollback(database: Database) -> None:
    with seen(database) as found:
        write(database, "x-1")
        with pytest.raises(ValueError, match="no"), database.transaction() as connection:
            connection.execute(meta.insert().values(key="x-2", value=""))
            raise ValueError("no")
    assert found[0] == ["x-1"] and all(keys == ["x-1"] for keys in found)


def test_a_commit_that_only_an_answer_waits_for_is_seen_too(tmp_path: Path) -> None:
    database = Database.in_home(tmp_path)
    upgrade(database)
    answer, writer = Future[None](), database.writer
    assert writer is not None
    with seen(database) as found:
        writer.expect()
        writer.run(lambda: write(database, "x-1", only_answers=True), answer)
        answer.result(20)
        write(database, "x-2")
    assert found == [["x-1"], ["x-1", "x-2"]]
    database.close()
