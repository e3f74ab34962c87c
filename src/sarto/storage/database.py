"""The database: one engine, `transaction()` to write and `reading()` to read, SQLite and PostgreSQL by one code path.

Knows no table's meaning; used by `control` and by the embedded buckets. Times of leases come from `now`, the database's
own clock, never from a process's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from sarto import failpoints
from sarto.storage.group_writer import GroupWriter


class Database:
    """`sqlite:///PATH` or `postgresql+psycopg://…`. Safe to use from many threads; `close` when done."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        self.engine: Engine = _sqlite(url) if self.is_sqlite else sa.create_engine(url, pool_size=8, pool_pre_ping=True)
        self.rights_changes = 0
        """Counts changes of rights, accounts and keys through this object; what remembers them compares it."""
        self.before_commit: Callable[[Connection], None] | None = None
        """Called at the end of every writing transaction, inside it."""
        self._writer = GroupWriter(self.engine) if self.is_sqlite else None

    @classmethod
    def in_home(cls, home: Path, url: str = "") -> Database:
        return cls(url or f"sqlite:///{home / 'sarto.db'}")

    @contextmanager
    def transaction(self, *, only_answers: bool = False) -> Iterator[Connection]:
        """A writing transaction: committed at the end, rolled back on an error. On SQLite it is the only writer, and
        those of several threads share a commit; with `only_answers` a call that the writer runs may go on before it, as
        the call's answer waits."""
        if self._writer is not None:
            with self._writer.transaction(only_answers=only_answers) as connection:
                yield connection
                self._end(connection)
                failpoints.reached("commit before")
        else:
            with self.engine.begin() as connection:
                yield connection
                self._end(connection)
                failpoints.reached("commit before")
        failpoints.reached("commit after")

    def _end(self, connection: Connection) -> None:
        if self.before_commit is not None:
            self.before_commit(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for reads; sees one consistent state per statement."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def alone(self, lock: int) -> Iterator[None]:
        """Hold a lock of this number against every other process on a PostgreSQL database; SQLite has one process."""
        if self.is_sqlite:
            yield
            return
        with self.engine.connect() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(lock)))
            connection.commit()
            try:
                yield
            finally:
                connection.execute(sa.select(sa.func.pg_advisory_unlock(lock)))
                connection.commit()

    @property
    def writer(self) -> GroupWriter | None:
        """Where there is one, calls that write take turns on it; None where they need not."""
        return self._writer

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the database's clock, to the microsecond that times in answers have."""
        if self.is_sqlite:
            return round(time.time(), 6)  # SQLite has no other clock than that of the process it runs in
        query = "select extract(epoch from clock_timestamp())::float8"
        return round(float(connection.exec_driver_sql(query).scalar_one()), 6)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.engine.dispose()


def _sqlite(url: str) -> Engine:
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves: BEGIN IMMEDIATE avoids upgrade deadlocks
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
