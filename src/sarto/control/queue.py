"""Which job is next: concurrent jobs per project, what a server has for runs, and projects served in turn.

`choose` must be called inside the transaction that takes the job. `show_waiting` tells users what their job waits for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import capacity, events, quotas
from sarto.control.context import AnyRow, Limits
from sarto.control.tuning_jobs import FAILED, PAUSED, PENDING, RUNNING, Fenced, advance, amend
from sarto.control.validation import Plan
from sarto.errors import FailedPrecondition
from sarto.schema.tuning_jobs import TuningJobState
from sarto.storage.tables import project_turn, tuning_job

CLAIM_LOCK = 7411
"""Number of the advisory lock that all claims on a PostgreSQL database share."""
MOST_SHOWN, MOST_PASSED = 100, 10
SETTLED_SECONDS = 0.5
"""A job that waits for less is told nothing: it is about to be claimed."""
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


@dataclass(frozen=True)
class Waiting:
    """A job whose resource does not say yet what it waits for. Without a `phase` it waits for what will never be."""

    row: AnyRow
    phase: str
    words: str


def choose(connection: Connection, now: float, owner: str, limits: Limits) -> AnyRow | None:
    """The job to run next, or None: nothing runnable, or no room. The project that waited longest goes first, and its
    job is not overtaken by smaller ones while it waits for room on this server."""
    running, own = _live(connection, now, owner)
    if capacity.is_full(limits, len(own)):
        return None
    quota = quotas.by_project(connection)
    projects = {*_projects_waiting(connection), *_projects_interrupted(connection, now)}
    open_projects = [p for p in projects if running[p] < quota.get(p, limits.concurrent_jobs)]
    turns: dict[str, float] = {}
    if len(open_projects) > 1:
        query = sa.select(project_turn).where(project_turn.c.project.in_(open_projects))
        turns = {row.project: row.time for row in connection.execute(query)}
    for project in sorted(open_projects, key=lambda p: (running[p], turns.get(p, 0.0), p)):
        for row in _next_of(connection, project, now, MOST_PASSED):
            plan = capacity.plan_of(row)
            if not capacity.never_fits(limits, plan):
                return None if capacity.lack(limits, own, plan) else row
    return None


def unshown(connection: Connection, now: float, owner: str, limits: Limits) -> list[Waiting]:
    """The oldest waiting jobs whose resource does not say what they wait for now."""
    running, own = _live(connection, now, owner)
    quota = quotas.by_project(connection)
    largest = capacity.largest_memory(connection, now, limits)
    found: list[Waiting] = []
    for project in {*_projects_waiting(connection), *_projects_interrupted(connection, now)}:
        allowed = quota.get(project, limits.concurrent_jobs)
        for place, row in enumerate(_next_of(connection, project, now, MOST_SHOWN)):
            if max(row.create_time, row.not_before, row.lease_until or 0.0) > now - SETTLED_SECONDS:
                continue
            plan = capacity.plan_of(row)
            if largest and plan.least_memory_bytes > largest:
                found.append(Waiting(row, "", capacity.unfit(plan, largest)))
                continue
            if capacity.never_fits(limits, plan):
                continue  # a larger server says what it waits for
            shown = orjson.loads(row.resource).get("tuningJobState")
            if running[project] + place >= allowed:
                if shown != WAITING_FOR_QUOTA:
                    found.append(Waiting(row, WAITING_FOR_QUOTA, _about_quota(allowed)))
            elif shown != WAITING_FOR_CAPACITY:
                found.append(Waiting(row, WAITING_FOR_CAPACITY, _about_capacity(limits, own, plan)))
    return found


def show_waiting(connection: Connection, now: float, owner: str, limits: Limits) -> None:
    """Write into waiting jobs what they wait for, and end those that wait for what no server has."""
    for one in unshown(connection, now, owner, limits):
        row, kind = one.row, "waiting" if one.phase else "failed"
        error = {} if one.phase else {"error": FailedPrecondition(one.words).to_status()}
        try:
            if one.phase:
                amend(connection, row, now, {"tuningJobState": one.phase})
            else:
                advance(connection, row, FAILED, now, error)
        except Fenced:
            continue  # it was cancelled or claimed meanwhile
        events.record(connection, row.project, row.id, row.lease_epoch, now, kind, one.words, error)


def _about_quota(allowed: int) -> str:
    jobs = "1 job runs" if allowed == 1 else f"{allowed} jobs run"
    return f"The job waits for its turn: at most {jobs} at once in its project."


def _about_capacity(limits: Limits, own: list[Plan], plan: Plan) -> str:
    lack = capacity.lack(limits, own, plan) or "jobs of other projects are before it"
    return f"The job waits for room: {lack}."


def _live(connection: Connection, now: float, owner: str) -> tuple[Counter[str], list[Plan]]:
    """Leases that hold, counted by project, and the plans of those that are `owner`'s."""
    query = sa.select(tuning_job.c.project, tuning_job.c.lease_owner, tuning_job.c.run).where(
        tuning_job.c.lease_owner > "",  # as a range, for SQLite walks the index only then, not every job there is
        tuning_job.c.lease_until >= now,
    )
    rows = connection.execute(query).all()
    return Counter(row.project for row in rows), [capacity.plan_of(row) for row in rows if row.lease_owner == owner]


def _projects_waiting(connection: Connection) -> list[str]:
    return list(connection.execute(_PENDING_PROJECTS, {"state": str(PENDING)}).scalars())


def _projects_interrupted(connection: Connection, now: float) -> list[str]:
    interrupted = tuning_job.c.state.in_((str(RUNNING), str(PAUSED)))
    query = sa.select(tuning_job.c.project).distinct()
    return list(connection.execute(query.where(interrupted, _is_free(now))).scalars())


def _is_free(now: float) -> sa.ColumnElement[bool]:
    return sa.and_(
        tuning_job.c.not_before <= now, sa.or_(tuning_job.c.lease_until.is_(None), tuning_job.c.lease_until < now)
    )


def _next_of(connection: Connection, project: str, now: float, most: int) -> list[AnyRow]:
    """Jobs of a project that nobody holds, oldest first, what was interrupted before what is new."""
    found: list[AnyRow] = []
    for state in (RUNNING, PAUSED, PENDING):
        query = sa.select(tuning_job).where(
            tuning_job.c.state == str(state), tuning_job.c.project == project, _is_free(now)
        )
        found += connection.execute(query.order_by(tuning_job.c.create_time).limit(most)).all()
    return found
