"""The events of a job: append-only rows, about ten for a job, read with a cursor."""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization, quoting
from sarto.control.access.principal import Principal
from sarto.control.aip.times import timestamp
from sarto.control.context import Control
from sarto.errors import NotFound
from sarto.names import ResourceName
from sarto.storage.database.tables import job_event, tuning_job

MOST = 1000
_INSERT = job_event.insert()


def record(
    connection: Connection,
    project: str,
    job: str,
    epoch: int,
    now: float,
    kind: str,
    message: str,
    data: dict[str, Any] | None = None,
) -> None:
    row = {"project": project, "job": job, "epoch": epoch, "time": now, "kind": kind, "message": message}
    connection.execute(_INSERT, {**row, "data": orjson.dumps(data or {}).decode()})


def last_kind(connection: Connection, project: str, job: str) -> str:
    """The kind of a job's last event."""
    query = sa.select(job_event.c.kind).where(job_event.c.project == project, job_event.c.job == job)
    return str(connection.execute(query.order_by(job_event.c.sequence.desc()).limit(1)).scalar() or "")


def list_events(
    control: Control, principal: Principal, name: ResourceName, after: int = 0, limit: int = MOST
) -> tuple[list[dict[str, Any]], int]:
    """Events of a job after cursor `after`, oldest first, and the next cursor. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.get", name.project)
    job_query = sa.select(tuning_job.c.resource).where(
        tuning_job.c.project == project.number, tuning_job.c.id == name.id, tuning_job.c.location == name.location
    )
    query = (
        sa.select(job_event)
        .where(job_event.c.project == project.number, job_event.c.job == name.id, job_event.c.sequence > after)
        .order_by(job_event.c.sequence)
        .limit(min(limit, MOST))
    )
    with control.database.reading() as connection:
        job = connection.execute(job_query).scalar()
        if job is None:
            raise NotFound(f"TuningJob {name} is not found.")
        rows = connection.execute(query).all()
    events = [
        {
            "sequence": str(row.sequence),
            "time": timestamp(row.time),
            "kind": row.kind,
            "attempt": row.epoch,
            "message": row.message,
            "data": orjson.loads(row.data),
        }
        for row in rows
    ]
    if not quoting.can_read_data(control, principal, project.number, orjson.loads(job)):
        events = [quoting.event(each) for each in events]
    return events, rows[-1].sequence if rows else after
