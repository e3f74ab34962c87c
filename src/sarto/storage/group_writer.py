"""Writing to SQLite from many threads: transactions that meet share one commit, and so one wait for the disk.

Each is a savepoint of its own: it sees what those before it wrote, fails alone, and returns only when the commit that
holds it is on the disk. Knows no table; `database` uses it for SQLite, whose file has a single writer anyhow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

MOST_TOGETHER = 64
LONGEST_SECONDS = 0.02
"""How long the first transaction of a commit may have to wait for later ones."""


class _Commit:
    """One commit to come, and how it went."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.size = 0
        self.ended = threading.Event()
        self.fault: BaseException | None = None


class GroupWriter:
    """Owns the writing connection of one database. A thread must not open a transaction inside another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._waiting = 0
        self._owner = 0
        self._connection: Connection | None = None
        self._commit: _Commit | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Committed when the block has returned; rolled back, alone, when it raises."""
        with self._my_turn():
            connection, commit = self._join()
            try:
                yield connection
            except BaseException as error:
                self._undo(connection, commit, error)
                raise
            _say(connection, "RELEASE one")
            commit.size += 1
            self._end_unless_others_wait(connection, commit)
        commit.ended.wait()
        if commit.fault is not None:
            raise commit.fault

    def close(self) -> None:
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        me = threading.get_ident()
        assert self._owner != me, "a transaction was opened inside another"
        with self._count:
            self._waiting += 1
        try:
            self._turn.acquire()
        finally:
            with self._count:
                self._waiting -= 1
        self._owner = me
        try:
            yield
        finally:
            self._owner = 0
            self._turn.release()

    def _join(self) -> tuple[Connection, _Commit]:
        """The open transaction of the database, or a new one, with a savepoint of ours."""
        connection = self._connection or self._engine.connect()
        self._connection = connection
        if self._commit is None:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except BaseException:
                connection.rollback()
                raise
            self._commit = _Commit()
        try:
            _say(connection, "SAVEPOINT one")
        except BaseException as error:
            self._finish(connection, self._commit, error)
            raise
        return connection, self._commit

    def _undo(self, connection: Connection, commit: _Commit, error: BaseException) -> None:
        """Take back one block's writes; when the database gave up the whole transaction, all of it has failed."""
        try:
            connection.exec_driver_sql("ROLLBACK TO one")
            connection.exec_driver_sql("RELEASE one")
        except DBAPIError:
            self._finish(connection, commit, error)
            return
        self._end_unless_others_wait(connection, commit)

    def _end_unless_others_wait(self, connection: Connection, commit: _Commit) -> None:
        """The last one commits for all; so does the one that makes it many."""
        with self._count:
            others = self._waiting
        if not others or commit.size >= MOST_TOGETHER or time.monotonic() - commit.began > LONGEST_SECONDS:
            self._finish(connection, commit, None)

    def _finish(self, connection: Connection, commit: _Commit, fault: BaseException | None) -> None:
        self._commit = None
        try:
            if fault is None:
                connection.commit()
            else:
                connection.rollback()
        except BaseException as error:
            fault = error
            connection.invalidate()
            self._connection = None
        commit.fault = fault
        commit.ended.set()


def _say(connection: Connection, statement: str) -> None:
    """A statement of the busiest path straight to the driver: the way through the engine costs ten times as much."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute(statement)
