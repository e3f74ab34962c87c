"""Chooses the next job, by concurrent jobs per project, free resources of a server, and turns between projects.

Call `choose` inside the transaction that claims the job. `show_waiting` writes into a job the reason why it waits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.configuration import Limits
from sarto.control.context import AnyRow
from sarto.control.jobs import admission, events, quotas, servers
from sarto.control.jobs.job_row import plan_of
from sarto.control.jobs.plan import JobPlan
from sarto.control.jobs.states import FAILED, PAUSED, PENDING, RUNNING, Fenced, advance, amend
from sarto.control.scheduling import capacity
from sarto.errors import FailedPrecondition
from sarto.schema.tuning_jobs import TuningJobState
from sarto.storage.database.tables import project_turn, tuning_job

MOST_SHOWN, MOST_PASSED = 100, 10
SETTLED_SECONDS = 0.5
"""A job that has waited for less time has no reason yet: it is about to be claimed."""
WAITING_FOR_QUOTA = str(TuningJobState.TUNING_JOB_STATE_WAITING_FOR_QUOTA)
WAITING_FOR_CAPACITY = str(TuningJobState.TUNING_JOB_STATE_WAITING_FOR_CAPACITY)

# Not `select distinct project`, for which SQLite and PostgreSQL walk every pending job.
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
"""The projects with pending jobs: one index seek per project."""


@dataclass(frozen=True)
class WaitingJob:
    """A waiting job whose resource has no reason or an old one. Without a `phase` the job can never run."""

    row: AnyRow
    phase: str
    words: str


def choose(connection: Connection, now: float, owner: str, limits: Limits) -> AnyRow | None:
    """The job to run next, or None without a runnable job or free resources. The project with the fewest running jobs
    is first, then the one whose last turn is oldest."""
    running, own = _live(connection, now, owner)
    if capacity.is_full(limits, len(own)):
        return None
    quota = quotas.by_project(connection)
    projects = {*_projects_waiting(connection), *_projects_interrupted(connection, now)}
    open_projects = [p for p in projects if running[p] < quota.get(p, limits.concurrent_jobs)]
    turns: dict[str, float] = {}
    if len(open_projects) > 1:  # a single project needs no turns: most claims save this query
        query = sa.select(project_turn).where(project_turn.c.project.in_(open_projects))
        turns = {row.project: row.time for row in connection.execute(query)}
    for project in sorted(open_projects, key=lambda p: (running[p], turns.get(p, 0.0), p)):
        for row in _next_of(connection, project, now, MOST_PASSED):
            plan = plan_of(row)
            # A job that never fits here is left to a larger server. The first other job ends the search even when it
            # does not fit now: if smaller jobs overtook it, a large job could wait for ever (decision 0055).
            if not capacity.never_fits(limits, plan):
                return None if capacity.lack(limits, own, plan) else row
    return None


def unshown(connection: Connection, now: float, owner: str, limits: Limits) -> list[WaitingJob]:
    """The oldest waiting jobs whose resource does not have the present reason."""
    running, own = _live(connection, now, owner)
    quota = quotas.by_project(connection)
    largest = servers.largest_memory(connection, now, limits)
    waiting: list[WaitingJob] = []
    for project in {*_projects_waiting(connection), *_projects_interrupted(connection, now)}:
        allowed = quota.get(project, limits.concurrent_jobs)
        for position, row in enumerate(_next_of(connection, project, now, MOST_SHOWN)):
            if max(row.create_time, row.not_before, row.lease_until or 0.0) > now - SETTLED_SECONDS:
                continue
            plan = plan_of(row)
            # Servers come and go: a job that was accepted may fit none of those that are left.
            if largest and plan.least_memory_bytes > largest:
                waiting.append(WaitingJob(row, "", admission.unfit(plan, largest)))
                continue
            if capacity.never_fits(limits, plan):
                continue  # a larger server writes the reason
            shown = orjson.loads(row.resource).get("tuningJobState")
            # The jobs before this one in its project will take the project's free places.
            if running[project] + position >= allowed:
                if shown != WAITING_FOR_QUOTA:
                    waiting.append(WaitingJob(row, WAITING_FOR_QUOTA, _about_quota(allowed)))
            elif shown != WAITING_FOR_CAPACITY:
                waiting.append(WaitingJob(row, WAITING_FOR_CAPACITY, _about_capacity(limits, own, plan)))
    return waiting


def show_waiting(connection: Connection, now: float, owner: str, limits: Limits) -> None:
    """Write the reason into waiting jobs, and fail those that fit no server."""
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


def _about_capacity(limits: Limits, own: list[JobPlan], plan: JobPlan) -> str:
    lack = capacity.lack(limits, own, plan) or "jobs of other projects are before it"
    return f"The job waits for capacity: {lack}."


def _live(connection: Connection, now: float, owner: str) -> tuple[Counter[str], list[JobPlan]]:
    """Valid leases, counted by project, and the plans of the jobs of `owner`."""
    query = sa.select(tuning_job.c.project, tuning_job.c.lease_owner, tuning_job.c.run).where(
        tuning_job.c.lease_owner > "",  # a range: only then does SQLite use the index instead of a full scan
        tuning_job.c.lease_until >= now,
    )
    rows = connection.execute(query).all()
    return Counter(row.project for row in rows), [plan_of(row) for row in rows if row.lease_owner == owner]


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
    """Jobs of a project without a live lease, interrupted ones first, then by age."""
    rows: list[AnyRow] = []
    # One query per state: the index of (state, project, create_time) has the rows of each in order.
    for state in (RUNNING, PAUSED, PENDING):
        query = sa.select(tuning_job).where(
            tuning_job.c.state == str(state), tuning_job.c.project == project, _is_free(now)
        )
        rows += connection.execute(query.order_by(tuning_job.c.create_time).limit(most)).all()
    return rows
