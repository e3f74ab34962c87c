"""How many jobs of a project may run at once: the setting `concurrent_jobs`, or the project's own number.

Whoever sees a project may read it; an administrator of the service alone may change it. `queue` keeps to it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.projects import Project
from sarto.control.tuning_jobs import PENDING
from sarto.errors import InvalidArgument
from sarto.storage.tables import project_quota, tuning_job

READ, UPDATE = "resourcemanager.projects.get", "serviceusage.quotas.update"
MOST = 10_000


def by_project(connection: Connection) -> dict[str, int]:
    """The projects that have a number of their own."""
    return {row.project: row.concurrent_jobs for row in connection.execute(sa.select(project_quota))}


def get(control: Control, principal: Principal, project: str) -> dict[str, Any]:
    """The quota of a project, and how much of it is in use."""
    return _written(control, iam.require(control.database, principal, READ, project))


def set_(control: Control, principal: Principal, project: str, concurrent_jobs: int) -> dict[str, Any]:
    """Give a project its own number; with 0 none of its jobs starts. Raises InvalidArgument."""
    if not 0 <= concurrent_jobs <= MOST:
        raise InvalidArgument.field("quota.concurrent_jobs", f"{concurrent_jobs} is not between 0 and {MOST}.")
    found = _require_update(control, principal, project)
    with control.database.transaction() as connection:
        connection.execute(project_quota.delete().where(project_quota.c.project == found.number))
        connection.execute(project_quota.insert().values(project=found.number, concurrent_jobs=concurrent_jobs))
    return _written(control, found)


def reset(control: Control, principal: Principal, project: str) -> None:
    """Back to the server's setting."""
    found = _require_update(control, principal, project)
    with control.database.transaction() as connection:
        connection.execute(project_quota.delete().where(project_quota.c.project == found.number))


def _require_update(control: Control, principal: Principal, project: str) -> Project:
    iam.require_everywhere(control.database, principal, UPDATE)
    return iam.require(control.database, principal, UPDATE, project)


def _written(control: Control, project: Project) -> dict[str, Any]:
    ours = tuning_job.c.project == project.number
    count = sa.select(sa.func.count()).select_from(tuning_job)
    with control.database.reading() as connection:
        own = connection.execute(
            sa.select(project_quota.c.concurrent_jobs).where(project_quota.c.project == project.number)
        ).scalar()
        now = control.database.now(connection)
        running = connection.execute(count.where(ours, tuning_job.c.lease_until >= now)).scalar_one()
        waiting = connection.execute(count.where(ours, tuning_job.c.state == str(PENDING))).scalar_one()
    return {
        "name": f"projects/{project.number}/quota",
        "concurrentJobs": control.limits.concurrent_jobs if own is None else own,
        "isDefault": own is None,
        "runningJobs": running,
        "pendingJobs": waiting,
    }
