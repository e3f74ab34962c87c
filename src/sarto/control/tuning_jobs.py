"""TuningJobs: create, get, list, cancel, delete, and `advance`, the only writer of a job's state.

Knows no run: `supervisor` takes jobs from here through `leases` and reports back through `advance`.
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

from sarto.control import capacity, events, filters, iam, leftovers, paging, resolution, validation, webhooks
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.control.labels import LOW_MEMORY_LABEL
from sarto.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from sarto.names import LocationName, ResourceName, new_id
from sarto.schema.tuning_jobs import FINAL_STATES, JobState, TuningJob
from sarto.storage.tables import experiment, job_event, job_label, metric_point, model_version, request_id, tuning_job

PENDING = JobState.JOB_STATE_PENDING
RUNNING = JobState.JOB_STATE_RUNNING
PAUSED = JobState.JOB_STATE_PAUSED
CANCELLING = JobState.JOB_STATE_CANCELLING
CANCELLED = JobState.JOB_STATE_CANCELLED
SUCCEEDED = JobState.JOB_STATE_SUCCEEDED
FAILED = JobState.JOB_STATE_FAILED

MOVES: dict[JobState, frozenset[JobState]] = {
    PENDING: frozenset({RUNNING, CANCELLED, FAILED}),
    RUNNING: frozenset({PAUSED, CANCELLING, CANCELLED, SUCCEEDED, FAILED}),
    PAUSED: frozenset({RUNNING, CANCELLED, FAILED}),
    CANCELLING: frozenset({CANCELLED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}
"""Every legal move. A job that lost its run stays RUNNING until the next run takes over or attempts are used up; one
whose key is disabled is PAUSED until it is enabled."""

BEHIND_ALL = "9" * 20
"""Sorts behind every id: ids are 19 digits."""
CANCELLED_STATUS = {"code": 1, "message": "The job was cancelled by its user."}


class Fenced(Exception):
    """A write on behalf of a job by someone who no longer holds it, or against its table of moves. Changes nothing."""


def create(
    control: Control, principal: Principal, parent: LocationName, job: TuningJob, request: str = ""
) -> dict[str, Any]:
    """The JSON of the job as stored, PENDING. With `request` (a UUID) a repeated call answers the first one's job.

    Raises InvalidArgument with every fault of the request, Unimplemented for what is not built, FailedPrecondition for
    what no server can run, AlreadyExists for a `request` that was used with another body.
    """
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.create", parent.project).number
    body = _digest(parent, job) if request else ""
    if request:
        _check_request_id(request)
        with control.database.reading() as connection:
            earlier = _earlier(connection, project, request, body)
        if earlier is not None:
            return earlier
    accepted, plan = validation.accept(control, principal, project, parent, job)
    plan = capacity.with_needs(control, plan, low_memory=accepted.labels.get(LOW_MEMORY_LABEL) == "true")
    job_id = new_id()
    name = ResourceName(project, parent.location, "tuningJobs", job_id)
    with control.database.transaction(only_answers=True) as connection:
        if request and (earlier := _earlier(connection, project, request, body)) is not None:
            return earlier
        now = control.database.now(connection)
        times = dict.fromkeys(("create_time", "update_time"), events.moment(now))
        stored = accepted.model_copy(update={"name": str(name), "state": PENDING, **times}).to_json()
        _insert(connection, name, accepted, stored, orjson.dumps(asdict(plan)).decode(), now)
        if request:
            connection.execute(
                request_id.insert().values(
                    project=project, id=request, body_digest=body, resource_name=str(name), create_time=now
                )
            )
    return stored


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """The job's JSON as it goes over the wire. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.get", name.project).number
    with control.database.reading() as connection:
        row = connection.execute(_GET, {"project": project, "id": name.id}).first()
    resolution.check_found(row, name, "TuningJob")
    assert row is not None
    return _read(row)


def list_(
    control: Control,
    principal: Principal,
    parent: LocationName,
    page_size: int = 0,
    page_token: str = "",
    filter: str = "",
) -> tuple[list[dict[str, Any]], str]:
    """Newest first, and the token of the next page. Location `-` lists all. Raises InvalidArgument on `filter`."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.list", parent.project).number
    size = paging.page_size(page_size)
    scope = ("tuningJobs", project, parent.location, filter)
    before = paging.start(page_token, *scope) or BEHIND_ALL
    query = _LIST_EVERYWHERE if parent.location == "-" else _LIST
    tree = filters.parse(filter)
    if tree is not None:
        query = query.where(filters.to_sql(tree, _FILTERS))
    values = {"project": project, "location": parent.location, "before": before, "most": size + 1}
    with control.database.reading() as connection:
        rows = connection.execute(query, values).all()
    more = paging.token(rows[size - 1].id, *scope) if len(rows) > size else ""
    return [_read(row) for row in rows[:size]], more


def cancel(control: Control, principal: Principal, name: ResourceName) -> None:
    """What waits ends at once, RUNNING when its run has stopped, an ended job stays as it is. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.cancel", name.project).number
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
            events.record(connection, project, name.id, row.lease_epoch, now, "cancelling", "Cancel was asked for.")


