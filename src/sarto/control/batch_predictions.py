"""batchPredictionJobs: create, get, list, cancel, delete. `batch_runner` does the work.

What a job's model name meant when it was accepted is kept with it; the rights in buckets are asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.engine import Connection

from sarto.control import acting, filters, iam, operations, paging, resolution
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, SartoError, Unimplemented
from sarto.names import LocationName, ResourceName, new_id, parse_gs_uri
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.schema.tuning_jobs import FINAL_STATES, JobState
from sarto.storage.tables import batch_prediction_job as table

JOBS = "batchPredictionJobs"
ROOT = "batch_prediction_job"
MAX_DISPLAY_NAME = 128
REFUSED = (
    "model_version_id", "encryption_spec", "instance_config", "model_parameters", "dedicated_resources",
    "manual_batch_tuning_parameters", "generate_explanation", "explanation_spec", "unmanaged_container_model",
    "service_account",
)  # fmt: skip
CANCELLED_STATUS = {"code": 1, "message": "The job was cancelled by its user."}


def create(control: Control, principal: Principal, parent: LocationName, job: BatchPredictionJob) -> dict[str, Any]:
    """The job as stored, PENDING. Raises InvalidArgument with every fault, PermissionDenied where the service agent may
    not read or write, Unimplemented for what is not built."""
    project = iam.require(control.database, principal, "aiplatform.batchPredictionJobs.create", parent.project).number
    _refuse(job)
    _check(control, project, job)
    check_rights(control, project, job)
    deployed = resolution.resolve(control, principal, job.model)
    name = ResourceName(project, parent.location, JOBS, new_id())
    with control.database.transaction() as connection:
        now = control.database.now(connection)
        resource = job.model_copy(update={"name": str(name), "state": JobState.JOB_STATE_PENDING}).to_json()
        resource["createTime"] = resource["updateTime"] = timestamp(now)
        connection.execute(
            table.insert().values(
                project=project,
                id=name.id,
                location=name.location,
                state=str(JobState.JOB_STATE_PENDING),
                display_name=job.display_name,
                resource=orjson.dumps(resource).decode(),
                run=orjson.dumps(asdict(deployed)).decode(),
                cancel_requested=False,
                lease_epoch=0,
                create_time=now,
            )
        )
    return resource


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    project = iam.require(control.database, principal, "aiplatform.batchPredictionJobs.get", name.project).number
    with control.database.reading() as connection:
        return _read(_find(connection, project, name))


def list_(
    control: Control, principal: Principal, parent: LocationName, page_size: int, page_token: str, filter_text: str
) -> tuple[list[dict[str, Any]], str]:
    """Newest first, and the token of the next page."""
    project = iam.require(control.database, principal, "aiplatform.batchPredictionJobs.list", parent.project).number
    size, scope = paging.page_size(page_size), (JOBS, project, parent.location, filter_text)
    query = sa.select(table.c.id, table.c.resource).where(table.c.project == project)
    if parent.location != "-":
        query = query.where(table.c.location == parent.location)
    if before := paging.start(page_token, *scope):
        query = query.where(table.c.id < before)
    if (tree := filters.parse(filter_text)) is not None:
        query = query.where(filters.to_sql(tree, _FILTERS))
    with control.database.reading() as connection:
        rows = connection.execute(query.order_by(table.c.id.desc()).limit(size + 1)).all()
    more = paging.token(rows[size - 1].id, *scope) if len(rows) > size else ""
    return [_read(row) for row in rows[:size]], more


def cancel(control: Control, principal: Principal, name: ResourceName) -> None:
    """A waiting job ends at once, a running one within a second or two, an ended one stays as it is."""
    project = iam.require(control.database, principal, "aiplatform.batchPredictionJobs.cancel", name.project).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        now = control.database.now(connection)
        if row.state == JobState.JOB_STATE_PENDING:
            ended = {"endTime": timestamp(now), "error": CANCELLED_STATUS}
            write(connection, row, now, JobState.JOB_STATE_CANCELLED, ended)
        elif row.state == JobState.JOB_STATE_RUNNING:
            write(connection, row, now, JobState.JOB_STATE_CANCELLING, {})


def delete(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Remove an ended job's record; its predictions stay. Gives a done operation. Raises FailedPrecondition."""
    project = iam.require(control.database, principal, "aiplatform.batchPredictionJobs.delete", name.project).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        if JobState(row.state) not in FINAL_STATES:
            raise FailedPrecondition(f"{name} is {row.state}; cancel it, and delete it when it has ended.")
        connection.execute(table.delete().where(table.c.project == project, table.c.id == name.id))
        now = control.database.now(connection)
        return operations.deleted(connection, LocationName(project, row.location), f"{JOBS}/{row.id}", now)


