"""Which job is next: concurrent jobs per project, concurrent runs per supervisor, and projects served in turn.

`choose` must be called inside the transaction that takes the job. `show_waiting` tells users what their job waits for.
"""

from __future__ import annotations

from collections import Counter

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.context import AnyRow, Limits
from sarto.control.tuning_jobs import PENDING, RUNNING, amend
from sarto.schema.tuning_jobs import TuningJobState
from sarto.storage.tables import project_turn, tuning_job

CLAIM_LOCK = 7411
"""Number of the advisory lock that all claims on a PostgreSQL database share."""
MOST_SHOWN = 100
WAITING_FOR_QUOTA = str(TuningJobState.TUNING_JOB_STATE_WAITING_FOR_QUOTA)
WAITING_FOR_CAPACITY = str(TuningJobState.TUNING_JOB_STATE_WAITING_FOR_CAPACITY)

_PENDING_PROJECTS = sa.text(
    """
    with recursive waiting(project) as (
        select min(project) from tuning_job where state = :state
        union all
        select (select min(project) from tuning_job where state = :state and project > waiting.project)
        from waiting where waiting.project is not null
    )
    select project from waiting where project is not null
    """
)
"""One index seek per project, however many jobs wait."""


def choose(connection: Connection, now: float, owner: str, limits: Limits) -> AnyRow | None:
    """The job to run next, or None: nothing runnable, or no room. The project that waited longest goes first."""
    running, own = _live(connection, now, owner)
    if own >= limits.concurrent_runs:
        return None
    projects = {*_projects_waiting(connection), *_projects_interrupted(connection, now)}
    open_projects = [p for p in projects if running[p] < limits.concurrent_jobs]
    turns: dict[str, float] = {}
    if len(open_projects) > 1:
        query = sa.select(project_turn).where(project_turn.c.project.in_(open_projects))
        turns = {row.project: row.time for row in connection.execute(query)}
    for project in sorted(open_projects, key=lambda p: (running[p], turns.get(p, 0.0), p)):
        for state in (RUNNING, PENDING):  # what was interrupted before what is new
            row = connection.execute(_runnable(project, str(state), now)).first()
            if row is not None:
                return row
    return None


def unshown(connection: Connection, now: float, limits: Limits) -> list[tuple[AnyRow, str]]:
    """The oldest waiting jobs whose resource does not say what they wait for now, each with the phase to show."""
    running, _ = _live(connection, now, "")
    found: list[tuple[AnyRow, str]] = []
    for project in _projects_waiting(connection):
        phase = WAITING_FOR_QUOTA if running[project] >= limits.concurrent_jobs else WAITING_FOR_CAPACITY
        for row in connection.execute(_runnable(project, str(PENDING), now).limit(MOST_SHOWN)).all():
            if orjson.loads(row.resource).get("tuningJobState") != phase:
                found.append((row, phase))
    return found


def show_waiting(connection: Connection, now: float, limits: Limits) -> None:
    """Write into waiting jobs what they wait for."""
    for row, phase in unshown(connection, now, limits):
        amend(connection, row, now, {"tuningJobState": phase})


def _live(connection: Connection, now: float, owner: str) -> tuple[Counter[str], int]:
    """Leases that hold, counted by project, and how many of them are `owner`'s."""
    query = sa.select(tuning_job.c.project, tuning_job.c.lease_owner).where(
        tuning_job.c.lease_owner > "",  # as a range, for SQLite walks the index only then, not every job there is
        tuning_job.c.lease_until >= now,
    )
    rows = connection.execute(query).all()
    return Counter(row.project for row in rows), sum(row.lease_owner == owner for row in rows)


def _projects_waiting(connection: Connection) -> list[str]:
    return list(connection.execute(_PENDING_PROJECTS, {"state": str(PENDING)}).scalars())


def _projects_interrupted(connection: Connection, now: float) -> list[str]:
    query = sa.select(tuning_job.c.project).distinct()
    return list(connection.execute(query.where(tuning_job.c.state == str(RUNNING), _is_free(now))).scalars())


def _is_free(now: float) -> sa.ColumnElement[bool]:
    return sa.and_(
        tuning_job.c.not_before <= now, sa.or_(tuning_job.c.lease_until.is_(None), tuning_job.c.lease_until < now)
    )


def _runnable(project: str, state: str, now: float) -> sa.Select[*tuple[object, ...]]:
    """Jobs of a project in a state that nobody holds, oldest first."""
    return (
        sa.select(tuning_job)
        .where(tuning_job.c.state == state, tuning_job.c.project == project, _is_free(now))
        .order_by(tuning_job.c.create_time)
    )
