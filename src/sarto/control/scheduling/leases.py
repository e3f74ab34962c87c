"""Leases: of the rows of any table that has them, and of tuning jobs. Times are the database's own.

Every claim increments the epoch of a row. Every write under a lease compares owner and epoch in the same transaction,
so an owner that lost its lease cannot publish anything under its old epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.configuration import Limits
from sarto.control.context import AnyRow, Control
from sarto.control.jobs.states import Fenced
from sarto.control.scheduling import queue
from sarto.control.turns import ProjectTurns
from sarto.schema.tuning_jobs import JobState
from sarto.storage.database.database import Database, Lock
from sarto.storage.database.tables import project_turn, tuning_job

Where = TypeVar("Where", sa.Select[Any], sa.Update, sa.Delete)


@dataclass(frozen=True)
class Lease:
    """The right to act for a job or an operation, `job` being the id of either. `losses` counts the runs that a tuning
    job lost before this one."""

    project: str
    job: str
    owner: str
    epoch: int
    losses: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.project, self.job


class Leases:
    """The leases of a table with `project` and an id as its key, and `lease_owner`, `lease_epoch` and `lease_until`."""

    def __init__(self, table: sa.Table) -> None:
        self._table = table
        _, self._id = table.primary_key.columns

    def of(self, row: AnyRow) -> Lease:
        """The lease that a row had when it was read."""
        return Lease(row.project, getattr(row, self._id.name), row.lease_owner, row.lease_epoch)

    def is_free(self, now: float) -> sa.ColumnElement[bool]:
        """The condition for rows without a live lease."""
        until = self._table.c.lease_until
        return sa.or_(until.is_(None), until < now)

    def waiting(self, connection: Connection, now: float, *conditions: sa.ColumnElement[bool]) -> list[str]:
        """The projects with free rows, the one with the oldest row first."""
        columns = self._table.c
        query = sa.select(columns.project).where(self.is_free(now), *conditions).group_by(columns.project)
        return list(connection.execute(query.order_by(sa.func.min(columns.create_time))).scalars())

    def oldest(
        self, connection: Connection, project: str, now: float, *conditions: sa.ColumnElement[bool]
    ) -> AnyRow | None:
        """A project's oldest free row, locked, without those that another transaction is claiming."""
        query = sa.select(self._table).where(self._table.c.project == project, self.is_free(now), *conditions)
        query = query.order_by(self._table.c.create_time).limit(1).with_for_update(skip_locked=True)
        return connection.execute(query).first()

    def claim(
        self,
        connection: Connection,
        row: AnyRow,
        owner: str,
        until: float,
        *conditions: sa.ColumnElement[bool],
        values: dict[str, Any] | None = None,
    ) -> AnyRow | None:
        """The row under a lease with the next epoch and with other `values`; None if its epoch is another by now, or
        the conditions do not hold."""
        before = self.of(row)
        lease = replace(before, owner=owner, epoch=before.epoch + 1)
        free = self._row(self._table.update(), before).where(self._table.c.lease_epoch == before.epoch, *conditions)
        columns = {"lease_owner": owner, "lease_epoch": lease.epoch, "lease_until": until}
        if connection.execute(free.values(**columns, **(values or {}))).rowcount != 1:
            return None
        return connection.execute(self._held(sa.select(self._table), lease)).one()

    def extend(self, connection: Connection, lease: Lease, until: float) -> None:
        """Raises Fenced if the lease is over."""
        if not self.change(connection, lease, lease_until=until):
            raise _fenced(lease)

    def change(self, connection: Connection, lease: Lease, **values: Any) -> bool:
        """Write columns of the row; False, and nothing is written, if the lease is over."""
        return connection.execute(self._held(self._table.update(), lease).values(**values)).rowcount == 1

    def remove(self, connection: Connection, lease: Lease) -> bool:
        """Delete the row; False if the lease is over."""
        return connection.execute(self._held(self._table.delete(), lease)).rowcount == 1

    def hold(self, connection: Connection, lease: Lease) -> AnyRow:
        """The row, locked. Raises Fenced if the lease is over."""
        row = self.find(connection, lease)
        if row is None:
            raise _fenced(lease)
        return row

    def find(self, connection: Connection, lease: Lease) -> AnyRow | None:
        """`hold`, with None for a lease that is over."""
        # Locked to the end of the transaction: on PostgreSQL a claim could otherwise come between check and write.
        row = connection.execute(self._row(sa.select(self._table), lease).with_for_update()).first()
        is_ours = row is not None and (row.lease_owner, row.lease_epoch) == (lease.owner, lease.epoch)
        return row if is_ours else None

    def _row(self, statement: Where, lease: Lease) -> Where:
        return statement.where(self._table.c.project == lease.project, self._id == lease.job)

    def _held(self, statement: Where, lease: Lease) -> Where:
        columns = self._table.c
        held = columns.lease_owner == lease.owner, columns.lease_epoch == lease.epoch
        return self._row(statement, lease).where(*held)


