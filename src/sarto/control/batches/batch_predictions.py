"""batchPredictionJobs: create, get, list, cancel, delete. `batch_runner` executes them.

The model's name is resolved at create and stored. The rights on buckets are checked again when the job runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.engine import Connection

from sarto.control import operations
from sarto.control.access import authorization, quoting, run_identity
from sarto.control.access.principal import Principal
from sarto.control.aip import filters, pages
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow, Control
from sarto.control.models import resolution
from sarto.control.models.resolution import ResolvedModel
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, SartoError, Unimplemented
from sarto.names import LocationName, ResourceName, new_id, parse_gs_uri
from sarto.schema.batch_predictions import BatchPredictionJob
from sarto.schema.tuning_jobs import FINAL_STATES, JobState
from sarto.storage.buckets.store import StoredObject
from sarto.storage.database.database import report
from sarto.storage.database.tables import batch_prediction_job as table

JOBS = "batchPredictionJobs"
ROOT = "batch_prediction_job"
MAX_DISPLAY_NAME = 128
REFUSED = (
    "model_version_id", "encryption_spec", "instance_config", "model_parameters", "dedicated_resources",
    "manual_batch_tuning_parameters", "generate_explanation", "explanation_spec", "unmanaged_container_model",
    "service_account",
)  # fmt: skip
MOST_URIS = 100
CANCELLED_STATUS = {"code": 1, "message": "The job was cancelled by its user."}


@dataclass(frozen=True)
class BatchRun:
    """Decisions made at create for the work of a job; the `run` column of its row."""

    model: ResolvedModel
    """The model that answers the rows."""
    output_key: str
    """The key under which the answers are encrypted, if any."""
    may_replace: bool
    """Whether the caller may replace objects in the output folder."""

    @classmethod
    def of(cls, row: AnyRow) -> BatchRun:
        """The run of a row, which has the model's fields beside the others."""
        fields = orjson.loads(row.run)
        output_key = fields.pop("output_key", fields.get("kms_key", ""))
        may_replace = bool(fields.pop("may_replace", True))
        return cls(ResolvedModel(**fields), output_key, may_replace)

    def to_json(self) -> str:
        own = {"output_key": self.output_key, "may_replace": self.may_replace}
        return orjson.dumps(asdict(self.model) | own).decode()


def create(control: Control, principal: Principal, parent: LocationName, job: BatchPredictionJob) -> dict[str, Any]:
    """Create a job; returns it as stored, PENDING. Raises InvalidArgument with every fault, PermissionDenied if the
    service agent may not read or write, Unimplemented for unsupported fields."""
    project = authorization.require(
        control.database, principal, "aiplatform.batchPredictionJobs.create", parent.project
    ).number
    _refuse(job)
    sources = _check(control, project, job)
    check_rights(control, project, job, principal)
    deployed = resolution.resolve(control, principal, job.model)
    name = ResourceName(project, parent.location, JOBS, new_id())
    run = BatchRun(
        model=deployed,
        output_key=_output_key(sources, deployed),
        may_replace=run_identity.may_replace(control, project, _prefix(job), "", principal, makes_own=True),
    )
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
                run=run.to_json(),
                cancel_requested=False,
                asked_by=principal.member,
                lease_epoch=0,
                create_time=now,
            )
        )
        control.buckets.hold(connection, project, name.id, sources)
        report(connection, "aiplatform.batchPredictionJobs.create", project, str(name))
    return resource


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    project = authorization.require(
        control.database, principal, "aiplatform.batchPredictionJobs.get", name.project
    ).number
    with control.database.reading() as connection:
        row = _find(connection, project, name)
    return quoting.batch(control, principal, project, _read(row))


def list_jobs(
    control: Control, principal: Principal, parent: LocationName, page_size: int, page_token: str, filter_text: str
) -> tuple[list[dict[str, Any]], str]:
    """Jobs, newest first, and the token of the next page."""
    project = authorization.require(
        control.database, principal, "aiplatform.batchPredictionJobs.list", parent.project
    ).number
    page = pages.requested(page_size, page_token, JOBS, project, parent.location, filter_text)
    query = sa.select(table.c.id, table.c.resource).where(pages.within(table, project, parent.location))
    if (tree := filters.parse(filter_text)) is not None:
        query = query.where(filters.to_sql(tree, _FILTERS))
    with control.database.reading() as connection:
        rows, more = page.read(connection, query, table.c.id)
    return [quoting.batch(control, principal, project, _read(row)) for row in rows], more


def cancel(control: Control, principal: Principal, name: ResourceName) -> None:
    """A waiting job ends at once, a running one within two seconds; an ended one is unchanged."""
    project = authorization.require(
        control.database, principal, "aiplatform.batchPredictionJobs.cancel", name.project
    ).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        now = control.database.now(connection)
        if row.state == JobState.JOB_STATE_PENDING:
            ended = {"endTime": timestamp(now), "error": CANCELLED_STATUS}
            write(connection, row, now, JobState.JOB_STATE_CANCELLED, ended)
        elif row.state == JobState.JOB_STATE_RUNNING:
            write(connection, row, now, JobState.JOB_STATE_CANCELLING, {})


