"""TuningJobs: create, get, list, cancel, delete. `states.advance` is the only writer of a job's state.

`runs.supervisor` claims jobs through `scheduling.leases`.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from typing import Any
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization, quoting
from sarto.control.access.principal import Principal
from sarto.control.aip import filters, pages, times
from sarto.control.context import AnyRow, Control
from sarto.control.jobs import admission, events, validation
from sarto.control.jobs.label_switches import Switches
from sarto.control.jobs.states import CANCELLED, CANCELLED_STATUS, CANCELLING, PAUSED, PENDING, RUNNING, advance
from sarto.control.models import checkpoint_deletion, resolution
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from sarto.names import LocationName, ResourceName, new_id
from sarto.schema.tuning_jobs import FINAL_STATES, JobState, TuningJob
from sarto.storage.database.database import report
from sarto.storage.database.tables import (
    experiment,
    job_event,
    job_label,
    metric_point,
    model_version,
    request_id,
    tuning_job,
)

BEHIND_ALL = "9" * 20
"""Sorts after every id: ids have 19 digits."""


def create(
    control: Control,
    principal: Principal,
    parent: LocationName,
    job: TuningJob,
    request: str = "",
    wishes: validation.Wishes | None = None,
) -> dict[str, Any]:
    """The JSON of the job as stored, PENDING. With `request` (a UUID) a repeated call returns the first one's job. With
    `wishes` unusable rows fail the job and not this call, as clients of OpenAI expect.

    Raises InvalidArgument with every fault of the request, Unimplemented for unsupported fields, FailedPrecondition for
    a job that no server can run, AlreadyExists for a `request` that was used with another body, Unavailable when its
    data was replaced meanwhile."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.create", parent.project).number
    body = _digest(parent, job) if request else ""
    if request:
        _check_request_id(request)
        with control.database.reading() as connection:
            earlier = _earlier(connection, project, request, body)
        if earlier is not None:
            return quoting.shown(control, principal, project, earlier)
    accepted, plan, data = validation.accept(control, principal, project, parent, job, wishes)
    plan = admission.with_needs(control, plan, low_memory=Switches.of(accepted.labels).low_memory)
    admission.check_disk(control, plan, accepted)
    job_id = new_id()
    name = ResourceName(project, parent.location, "tuningJobs", job_id)
    with control.database.transaction(only_answers=True) as connection:
        if request and (earlier := _earlier(connection, project, request, body)) is not None:
            return earlier
        now = control.database.now(connection)
        created = dict.fromkeys(("create_time", "update_time"), times.moment(now))
        stored = accepted.model_copy(update={"name": str(name), "state": PENDING, **created}).to_json()
        control.buckets.hold(connection, project, job_id, data)
        _insert(connection, name, principal, accepted, stored, orjson.dumps(asdict(plan)).decode(), now)
        report(connection, "aiplatform.tuningJobs.create", project, str(name))
        if request:
            connection.execute(
                request_id.insert().values(
                    project=project, id=request, body_digest=body, resource_name=str(name), create_time=now
                )
            )
    return stored


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The job's JSON in the API's form. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.get", name.project).number
    with control.database.reading() as connection:
        row = connection.execute(_GET, {"project": project, "id": name.id}).first()
    resolution.check_found(row, name, "TuningJob")
    assert row is not None
    return quoting.shown(control, principal, project, _read(row))


def list_jobs(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Jobs, newest first, and the token of the next page. Location `-` lists all. Raises InvalidArgument on
    `filter`."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.list", parent.project).number
    page = pages.requested(page_size, page_token, "tuningJobs", project, parent.location, filter)
    query = _LIST_EVERYWHERE if parent.location == "-" else _LIST
    tree = filters.parse(filter)
    if tree is not None:
        query = query.where(filters.to_sql(tree, _FILTERS))
    before, most = page.key or BEHIND_ALL, page.limit
    values = {"project": project, "location": parent.location, "before": before, "most": most}
    with control.database.reading() as connection:
        rows, more = page.cut(connection.execute(query, values).all(), "id")
    return quoting.shown_all(control, principal, project, map(_read, rows)), more


def cancel(control: Control, principal: Principal, name: ResourceName) -> JobState:
    """Cancel a job; returns its state before. A waiting one ends at once, a running one when its run has stopped; an
    ended job is unchanged. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.cancel", name.project).number
    with control.database.transaction() as connection:
        row = find(connection, project, name, lock=True)
        state = JobState(row.state)
        now = control.database.now(connection)
        is_held = row.lease_until is not None and row.lease_until >= now
        if state in (PENDING, PAUSED) or (state is RUNNING and not is_held):
            advance(connection, row, CANCELLED, now, {"error": CANCELLED_STATUS})
            events.record(connection, project, name.id, row.lease_epoch, now, "cancelled", "The job was cancelled.")
        elif state is RUNNING:
            advance(connection, row, CANCELLING, now)
            events.record(connection, project, name.id, row.lease_epoch, now, "cancelling", "Cancel was requested.")
    return state


def delete(control: Control, principal: Principal, name: ResourceName) -> None:
    """Remove an ended job's row and run folder; its model stays. Raises NotFound, FailedPrecondition."""
    project = authorization.require(control.database, principal, "aiplatform.tuningJobs.delete", name.project).number
    with control.database.transaction() as connection:
        row = find(connection, project, name, lock=True)
        if JobState(row.state) not in FINAL_STATES:
            raise FailedPrecondition(f"TuningJob {name} is {row.state}; cancel it, and delete it when it has ended.")
        connection.execute(tuning_job.delete().where(tuning_job.c.project == project, tuning_job.c.id == name.id))
        for table in (job_label, job_event, metric_point, experiment):
            connection.execute(table.delete().where(table.c.project == project, table.c.job == name.id))
        versions = sa.select(model_version.c.job).where(
            model_version.c.project == project, model_version.c.job == name.id
        )
        files = None
        if connection.execute(versions).first() is None:  # checkpoints of a job that never became a model
            files = checkpoint_deletion.forget_checkpoints(connection, project, name.id)
    if files is not None:
        checkpoint_deletion.remove(control, files)
    shutil.rmtree(control.job_folder(name.id), ignore_errors=True)


