"""Publishes the output of a run: adapter files, copies in buckets, checkpoint endpoints, model versions.

The bytes are stored first, without a name. Then one transaction that holds the lease names them and writes the rows
that refer to them. So a supervisor whose lease was lost cannot replace anything. Every step can be repeated.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.contract.tuning_run import CheckpointRecord, RunResult
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow, Control
from sarto.control.jobs import events
from sarto.control.jobs.job_row import job_of
from sarto.control.jobs.states import RUNNING, SUCCEEDED, Fenced, advance, amend
from sarto.control.runs import artifacts, evaluations, registration, sealed_files
from sarto.control.runs.workspace import Workspace
from sarto.control.scheduling import leases
from sarto.control.scheduling.leases import Lease
from sarto.errors import FailedPrecondition
from sarto.names import ResourceName, new_id
from sarto.storage.database.database import report
from sarto.storage.database.tables import checkpoint, endpoint

FINAL_FOLDER = "final/"
"""A copy of the last checkpoint under the documented name."""


def publish_checkpoint(control: Control, lease: Lease, record: CheckpointRecord, workspace: Workspace) -> None:
    """Publish a checkpoint's files, row and endpoint while training continues. Raises Fenced."""
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
        known = _checkpoints(connection, lease).get(record.checkpoint_id)
    source = workspace.run_folder / record.folder
    adapter = artifacts.keep(control, lease.project, source, record.files, workspace.key)
    if known is not None and known.adapter_digest == adapter.digest:
        return  # published before; `settle` repeats this call for every checkpoint
    uri = f"{artifacts.artifact_uri(control, row)}{_folder_name(row, record.checkpoint_id)}/"
    may_replace = known is not None or artifacts.may_replace(
        control, row
    )  # objects that this job wrote before are its own
    # The bytes are copied before the transaction: transactions must be short, since on SQLite all writers wait for one.
    with (
        artifacts.received(control, source, uri, workspace.key) as files,
        control.database.transaction() as connection,
    ):
        row = _running(connection, lease)  # again: the lease may have been lost during the copy (decision 0025)
        now = control.database.now(connection)
        replaced = files.write(connection, lease.project, may_replace=may_replace)
        artifacts.check_stored(adapter)
        _insert_checkpoint(connection, row, record, adapter, uri, known, now)
        listed = [registration.checkpoint_as_wire(row, one) for one in _ordered(_checkpoints(connection, lease))]
        amend(connection, row, now, {"tunedModel": {"checkpoints": listed}})
        events.record(
            connection, lease.project, lease.job, lease.epoch, now, "checkpoint", _about(record), _facts(record)
        )
    # After the commit: a rollback would bring the rows of the replaced objects back, without their bytes.
    for content in replaced:
        control.buckets.collect(content)


def settle(control: Control, lease: Lease, result: RunResult, workspace: Workspace) -> None:
    """Publish the remaining checkpoints, register the model, end the job as SUCCEEDED. Raises Fenced."""
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
    job = job_of(row)
    records = result.checkpoints
    if registration.keeps_last_only(job):
        records = records[-1:]
    for record in records:
        if (workspace.run_folder / record.folder).is_dir():
            publish_checkpoint(control, lease, record, workspace)
    with control.database.reading() as connection:
        checkpoints = _ordered(_checkpoints(connection, lease))
    if not checkpoints:
        raise FailedPrecondition("The run ended without a checkpoint.")
    uri = artifacts.artifact_uri(control, row)
    final = {}
    if job.output_uri:
        final[uri + FINAL_FOLDER] = sealed_files.adapter(control, checkpoints[-1].adapter_folder)
    may_replace = artifacts.may_replace(control, row)
    if result.has_report:
        evaluations.publish_report(
            control, lease, f"{uri.rpartition('checkpoints/')[0]}evaluation", workspace, may_replace
        )
    if job.distillation_spec is not None:
        root = job.distillation_spec.pipeline_root_directory.rstrip("/")
        folder = f"{uri.rpartition('checkpoints/')[0]}labelled"
        evaluations.publish_labelled(
            control, lease, f"{root}/{lease.job}" if root and not job.output_uri else folder, workspace, may_replace
        )
    with ExitStack() as stack:
        received = [
            stack.enter_context(artifacts.received(control, folder, target, workspace.key))
            for target, folder in final.items()
        ]
        connection = stack.enter_context(control.database.transaction())
        row = _running(connection, lease)
        now = control.database.now(connection)
        for files in received:
            files.write(connection, lease.project, may_replace=may_replace)
        checkpoints = _ordered(_checkpoints(connection, lease))
        default = evaluations.default_checkpoint(row, checkpoints, result.best_checkpoint_id)
        name = registration.register(connection, row, checkpoints, default, uri, now)
        advance(connection, row, SUCCEEDED, now, registration.ending(row, result, name, checkpoints, default))
        best = (
            f" The best by validation is {result.best_checkpoint_id}: {result.best_reason}"
            if result.best_reason
            else ""
        )
        events.record(
            connection, lease.project, lease.job, lease.epoch, now, "succeeded", f"The model is {name}.{best}"
        )