def delete(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    """Remove an ended job's row; its predictions stay. Returns a finished operation. Raises FailedPrecondition."""
    project = authorization.require(
        control.database, principal, "aiplatform.batchPredictionJobs.delete", name.project
    ).number
    with control.database.transaction() as connection:
        row = _find(connection, project, name)
        if JobState(row.state) not in FINAL_STATES:
            raise FailedPrecondition(f"{name} is {row.state}; cancel it, and delete it when it has ended.")
        connection.execute(table.delete().where(table.c.project == project, table.c.id == name.id))
        now = control.database.now(connection)
        return operations.deleted(connection, LocationName(project, row.location), f"{JOBS}/{row.id}", now)


def write(connection: Connection, row: AnyRow, now: float, state: JobState, changes: dict[str, Any]) -> bool:
    """Move the job of `row` to `state`. Returns False without a change when it has moved on, or another runner has
    it."""
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


def check_rights(control: Control, project: str, job: BatchPredictionJob, principal: Principal | None = None) -> None:
    """Check that the project's service agent, as which batch predictions run, and the job's maker may read and write
    its data. Raises PermissionDenied with the command that grants the right."""
    assert job.input_config is not None and job.input_config.gcs_source is not None
    uses = [(uri, run_identity.READ) for uri in job.input_config.gcs_source.uris]
    uses.append((_prefix(job), run_identity.WRITE))
    if principal is None:
        run_identity.check_agent(control, project, uses)
    else:
        run_identity.check_both(control, principal, project, uses)


def job_of(row: AnyRow) -> BatchPredictionJob:
    return BatchPredictionJob.read(orjson.loads(row.resource))


def output_folder(job: BatchPredictionJob, create_time: float) -> str:
    """The folder of a job's answers, below its maker's prefix."""
    return f"{_prefix(job).rstrip('/')}/prediction-model-{timestamp(create_time)}"


def may_replace(control: Control, row: AnyRow, folder: str) -> bool:
    """Whether the answers may replace an object: both the job's maker and the service agent need the right to delete
    it."""
    return BatchRun.of(row).may_replace and run_identity.may_replace(control, row.project, folder, "")


def _output_key(sources: list[StoredObject], deployed: ResolvedModel) -> str:
    """The key of the input, else of the model, because answers repeat both. Raises InvalidArgument for inputs of two
    keys."""
    keys = {source.fields.kms_key for source in sources} - {""}
    if len(keys) > 1:
        raise InvalidArgument.field(
            f"{ROOT}.input_config.gcs_source.uris",
            f"The files are encrypted under {len(keys)} keys; use a job of its own for each key.",
        )
    return next(iter(keys), deployed.kms_key)


def _prefix(job: BatchPredictionJob) -> str:
    assert job.output_config is not None and job.output_config.gcs_destination is not None
    return job.output_config.gcs_destination.output_uri_prefix


def _find(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    row = connection.execute(sa.select(table).where(table.c.project == project, table.c.id == name.id)).first()
    resolution.check_found(row, name, "BatchPredictionJob")
    assert row is not None
    return row


def _read(row: AnyRow) -> dict[str, Any]:
    resource: dict[str, Any] = orjson.loads(row.resource)
    return resource


def _refuse(job: BatchPredictionJob) -> None:
    fields = job.to_json()
    faults = [name for name in REFUSED if to_camel(name) in fields and fields[to_camel(name)] is not False]
    if job.input_config and job.input_config.bigquery_source is not None:
        faults.append("input_config.bigquery_source")
    if job.output_config and job.output_config.bigquery_destination is not None:
        faults.append("output_config.bigquery_destination")
    if faults:
        raise Unimplemented("Not supported on this server: " + ", ".join(f"{ROOT}.{name}" for name in faults) + ".")


def _check(control: Control, project: str, job: BatchPredictionJob) -> list[StoredObject]:
    """The sources in their present versions. Raises InvalidArgument with every fault."""
    faults: list[FieldViolation] = []
    sources: list[StoredObject] = []

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
    if len(uris) > MOST_URIS:
        fault("input_config.gcs_source.uris", f"At most {MOST_URIS} files; these are {len(uris)}.")
    if len(set(uris)) < len(uris):
        fault("input_config.gcs_source.uris", "A file is named twice.")
    for index, uri in enumerate(uris[:MOST_URIS]):
        field = f"{ROOT}.input_config.gcs_source.uris[{index}]"
        with _noting(faults, field):
            if "*" in uri:
                raise InvalidArgument.field(field, f'"{uri}": wildcards are not supported; name every file.')
            sources.append(control.buckets.resolve(uri, field, project))
    size, most = sum(source.size for source in sources), control.limits.max_dataset_bytes
    if size > most:
        fault("input_config.gcs_source.uris", f"The files have {size:,} bytes together; at most {most:,} are allowed.")
    field = f"{ROOT}.output_config.gcs_destination.output_uri_prefix"
    with _noting(faults, field):
        control.buckets.bucket(parse_gs_uri(prefix, field)[0], project)
    if faults:
        raise InvalidArgument.of(faults)
    return sources


@contextmanager
def _noting(faults: list[FieldViolation], field: str) -> Iterator[None]:
    """Convert an error of the block to faults of the field."""
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
