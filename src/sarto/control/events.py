"""The story of a job in about ten lines: append-only rows, read with a cursor. Also gives the times that rows carry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.errors import NotFound
from sarto.names import ResourceName
from sarto.schema.wire import format_time
from sarto.storage.tables import job_event, tuning_job

MOST = 1000
_INSERT = job_event.insert()


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as the API writes times."""
    return format_time(moment(seconds))


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as a time, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC)


def seconds(text: str) -> float:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(text).timestamp()


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
    """What happened to a job last."""
    query = sa.select(job_event.c.kind).where(job_event.c.project == project, job_event.c.job == job)
    return str(connection.execute(query.order_by(job_event.c.sequence.desc()).limit(1)).scalar() or "")


def list_(
    control: Control, principal: Principal, name: ResourceName, after: int = 0, limit: int = MOST
) -> tuple[list[dict[str, Any]], int]:
    """Events of a job behind cursor `after`, oldest first, and the cursor to go on with. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.get", name.project)
    found = sa.select(tuning_job.c.id).where(
        tuning_job.c.project == project.number, tuning_job.c.id == name.id, tuning_job.c.location == name.location
    )
    query = (
        sa.select(job_event)
        .where(job_event.c.project == project.number, job_event.c.job == name.id, job_event.c.sequence > after)
        .order_by(job_event.c.sequence)
        .limit(min(limit, MOST))
    )
    with control.database.reading() as connection:
        if connection.execute(found).first() is None:
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
    return events, rows[-1].sequence if rows else after
