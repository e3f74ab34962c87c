"""Transactions of many threads on SQLite: each whole and alone, several on one commit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import sqlalchemy as sa

from sarto.storage.database import group_commit
from sarto.storage.database.database import Database
from sarto.storage.database.tables import meta, metadata


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.in_home(tmp_path)
    metadata.create_all(database.engine)
    yield database
    database.close()


def put(database: Database, key: str, *, fail: bool = False) -> None:
    with database.transaction() as connection:
        connection.execute(meta.insert().values(key=key, value="x"))
        if fail:
            raise LookupError(key)


def keys(database: Database) -> set[str]:
    with database.reading() as connection:
        return set(connection.execute(sa.select(meta.c.key)).scalars())


def commits(database: Database) -> list[str]:
    seen: list[str] = []
    sa.event.listen(database.engine, "commit", lambda _: seen.append("commit"))
    return seen


def test_what_has_returned_is_committed_and_what_raised_is_not(database: Database) -> None:
    put(database, "a")
    with pytest.raises(LookupError):
        put(database, "b", fail=True)
    put(database, "c")
    assert keys(database) == {"a", "c"}


def test_threads_that_meet_share_a_commit_and_fail_alone(database: Database) -> None:
    seen = commits(database)
    inside, go = threading.Event(), threading.Event()
    outcome: dict[str, str] = {}

    def first() -> None:
        with database.transaction() as connection:
            connection.execute(meta.insert().values(key="first", value="x"))
            inside.set()
            go.wait(10)

    def later(key: str) -> None:
        try:
            put(database, key, fail=key.endswith("3"))
            outcome[key] = "committed" if key in keys(database) else "missing"
        except LookupError:
            outcome[key] = "failed"

    threads = [threading.Thread(target=first, daemon=True)]
    threads[0].start()
    inside.wait(10)
    threads += [threading.Thread(target=later, args=(f"k{i}",), daemon=True) for i in range(8)]
    for thread in threads[1:]:
        thread.start()
    writer = database._writer
    assert writer is not None
    while writer._waiting < 8:
        threading.Event().wait(0.001)
    assert keys(database) == set()
    go.set()
    for thread in threads:
        thread.join(10)
    assert outcome == {f"k{i}": "failed" if i == 3 else "committed" for i in range(8)}
    assert keys(database) == {"first", *(f"k{i}" for i in range(8) if i != 3)}
    assert len(seen) < 9


def test_a_thousand_transactions_of_ten_threads_all_count(database: Database) -> None:
    put(database, "n")
    with database.transaction() as connection:
        connection.execute(meta.update().values(value="0"))

    def add() -> None:
        for _ in range(100):
            with database.transaction() as connection:
                value = int(connection.execute(sa.select(meta.c.value)).scalar_one())
                connection.execute(meta.update().values(value=str(value + 1)))

    threads = [threading.Thread(target=add, daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with database.reading() as connection:
        assert connection.execute(sa.select(meta.c.value)).scalar_one() == "1000"


def test_a_commit_that_fails_fails_for_all_of_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    put(database, "before")
    writer = database._writer
    assert writer is not None and writer._connection is not None
    raw = writer._connection.connection.dbapi_connection
    assert raw is not None
    raw.close()  # type: ignore[no-untyped-call]
    with pytest.raises(Exception, match="closed"):
        put(database, "lost")
    put(database, "after")
    assert keys(database) == {"before", "after"}


def test_a_transaction_inside_another_is_a_mistake_that_is_named(database: Database) -> None:
    with pytest.raises(AssertionError, match=r"inside another|opens another"), database.transaction():
        put(database, "a")
    put(database, "b")
    assert keys(database) == {"b"}


def test_a_commit_does_not_wait_for_ever(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "MOST_TOGETHER", 1)
    seen = commits(database)
    threads = [threading.Thread(target=put, args=(database, f"k{i}"), daemon=True) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 5


def promise(database: Database, key: str) -> str:
    with database.transaction(only_answers=True) as connection:
        connection.execute(meta.insert().values(key=key, value="1"))
    return key


def test_an_answer_waits_for_its_commit_and_the_thread_does_not(database: Database) -> None:
    writer = database.writer
    assert writer is not None
    first: Future[str] = Future()
    second: Future[str] = Future()
    writer.expect()
    writer.expect()
    writer.run(lambda: promise(database, "a"), first)
    assert keys(database) == set() or first.done()
    writer.run(lambda: promise(database, "b"), second)
    assert (first.result(10), second.result(10)) == ("a", "b")
    assert keys(database) == {"a", "b"}


def test_a_call_that_is_slow_or_writes_nothing_holds_no_answer_up(database: Database) -> None:
    writer = database.writer
    assert writer is not None
    answers: list[Future[str]] = [Future() for _ in range(3)]
    for _ in answers:
        writer.expect()
    writer.run(lambda: promise(database, "a"), answers[0])
    assert answers[0].result(10) == "a"  # while two more are said to come
    writer.run(lambda: "nothing to write", answers[1])
    answers[2].cancel()
    writer.run(lambda: promise(database, "gone"), answers[2])
    assert answers[1].result(10) == "nothing to write"
    assert keys(database) == {"a"}


def test_a_commit_that_fails_is_the_fault_of_the_answer(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = database.writer
    assert writer is not None

    def refuse(_connection: sa.Connection) -> None:
        raise OSError("disk full")

    answer: Future[str] = Future()
    writer.expect()
    with monkeypatch.context() as patched:
        patched.setattr(sa.Connection, "commit", refuse)
        writer.run(lambda: promise(database, "a"), answer)
        with pytest.raises(OSError, match="disk full"):
            answer.result(10)
    assert keys(database) == set()