def _fenced(lease: Lease) -> Fenced:
    return Fenced(f"job {lease.job}: epoch {lease.epoch} is over")


class Claims:
    """Claims rows for one owner, the oldest of each project first, the projects in turn. Thread-safe.

    A project has at most `most` in hand here. Only rows that meet the conditions are claimed; `changes` gives what a
    claim writes beside the lease, from the row and the time."""

    def __init__(
        self,
        control: Control,
        leases: Leases,
        owner: str,
        most: int,
        *conditions: sa.ColumnElement[bool],
        changes: Callable[[AnyRow, float], dict[str, Any]] = lambda _row, _now: {},
    ) -> None:
        self._database, self._seconds = control.database, control.limits.lease_seconds
        self._leases, self._owner, self._conditions, self._changes = leases, owner, conditions, changes
        self._turns = ProjectTurns(most)

    def take(self) -> AnyRow | None:
        """A row under a lease, in hand until `give_back`; None when there is none to claim."""
        return self._turns.take(self._waiting, self._claim)

    def give_back(self, row: AnyRow) -> None:
        self._turns.give_back(row)

    def _waiting(self) -> list[str]:
        with self._database.reading() as connection:
            return self._leases.waiting(connection, self._database.now(connection), *self._conditions)

    def _claim(self, project: str) -> AnyRow | None:
        with self._database.transaction() as connection:
            now = self._database.now(connection)
            row = self._leases.oldest(connection, project, now, *self._conditions)
            if row is None:
                return None
            changes = self._changes(row, now)
            return self._leases.claim(connection, row, self._owner, now + self._seconds, values=changes)


JOBS = Leases(tuning_job)


@dataclass(frozen=True)
class JobStatus:
    """The database's status of a job for its owner."""

    epoch: int
    state: JobState


def claim(database: Database, owner: str, limits: Limits) -> Lease | None:
    """The next job that quota and capacity allow, now under a new epoch; None when there is none.

    Counting and claiming are one atomic step: SQLite has a single writer, PostgreSQL takes a lock that all claims
    share."""
    with database.reading() as connection:  # a look without the write lock: mostly there is nothing to do
        if queue.choose(connection, database.now(connection), owner, limits) is None:
            return None
    with database.transaction() as connection:
        database.lock(connection, Lock.CLAIM)
        now = database.now(connection)
        row = queue.choose(connection, now, owner, limits)
        if row is None:
            return None
        until, unchanged = now + limits.lease_seconds, tuning_job.c.state == row.state
        taken = JOBS.claim(connection, row, owner, until, unchanged)
        if taken is None:  # cancelled between the two statements, which only PostgreSQL allows
            return None
        # The project's turn is over: it is the last one now.
        connection.execute(project_turn.delete().where(project_turn.c.project == row.project))
        connection.execute(project_turn.insert().values(project=row.project, time=now))
    return replace(JOBS.of(taken), losses=taken.attempt)


def beat(database: Database, leases: Iterable[Lease], limits: Limits) -> None:
    """Extend each lease that its owner still holds."""
    with database.transaction() as connection:
        until = database.now(connection) + limits.lease_seconds
        for lease in leases:
            JOBS.change(connection, lease, lease_until=until)  # of a lost lease none: `held` then reports the loss


def held(database: Database, owner: str) -> dict[tuple[str, str], JobStatus]:
    """The jobs an owner holds, by (project, job), with their epochs and states."""
    query = sa.select(tuning_job.c.project, tuning_job.c.id, tuning_job.c.lease_epoch, tuning_job.c.state)
    with database.reading() as connection:
        rows = connection.execute(query.where(tuning_job.c.lease_owner == owner)).all()
    return {(row.project, row.id): JobStatus(row.lease_epoch, JobState(row.state)) for row in rows}


def hold(connection: Connection, lease: Lease) -> AnyRow:
    """The job's row, locked, if the lease is still valid. Raises Fenced."""
    return JOBS.hold(connection, lease)


def release(database: Database, lease: Lease, *, pause_seconds: float = 0.0, is_lost: bool = False) -> None:
    """Release the job, to be claimed by any supervisor after a pause; `is_lost` counts against its attempts."""
    with database.transaction() as connection:
        row = hold(connection, lease)
        attempt, again = row.attempt + (1 if is_lost else 0), database.now(connection) + pause_seconds
        JOBS.change(connection, lease, lease_owner=None, lease_until=None, not_before=again, attempt=attempt)