def _running(connection: Connection, lease: Lease) -> AnyRow:
    """The held row of a job that is not being cancelled. Raises Fenced."""
    row = leases.hold(connection, lease)
    if row.state != str(RUNNING):
        raise Fenced(f"job {lease.job} is {row.state}")
    return row


def _insert_checkpoint(
    connection: Connection,
    row: AnyRow,
    record: CheckpointRecord,
    adapter: artifacts.StoredAdapter,
    uri: str,
    known: AnyRow | None,
    now: float,
) -> None:
    """Write the checkpoint's row in place of an earlier attempt's, and its endpoint."""
    endpoint_id = known.endpoint if known is not None else new_id()  # clients may use the endpoint already
    ours = {"project": row.project, "job": row.id, "checkpoint_id": record.checkpoint_id}
    connection.execute(checkpoint.delete().filter_by(**ours))
    connection.execute(
        checkpoint.insert().values(
            **ours,
            epoch=record.epoch,
            step=record.step,
            endpoint=endpoint_id,
            artifact_uri=uri,
            adapter_folder=adapter.name,
            adapter_digest=adapter.digest,
            resource=registration.origin(row, record),
            create_time=now,
        )
    )
    if known is None:
        _insert_endpoint(connection, row, endpoint_id, record, now)


def _folder_name(row: AnyRow, checkpoint_id: str) -> str:
    return f"checkpoint-{checkpoint_id}" if job_of(row).output_uri else checkpoint_id


def _checkpoints(connection: Connection, lease: Lease) -> dict[str, AnyRow]:
    query = sa.select(checkpoint).where(checkpoint.c.project == lease.project, checkpoint.c.job == lease.job)
    return {row.checkpoint_id: row for row in connection.execute(query)}


def _ordered(checkpoints: dict[str, AnyRow]) -> list[AnyRow]:
    return sorted(checkpoints.values(), key=lambda row: row.step)


def _insert_endpoint(
    connection: Connection, row: AnyRow, endpoint_id: str, record: CheckpointRecord, now: float
) -> None:
    job, name = job_of(row), ResourceName(row.project, row.location, "endpoints", endpoint_id)
    resource = {
        "name": str(name),
        "displayName": row.display_name,
        "labels": job.labels,
        "createTime": timestamp(now),
        "updateTime": timestamp(now),
        **registration.encryption(job),
    }
    connection.execute(
        endpoint.insert().values(
            project=row.project,
            id=endpoint_id,
            location=row.location,
            job=row.id,
            model="",
            version=0,
            checkpoint_id=record.checkpoint_id,
            resource=orjson.dumps(resource).decode(),
            create_time=now,
        )
    )
    report(connection, "aiplatform.endpoints.create", row.project, str(name))


def _about(record: CheckpointRecord) -> str:
    measured = f", validation loss {record.evaluation.loss:.3f}" if record.evaluation else ""
    return f"Checkpoint {record.checkpoint_id} was published: epoch {record.epoch}, step {record.step}{measured}."


def _facts(record: CheckpointRecord) -> dict[str, Any]:
    return {"checkpointId": record.checkpoint_id, "epoch": record.epoch, "step": record.step}
