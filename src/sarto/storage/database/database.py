"""The database: one engine, `transaction()` to write and `reading()` to read, for SQLite and PostgreSQL.

Times of leases come from `now`, the database's own clock, never from a process's clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum, unique
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from sarto.storage.database.group_commit import GroupWriter
from sarto.system import failpoints

MOST_CONNECTIONS = 40
"""Most connections of one server to PostgreSQL: one for each thread that may need one, and some spare."""
POSTGRES_LIMITS = {"statement_timeout": "60s", "lock_timeout": "30s", "idle_in_transaction_session_timeout": "120s"}
"""Timeouts above the time of any statement of ours, so that no statement holds a lock or a connection forever."""
POSTGRES_NETWORK = {
    "connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}  # fmt: skip
"""Network timeouts, after which a silent server counts as unreachable."""


@unique
class Lock(IntEnum):
    """The advisory locks of servers that share a PostgreSQL database, by their numbers: one for each action of which
    one server at a time is allowed."""

    UPGRADE = 7410
    """Upgrades of the tables."""
    SEAL = 7411
    """The chain of the audit log."""
    START = 7412
    """Creation of the rows that all servers need."""
    CLAIM = 7413
    """Selection of the next job."""
    POLICY = 7414
    """Change of one policy, by the name of its resource."""


_REPORT = "sarto.report"


def report(connection: Connection, change: str, project: str, name: str) -> None:
    """Report a change for the audit log, in its transaction: the method (`aiplatform.endpoints.create`), the number of
    the project, and the name of the created or changed resource."""
    on_change = connection.info.get(_REPORT)
    if on_change is not None:
        on_change(connection, change, project, name)


class Database:
    """`sqlite:///PATH` or `postgresql+psycopg://…`. Thread-safe; `close` when done."""

    refuses_second: ClassVar[bool] = False
    """Whether a thread that holds a connection is refused a second one, as in tests: under load, threads that each hold
    one and wait for a second would deadlock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.engine: Engine = _sqlite(url) if self.is_sqlite else _postgresql(url)
        self.rights_changes = 0
        """Number of changes of rights, accounts and keys by this object; caches compare it."""
        self.before_commit: Callable[[Connection], None] | None = None
        """Called at the end of every writing transaction, inside it."""
        self.on_change: Callable[[Connection, str, str, str], None] | None = None
        """Called for each `report` on this database."""
        self._watchers: list[Callable[[], None]] = []
        self._writer = GroupWriter(self.engine, self._committed) if self.is_sqlite else None
        self._mine = threading.local()

    @classmethod
    def in_home(cls, home: Path, url: str = "") -> Database:
        return cls(url or f"sqlite:///{home / 'sarto.db'}")

    @contextmanager
    def transaction(self, *, only_answers: bool = False) -> Iterator[Connection]:
        """A writing transaction: committed at the end, rolled back on an error. On SQLite it is the only writer, and
        concurrent ones share a commit. With `only_answers`, a call inside the writer may continue before the commit,
        for which its response waits."""
        begun = self._writer.transaction(only_answers=only_answers) if self._writer is not None else self.engine.begin()
        with self._one(), begun as connection:
            connection.info[_REPORT] = self.on_change
            yield connection
            self._end(connection)
            failpoints.reached("commit before")
        failpoints.reached("commit after")
        if self._writer is None:
            self._committed()

    def watch(self, call: Callable[[], None]) -> None:
        """Have `call` called after each commit of this process, on the thread that made it. It must be quick."""
        self._watchers.append(call)

    def _committed(self) -> None:
        for call in self._watchers:
            call()

    def _end(self, connection: Connection) -> None:
        if self.before_commit is not None:
            self.before_commit(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reads; each statement sees a consistent state."""
        with self._one(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _one(self) -> Iterator[None]:
        """Record that this thread holds a connection, and refuse a second one if `refuses_second`. `alone` is exempt,
        which a server uses once, at its start."""
        has_one = getattr(self._mine, "has_one", False)
        if has_one and self.refuses_second:
            raise AssertionError("a thread that holds a connection of the database opens another")
        self._mine.has_one = True
        try:
            yield
        finally:
            self._mine.has_one = has_one

    def lock(self, connection: Connection, lock: Lock, of: str = "") -> None:
        """Hold a lock to the end of the transaction, against all other servers on a PostgreSQL database. `of` names one
        object of its kind. SQLite has a single writer and needs no lock."""
        if not self.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(int(lock), sa.func.hashtext(of))))

    @contextmanager
    def alone(self, lock: Lock) -> Iterator[None]:
        """Hold a lock within the block, across any transactions in it."""
        with self.engine.connect() as connection, connection.begin():
            self.without_limits(connection)
            self.lock(connection, lock)
            yield

    def without_limits(self, connection: Connection) -> None:
        """Remove the timeouts of statements and locks on this connection to the end of its transaction."""
        if not self.is_sqlite:
            for name in POSTGRES_LIMITS:
                connection.exec_driver_sql(f"set local {name} = 0")

    @property
    def writer(self) -> GroupWriter | None:
        """The group writer of SQLite, for calls that write; None on PostgreSQL."""
        return self._writer

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the database's clock, to the microsecond, as times in responses have."""
        if self.is_sqlite:
            return round(time.time(), 6)  # SQLite has no other clock than that of the process it runs in
        query = "select extract(epoch from clock_timestamp())::float8"
        return round(float(connection.exec_driver_sql(query).scalar_one()), 6)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.engine.dispose()


def _postgresql(url: str) -> Engine:
    engine = sa.create_engine(
        url, pool_size=8, max_overflow=MOST_CONNECTIONS - 8, pool_pre_ping=True, connect_args=POSTGRES_NETWORK
    )

    @event.listens_for(engine, "connect")
    def _limit(connection: Any, _record: Any) -> None:
        for name, limit in POSTGRES_LIMITS.items():
            connection.execute(f"set {name} = '{limit}'")
        connection.commit()

    return engine


def _sqlite(url: str) -> Engine:
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves: BEGIN IMMEDIATE avoids upgrade deadlocks
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