def write(connection: Connection, row: AnyRow, now: float, state: JobState, changes: dict[str, Any]) -> bool:
    """Move the job of `row` to `state`. False when it has moved on, or another runner has it: then nothing changes."""
    resource = _read(row) | {"state": str(state), "updateTime": timestamp(now)} | changes
    written = connection.execute(
        table.update()
        .where(table.c.project == row.project, table.c.id == row.id)
        .where(table.c.state == row.state, table.c.lease_epoch == row.lease_epoch)
        .values(
            state=str(state),
            resource=orjson.dumps(resource).decode(),
            cancel_requested=state is JobState.JOB_STATE_CANCELLING,
        )
    )
    return written.rowcount == 1


def check_rights(control: Control, project: str, job: BatchPredictionJob) -> None:
    """Whether the project's service agent, as which batch predictions run, may read and write what the job names.
    Raises PermissionDenied with the command that grants it."""
    assert job.input_config is not None and job.input_config.gcs_source is not None
    assert job.output_config is not None and job.output_config.gcs_destination is not None
    uses = [(uri, acting.READ) for uri in job.input_config.gcs_source.uris]
    acting.check_agent(control, project, [*uses, (job.output_config.gcs_destination.output_uri_prefix, acting.WRITE)])


def _find(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    row = connection.execute(sa.select(table).where(table.c.project == project, table.c.id == name.id)).first()
    resolution.check_found(row, name, "BatchPredictionJob")
    assert row is not None
    return row


def _read(row: AnyRow) -> dict[str, Any]:
    resource: dict[str, Any] = orjson.loads(row.resource)
    return resource


def _refuse(job: BatchPredictionJob) -> None:
    given = job.to_json()
    faults = [name for name in REFUSED if to_camel(name) in given and given[to_camel(name)] is not False]
    if job.input_config and job.input_config.bigquery_source is not None:
        faults.append("input_config.bigquery_source")
    if job.output_config and job.output_config.bigquery_destination is not None:
        faults.append("output_config.bigquery_destination")
    if faults:
        raise Unimplemented("Not supported on this server: " + ", ".join(f"{ROOT}.{name}" for name in faults) + ".")


def _check(control: Control, project: str, job: BatchPredictionJob) -> None:
    faults: list[FieldViolation] = []

    def fault(field: str, description: str) -> None:
        faults.append(FieldViolation(f"{ROOT}.{field}", description))

    source, target = job.input_config, job.output_config
    uris = source.gcs_source.uris if source and source.gcs_source else []
    prefix = target.gcs_destination.output_uri_prefix if target and target.gcs_destination else ""
    if len(job.display_name) > MAX_DISPLAY_NAME:
        fault("display_name", f"At most {MAX_DISPLAY_NAME} characters; this has {len(job.display_name)}.")
    if not job.model:
        fault("model", "Required field is not set.")
    if source is None or source.instances_format != "jsonl":
        fault("input_config.instances_format", 'Must be "jsonl".')
    if target is None or target.predictions_format != "jsonl":
        fault("output_config.predictions_format", 'Must be "jsonl".')
    if not uris:
        fault("input_config.gcs_source.uris", "Required field is not set.")
    for index, uri in enumerate(uris):
        _check_source(control, project, uri, f"{ROOT}.input_config.gcs_source.uris[{index}]", faults)
    field = f"{ROOT}.output_config.gcs_destination.output_uri_prefix"
    with _noting(faults, field):
        control.buckets.bucket(parse_gs_uri(prefix, field)[0], project)
    if faults:
        raise InvalidArgument.of(faults)


def _check_source(control: Control, project: str, uri: str, field: str, faults: list[FieldViolation]) -> None:
    with _noting(faults, field):
        if "*" in uri:
            raise InvalidArgument.field(field, f'"{uri}": wildcards are not supported; name every file.')
        control.buckets.resolve(uri, field, project)


@contextmanager
def _noting(faults: list[FieldViolation], field: str) -> Iterator[None]:
    """An error of the block becomes faults of the field."""
    try:
        yield
    except SartoError as error:
        own = error.violations if isinstance(error, InvalidArgument) else []
        faults.extend(own or [FieldViolation(field, error.message)])


_FILTERS: dict[str, filters.Compiler] = {
    "state": filters.choice_sql(table.c.state, JobState),
    "displayName": filters.text_sql(table.c.display_name),
    "display_name": filters.text_sql(table.c.display_name),
    "createTime": filters.time_sql(table.c.create_time),
    "create_time": filters.time_sql(table.c.create_time),
}
