"""Who may act for a job, and until when: claim, beat, hold, release. Times are the database's own.

Every claim raises the job's epoch. Whatever is written for a job goes through `hold`, in the same transaction, so a
supervisor that was taken for dead cannot publish anything under its old epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import queue
from sarto.control.context import AnyRow, Limits
from sarto.control.tuning_jobs import Fenced
from sarto.schema.tuning_jobs import JobState
from sarto.storage.database import Database
from sarto.storage.tables import project_turn, tuning_job


@dataclass(frozen=True)
class Lease:
    """The right to act for a job. `losses` counts the runs it lost before this one."""

    project: str
    job: str
    owner: str
    epoch: int
    losses: int

    @property
    def key(self) -> tuple[str, str]:
        return self.project, self.job


@dataclass(frozen=True)
class Held:
    """What the database says about a job that an owner holds."""

    epoch: int
    state: JobState


def claim(database: Database, owner: str, limits: Limits) -> Lease | None:
    """The next job that quota and capacity allow, now under a new epoch; None when there is none.

    Counting and taking are one act: SQLite has a single writer, PostgreSQL takes a lock that all claims share.
    """
    with database.reading() as connection:  # a look without the write lock: mostly there is nothing to do
        if queue.choose(connection, database.now(connection), owner, limits) is None:
            return None
    with database.transaction() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(queue.CLAIM_LOCK)))
        now = database.now(connection)
        row = queue.choose(connection, now, owner, limits)
        if row is None:
            return None
        epoch = row.lease_epoch + 1
        taken = connection.execute(
            tuning_job.update()
            .where(
                tuning_job.c.project == row.project,
                tuning_job.c.id == row.id,
                tuning_job.c.state == row.state,
                tuning_job.c.lease_epoch == row.lease_epoch,
            )
            .values(lease_owner=owner, lease_epoch=epoch, lease_until=now + limits.lease_seconds)
        )
        if taken.rowcount != 1:  # cancelled between the two statements, which only PostgreSQL allows
            return None
        connection.execute(project_turn.delete().where(project_turn.c.project == row.project))
        connection.execute(project_turn.insert().values(project=row.project, time=now))
    return Lease(row.project, row.id, owner, epoch, row.attempt)


def beat(database: Database, leases: Iterable[Lease], limits: Limits) -> None:
    """Prolong the leases that are still theirs who ask."""
    with database.transaction() as connection:
        until = database.now(connection) + limits.lease_seconds
        for lease in leases:
            connection.execute(
                tuning_job.update()
                .where(
                    tuning_job.c.project == lease.project,
                    tuning_job.c.id == lease.job,
                    tuning_job.c.lease_owner == lease.owner,
                    tuning_job.c.lease_epoch == lease.epoch,
                )
                .values(lease_until=until)
            )


def held(database: Database, owner: str) -> dict[tuple[str, str], Held]:
    """The jobs an owner holds, by (project, job), with their epochs and states."""
    query = sa.select(tuning_job.c.project, tuning_job.c.id, tuning_job.c.lease_epoch, tuning_job.c.state)
    with database.reading() as connection:
        rows = connection.execute(query.where(tuning_job.c.lease_owner == owner)).all()
    return {(row.project, row.id): Held(row.lease_epoch, JobState(row.state)) for row in rows}


def hold(connection: Connection, lease: Lease) -> AnyRow:
    """The job's row, locked, if the lease is still the job's. Raises Fenced."""
    row = connection.execute(
        sa.select(tuning_job)
        .where(tuning_job.c.project == lease.project, tuning_job.c.id == lease.job)
        .with_for_update()
    ).first()
    if row is None or row.lease_epoch != lease.epoch or row.lease_owner != lease.owner:
        raise Fenced(f"job {lease.job}: epoch {lease.epoch} is over")
    return row


def release(database: Database, lease: Lease, *, pause_seconds: float = 0.0, is_lost: bool = False) -> None:
    """Give the job back, to be claimed by anyone after a pause; `is_lost` counts against its attempts."""
    with database.transaction() as connection:
        row = hold(connection, lease)
        now = database.now(connection)
        connection.execute(
            tuning_job.update()
            .where(tuning_job.c.project == lease.project, tuning_job.c.id == lease.job)
            .values(
                lease_owner=None,
                lease_until=None,
                not_before=now + pause_seconds,
                attempt=row.attempt + (1 if is_lost else 0),
            )
        )
