"""What may hold a PostgreSQL database up, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from sarto.storage.database import database as databases
from sarto.storage.database.database import Database, Lock


@pytest.fixture
def limited(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    limits = {"statement_timeout": "400ms", "lock_timeout": "200ms", "idle_in_transaction_session_timeout": "300ms"}
    assert limits.keys() == databases.POSTGRES_LIMITS.keys()
    monkeypatch.setattr(databases, "POSTGRES_LIMITS", limits)
    made = Database(postgres_url)
    yield made
    made.close()


def test_a_statement_without_end_is_ended(limited: Database) -> None:
    with pytest.raises(OperationalError, match="statement timeout"), limited.reading() as connection:
        connection.execute(sa.select(sa.func.pg_sleep(60)))


def test_a_lock_that_is_not_given_is_refused_and_one_for_work_that_takes_long_is_waited_for(limited: Database) -> None:
    with limited.alone(Lock.START):
        with pytest.raises(OperationalError, match="lock timeout"), limited.transaction() as connection:
            limited.lock(connection, Lock.START)
        waits = threading.Event()

        def wait() -> None:
            with limited.alone(Lock.START):
                waits.set()

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        assert not waits.wait(0.8), "it neither has the lock nor was refused"
        assert waiting.is_alive()
    waiting.join()
    assert waits.is_set()


def test_a_transaction_that_stands_still_loses_its_locks(limited: Database) -> None:
    with ExitStack() as stack:
        idle = stack.enter_context(limited.engine.connect())
        limited.lock(idle, Lock.POLICY, "a")
        with limited.alone(Lock.POLICY):  # another thing; it waits without a limit
            pass
        with limited.engine.connect() as connection, connection.begin():
            limited.without_limits(connection)
            limited.lock(connection, Lock.POLICY, "a")
        idle.invalidate()


def test_as_many_connections_as_threads_may_ask_for(limited: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "refuses_second", False)  # one thread stands for all
    with ExitStack() as stack:
        for _ in range(databases.MOST_CONNECTIONS):
            stack.enter_context(limited.reading())


def test_a_thread_that_has_a_connection_is_refused_another_in_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "refuses_second", True)
    database = Database.in_home(tmp_path)
    try:
        for outer, inner in product((database.reading, database.transaction), repeat=2):
            with outer(), pytest.raises(AssertionError, match="opens another"), inner():
                pass
            with inner():
                pass  # one after the other is what everybody does
        with database.alone(Lock.START), database.transaction(), ThreadPoolExecutor(1) as pool:
            assert pool.submit(_reads, database).result()
    finally:
        database.close()


def _reads(database: Database) -> bool:
    with database.reading():
        return True