def delete(control: Control, principal: Principal, name: ResourceName) -> None:
    """Remove an ended job's record and run folder; its model stays. Raises NotFound, FailedPrecondition."""
    project = iam.require(control.database, principal, "aiplatform.tuningJobs.delete", name.project).number
    with control.database.transaction() as connection:
        row = find(connection, project, name, lock=True)
        if JobState(row.state) not in FINAL_STATES:
            raise FailedPrecondition(f"TuningJob {name} is {row.state}; cancel it, and delete it when it has ended.")
        connection.execute(tuning_job.delete().where(tuning_job.c.project == project, tuning_job.c.id == name.id))
        for table in (job_label, job_event, metric_point, experiment):
            connection.execute(table.delete().where(table.c.project == project, table.c.job == name.id))
        made = sa.select(model_version.c.job).where(model_version.c.project == project, model_version.c.job == name.id)
        files = None
        if connection.execute(made).first() is None:  # checkpoints of a job that never became a model
            files = leftovers.forget_checkpoints(connection, project, name.id)
    if files is not None:
        leftovers.remove(control, files)
    shutil.rmtree(control.job_folder(name.id), ignore_errors=True)


def find(connection: Connection, project: str, name: ResourceName, *, lock: bool = False) -> AnyRow:
    """The job's row. Raises NotFound, naming the region that has it."""
    query = sa.select(tuning_job).where(tuning_job.c.project == project, tuning_job.c.id == name.id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    resolution.check_found(row, name, "TuningJob")
    assert row is not None
    return row


def advance(
    connection: Connection, row: AnyRow, to: JobState, now: float, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Move a job from the state and epoch of `row` to `to` with `changes` of its resource; gives the resource.

    A compare-and-set: raises Fenced when the move is not in MOVES, or the job has moved on since `row` was read.
    """
    if to not in MOVES[JobState(row.state)]:
        raise Fenced(f"job {row.id}: no move from {row.state} to {to}")
    changes = {"state": str(to), **(changes or {})}
    values: dict[str, Any] = {"state": str(to)}
    if to is RUNNING and row.state == str(PENDING):
        changes["startTime"] = timestamp(now)
    if to in FINAL_STATES:
        changes["endTime"] = timestamp(now)
        changes["tuningJobState"] = None
        values |= {"lease_owner": None, "lease_until": None}
    if to in (CANCELLING, CANCELLED):
        values["cancel_requested"] = True
    resource = amend(connection, row, now, changes, values)
    webhooks.enqueue(connection, row, now, resource)
    return resource


def amend(
    connection: Connection, row: AnyRow, now: float, changes: dict[str, Any], values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write `changes` (None removes a field) into the resource and `values` into columns; gives the resource.

    Raises Fenced when state or epoch are no longer those of `row`.
    """
    resource: dict[str, Any] = orjson.loads(row.resource)
    resource.update(changes)
    resource["updateTime"] = timestamp(now)
    resource = {key: value for key, value in resource.items() if value is not None}
    written = connection.execute(
        tuning_job.update()
        .where(
            tuning_job.c.project == row.project,
            tuning_job.c.id == row.id,
            tuning_job.c.state == row.state,
            tuning_job.c.lease_epoch == row.lease_epoch,
        )
        .values(resource=orjson.dumps(resource).decode(), **(values or {}))
    )
    if written.rowcount != 1:
        raise Fenced(f"job {row.id}: state or lease changed meanwhile")
    return resource


def _insert(
    connection: Connection, name: ResourceName, job: TuningJob, resource: dict[str, Any], run: str, now: float
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
    """The job that an earlier call with this request id made. Raises AlreadyExists when that call said otherwise."""
    found = connection.execute(
        sa.select(request_id).where(request_id.c.project == project, request_id.c.id == request)
    ).first()
    if found is None:
        return None
    if found.body_digest != body:
        raise AlreadyExists(f'requestId "{request}" was already used with another request ({found.resource_name}).')
    job_id = found.resource_name.rpartition("/")[2]
    row = connection.execute(
        sa.select(tuning_job.c.resource).where(tuning_job.c.project == project, tuning_job.c.id == job_id)
    ).first()
    if row is None:
        raise AlreadyExists(f'requestId "{request}" made {found.resource_name}, which was deleted; use a new one.')
    return _read(row)


def _label_sql(node: filters.Comparison) -> sa.ColumnElement[bool]:
    """`labels.k:*` is presence; `!=` also holds for jobs without the label."""
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