def find(connection: Connection, project: str, name: ResourceName, *, lock: bool = False) -> AnyRow:
    """The job's row. Raises NotFound with its region."""
    query = sa.select(tuning_job).where(tuning_job.c.project == project, tuning_job.c.id == name.id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    resolution.check_found(row, name, "TuningJob")
    assert row is not None
    return row


def _insert(
    connection: Connection,
    name: ResourceName,
    asked_by: Principal,
    job: TuningJob,
    resource: dict[str, Any],
    run: str,
    now: float,
) -> None:
    row = {
        "project": name.project,
        "id": name.id,
        "location": name.location,
        "state": str(PENDING),
        "base_model": job.base_model or (job.pre_tuned_model.base_model if job.pre_tuned_model else ""),
        "display_name": job.tuned_model_display_name,
        "create_time": now,
        "resource": orjson.dumps(resource).decode(),
        "run": run,
        "attempt": 0,
        "not_before": 0.0,
        "cancel_requested": False,
        "asked_by": asked_by.member,
        "lease_epoch": 0,
    }
    connection.execute(_INSERT_JOB, row)
    connection.execute(
        _INSERT_LABEL,
        [{"project": name.project, "job": name.id, "key": k, "value": v} for k, v in job.labels.items()],
    )
    events.record(connection, name.project, name.id, 0, now, "created", "The job was accepted.")


def _read(row: AnyRow) -> dict[str, Any]:
    resource: dict[str, Any] = orjson.loads(row.resource)
    return resource


def _digest(parent: LocationName, job: TuningJob) -> str:
    body = orjson.dumps([parent.location, job.to_json()], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(body).hexdigest()


def _check_request_id(text: str) -> None:
    try:
        UUID(text)
    except ValueError:
        raise InvalidArgument.field("request_id", f'"{text}" is not a UUID.') from None


def _earlier(connection: Connection, project: str, request: str, body: str) -> dict[str, Any] | None:
    """The job of an earlier call with this request id. Raises AlreadyExists when that call had another body."""
    earlier = connection.execute(
        sa.select(request_id).where(request_id.c.project == project, request_id.c.id == request)
    ).first()
    if earlier is None:
        return None
    if earlier.body_digest != body:
        raise AlreadyExists(f'requestId "{request}" was already used with another request ({earlier.resource_name}).')
    job_id = earlier.resource_name.rpartition("/")[2]
    row = connection.execute(
        sa.select(tuning_job.c.resource).where(tuning_job.c.project == project, tuning_job.c.id == job_id)
    ).first()
    if row is None:
        raise AlreadyExists(f'requestId "{request}" created {earlier.resource_name}, which was deleted; use a new one.')
    return _read(row)


def _label_sql(node: filters.Comparison) -> sa.ColumnElement[bool]:
    """`labels.k:*` means present; `!=` also matches jobs without the label."""
    key = node.field.partition(".")[2]
    ours = sa.select(job_label.c.job).where(
        job_label.c.project == tuning_job.c.project, job_label.c.job == tuning_job.c.id, job_label.c.key == key
    )
    if node.operator == ":" and node.value == "*":
        return sa.exists(ours)
    if node.operator not in ("=", ":", "!="):
        filters.fail(node.position, f'"{node.field}" takes =, != and :, not {node.operator}')
    equal = sa.exists(ours.where(job_label.c.value == node.value))
    return sa.not_(equal) if node.operator == "!=" else equal


def _label_presence(node: filters.Comparison) -> sa.ColumnElement[bool]:
    """`labels:k`, another spelling of `labels.k:*`."""
    if node.operator != ":":
        filters.fail(node.position, 'write labels.KEY = "value", or labels:KEY for jobs that have the label')
    return _label_sql(filters.Comparison(f"labels.{node.value}", ":", "*", node.position))


# Statements of the busiest calls, built once: to build one costs more than to run it.
_GET = sa.select(tuning_job.c.location, tuning_job.c.resource).where(
    tuning_job.c.project == sa.bindparam("project"), tuning_job.c.id == sa.bindparam("id")
)
_LIST_EVERYWHERE = (
    sa.select(tuning_job.c.id, tuning_job.c.resource)
    .where(tuning_job.c.project == sa.bindparam("project"), tuning_job.c.id < sa.bindparam("before"))
    .order_by(tuning_job.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_LIST = _LIST_EVERYWHERE.where(tuning_job.c.location == sa.bindparam("location"))
_INSERT_JOB = tuning_job.insert()
_INSERT_LABEL = job_label.insert()
_FILTERS: dict[str, filters.Compiler] = {
    "state": filters.choice_sql(tuning_job.c.state, JobState),
    "labels": _label_presence,
    "labels.": _label_sql,
    "baseModel": filters.text_sql(tuning_job.c.base_model),
    "base_model": filters.text_sql(tuning_job.c.base_model),
    "tunedModelDisplayName": filters.text_sql(tuning_job.c.display_name),
    "tuned_model_display_name": filters.text_sql(tuning_job.c.display_name),
    "createTime": filters.time_sql(tuning_job.c.create_time),
    "create_time": filters.time_sql(tuning_job.c.create_time),
}
