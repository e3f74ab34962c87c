"""The number of concurrent jobs of a project: the setting `concurrent_jobs`, or the project's own quota.

Everyone who may see the project may read it; only an administrator of the service may change it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.access.projects import Project
from sarto.control.context import Control
from sarto.control.jobs.states import PENDING
from sarto.errors import InvalidArgument
from sarto.storage.database.tables import project_quota, tuning_job

READ, UPDATE = "resourcemanager.projects.get", "serviceusage.quotas.update"
MOST = 10_000


def by_project(connection: Connection) -> dict[str, int]:
    """The projects with a quota of their own."""
    return {row.project: row.concurrent_jobs for row in connection.execute(sa.select(project_quota))}


def get(control: Control, principal: Principal, project: str) -> dict[str, Any]:
    """The quota of a project, and the part in use."""
    return _written(control, authorization.require(control.database, principal, READ, project))


def set_quota(control: Control, principal: Principal, project: str, concurrent_jobs: int) -> dict[str, Any]:
    """Set a project's own quota; with 0 none of its jobs starts. Raises InvalidArgument."""
    if not 0 <= concurrent_jobs <= MOST:
        raise InvalidArgument.field("quota.concurrent_jobs", f"{concurrent_jobs} is not between 0 and {MOST}.")
    owner = _require_update(control, principal, project)
    with control.database.transaction() as connection:
        connection.execute(project_quota.delete().where(project_quota.c.project == owner.number))
        connection.execute(project_quota.insert().values(project=owner.number, concurrent_jobs=concurrent_jobs))
    return _written(control, owner)


def reset(control: Control, principal: Principal, project: str) -> None:
    """Remove the project's own quota, so that the setting applies."""
    owner = _require_update(control, principal, project)
    with control.database.transaction() as connection:
        connection.execute(project_quota.delete().where(project_quota.c.project == owner.number))


def _require_update(control: Control, principal: Principal, project: str) -> Project:
    authorization.require_everywhere(control.database, principal, UPDATE)
    return authorization.require(control.database, principal, UPDATE, project)


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
