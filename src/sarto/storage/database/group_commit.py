"""Group commit for SQLite: concurrent transactions share one commit, and so one wait for the disk.

Each transaction is a savepoint: it sees earlier writes, fails alone, and returns when its commit is on the disk. In
`run`, the response waits for the commit instead, and the thread continues. SQLite has a single writer anyway, so the
queue costs no concurrency.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")
MOST_TOGETHER = 64
LONGEST_SECONDS = 0.02
"""Longest time that the first transaction of a commit waits for later ones."""


class _Commit:
    """A future commit and its result."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.size = 0
        self.ended: Future[None] = Future()


class _ThreadState(threading.local):
    """State of a call in `run` on this thread: whether it still counts as expected, and the commits for which its
    response waits."""

    is_expected = False
    commits: list[_Commit] | None = None


class GroupWriter:
    """Owns the writing connection of one database. A thread must not open a transaction inside another."""

    def __init__(self, engine: Engine, on_commit: Callable[[], None]) -> None:
        """`on_commit` is called after each commit, while no other transaction can begin."""
        self._engine, self._on_commit = engine, on_commit
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._waiting = 0
        self._expected = 0
        self._call = _ThreadState()
        self._owner = 0
        self._connection: Connection | None = None
        self._commit: _Commit | None = None
        self._left_open = threading.Event()
        self._is_closed = False
        threading.Thread(target=self._watch, name="commits", daemon=True).start()

    def expect(self) -> None:
        """Announce a call that will probably write by `run`: an open commit waits for it, for a short time."""
        with self._count:
            self._expected += 1

    def run(self, call: Callable[[], T], answer: Future[T]) -> None:
        """Run an announced call; `answer` has its result or exception once all its writes are on the disk."""
        self._call.is_expected, self._call.commits = True, []
        settle: Callable[[], None] | None = None
        try:
            if answer.set_running_or_notify_cancel():  # else its client has disconnected
                settle = partial(answer.set_result, call())
        except BaseException as error:
            settle = partial(answer.set_exception, error)
        commits, self._call.commits = self._call.commits, None
        if self._call.is_expected:  # it wrote nothing, but a commit may be open that waits for this call alone
            self._arrive()
            with self._my_turn():
                if self._commit is not None and self._connection is not None:
                    self._end_unless_others_come(self._connection, self._commit, may_wait=True)

        def when_all_ended(_last: object = None) -> None:
            fault = next(filter(None, (commit.ended.exception() for commit in commits)), None)
            if fault is not None:
                answer.set_exception(fault)
            elif settle is not None:
                settle()

        if commits:
            commits[-1].ended.add_done_callback(when_all_ended)  # one thread's commits end in their order
        else:
            when_all_ended()

    @contextmanager
    def transaction(self, *, only_answers: bool = False) -> Iterator[Connection]:
        """Committed when the block has returned; rolled back, alone, when it raises. With `only_answers` only a
        response depends on the commit: inside `run` the response waits for it, and this call does not."""
        commits = self._call.commits if only_answers else None
        with self._my_turn():
            connection, commit = self._join()
            try:
                yield connection
            except BaseException as error:
                self._undo(connection, commit, error)
                raise
            _say(connection, "RELEASE one")
            commit.size += 1
            self._end_unless_others_come(connection, commit, may_wait=commits is not None)
        if commits is None:  # outside the turn, or no other transaction could join the commit
            commit.ended.result()
        else:
            commits.append(commit)

    def close(self) -> None:
        self._is_closed = True
        self._left_open.set()
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        me = threading.get_ident()
        assert self._owner != me, "a transaction was opened inside another"
        with self._count:  # before the lock: its holder then leaves the commit open for this transaction
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
                # IMMEDIATE takes the write lock now. A deferred transaction that reads first and writes later fails
                # with SQLITE_BUSY at once, whatever the timeout, when another process wrote in between.
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
        """Roll back one block's writes. If the database aborted the whole transaction, all of it has failed."""
        try:
            connection.exec_driver_sql("ROLLBACK TO one")
            connection.exec_driver_sql("RELEASE one")
        except DBAPIError:  # SQLite rolled back everything, as it may on a full disk: the savepoint is gone
            self._finish(connection, commit, error)
            return
        self._end_unless_others_come(connection, commit, may_wait=False)

    def _end_unless_others_come(self, connection: Connection, commit: _Commit, *, may_wait: bool) -> None:
        """Commit, unless further transactions are waiting. A large or old commit never waits. With `may_wait` it also
        waits for announced calls; if they are slow, `_watch` ends it."""
        if self._call.is_expected:
            self._arrive()
        with self._count:
            waiting, expected = self._waiting, self._expected if may_wait else 0
        if commit.size >= MOST_TOGETHER or time.monotonic() - commit.began > LONGEST_SECONDS:
            self._finish(connection, commit, None)
        elif expected and not waiting:
            self._left_open.set()
        elif not waiting:
            self._finish(connection, commit, None)

    def _watch(self) -> None:
        """Ends commits that were left open for announced calls that turned out to be slow."""
        while self._left_open.wait() and not self._is_closed:
            self._left_open.clear()
            commit = self._commit
            if commit is None:
                continue
            try:
                commit.ended.exception(LONGEST_SECONDS)
            except TimeoutError:
                with self._my_turn():
                    if self._commit is commit and self._connection is not None:
                        self._finish(self._connection, commit, None)

    def _arrive(self) -> None:
        self._call.is_expected = False
        with self._count:
            self._expected -= 1

    def _finish(self, connection: Connection, commit: _Commit, fault: BaseException | None) -> None:
        self._commit = None
        try:
            if fault is None:
                connection.commit()
            else:
                connection.rollback()
        except BaseException as error:
            fault = error
            connection.invalidate()  # after a failed commit its state is unknown
            self._connection = None
        if fault is None:
            commit.ended.set_result(None)
            self._on_commit()
        else:
            commit.ended.set_exception(fault)


def _say(connection: Connection, statement: str) -> None:
    """Execute a statement by the driver itself: on this hot path SQLAlchemy's engine costs ten times as much."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.cursor().execute(statement)
