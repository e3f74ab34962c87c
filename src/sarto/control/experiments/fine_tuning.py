"""Tuning jobs as OpenAI's API has them: the same rows, with what their maker gave beyond the tuning API's fields.

Lists have the id of a job as their cursor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from sarto.control.access import authorization, projects, quoting
from sarto.control.access.principal import Principal
from sarto.control.access.projects import Project
from sarto.control.context import Control
from sarto.control.models import resolution
from sarto.names import LocationName, ResourceName
from sarto.storage.database.tables import tuning_job

SCAN = 200


@dataclass(frozen=True)
class MadeJob:
    """A job in the tuning API's form for this caller, and the extras of its `JobPlan`."""

    id: str
    project: Project
    resource: dict[str, Any]
    extras: dict[str, Any]
    base_model: str


def get(control: Control, principal: Principal, name: ResourceName) -> MadeJob:
    """Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.get", name.project)
    query = _COLUMNS.where(tuning_job.c.project == project.number, tuning_job.c.id == name.id)
    with control.database.reading() as connection:
        row = connection.execute(query).first()
    resolution.check_found(row, name, "TuningJob")
    assert row is not None
    resource = quoting.shown(control, principal, project.number, orjson.loads(row.resource))
    return _made(project, row, resource)


def list_jobs(
    control: Control,
    principal: Principal,
    parent: LocationName,
    after: str,
    limit: int,
    keep: Callable[[MadeJob], bool],
    *,
    ascending: bool = False,
) -> list[MadeJob]:
    """At most `limit` jobs that `keep` keeps, newest first unless `ascending`, behind the job with the id `after`."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.list", parent.project)
    column, made = tuning_job.c.id, list[MadeJob]()
    query = _COLUMNS.where(tuning_job.c.project == project.number, tuning_job.c.location == parent.location)
    query = query.order_by(column.asc() if ascending else column.desc()).limit(SCAN)
    while len(made) < limit:
        page = query.where(column > after if ascending else column < after) if after else query
        with control.database.reading() as connection:
            rows = connection.execute(page).all()
        resources = quoting.shown_all(control, principal, project.number, (orjson.loads(row.resource) for row in rows))
        each = (_made(project, row, resource) for row, resource in zip(rows, resources, strict=True))
        made += [one for one in each if keep(one)]
        if len(rows) < SCAN:
            break
        after = rows[-1].id
    return made[:limit]


def project_of(control: Control, parent: LocationName) -> Project:
    """The project of a location in which the caller has a right."""
    project = projects.find(control.database, parent.project)
    assert project is not None, "the caller has a right in it"
    return project


def _made(project: Project, row: Any, resource: dict[str, Any]) -> MadeJob:
    run = orjson.loads(row.run)
    return MadeJob(row.id, project, resource, run.get("extras", {}), run.get("base_model", ""))


_COLUMNS = sa.select(tuning_job.c.id, tuning_job.c.location, tuning_job.c.resource, tuning_job.c.run)
