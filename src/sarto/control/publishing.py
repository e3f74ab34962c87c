"""What a run made, made real: adapter files kept and copied into buckets, checkpoint endpoints, model versions.

Bytes first, under no name; then their names in the bucket and the rows that point at them, in one transaction that
holds the lease: a supervisor that was taken for dead can replace nothing. Every step may be repeated.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import artifacts, evaluations, events, leases, registration, sealing
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.control.leases import Lease
from sarto.control.sealing import Workplace
from sarto.control.tuning_jobs import RUNNING, SUCCEEDED, Fenced, advance, amend
from sarto.control.validation import Plan
from sarto.errors import FailedPrecondition
from sarto.names import ResourceName, new_id
from sarto.schema.runs import CheckpointRecord, RunResult
from sarto.storage.tables import checkpoint, endpoint

FINAL_FOLDER = "final/"
"""Under the documented name, the last checkpoint once more."""


def publish_checkpoint(control: Control, lease: Lease, record: CheckpointRecord, place: Workplace) -> None:
    """Give a checkpoint its files, its row and its endpoint, while training goes on. Raises Fenced."""
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
        known = _checkpoints(connection, lease).get(record.checkpoint_id)
    source = place.run_folder / record.folder
    kept = artifacts.keep(control, source, record.files, place.key)
    if known is not None and known.adapter_digest == kept.digest:
        return
    uri = f"{artifacts.artifact_uri(control, row)}{_folder_name(row, record.checkpoint_id)}/"
    with (
        artifacts.received(control, source, uri, place.key) as files,
        control.database.transaction() as connection,
    ):
        row = _running(connection, lease)
        now = control.database.now(connection)
        replaced = files.write(connection, lease.project)
        artifacts.check_kept(kept)
        _insert_checkpoint(connection, row, record, kept, uri, known, now)
        listed = [registration.checkpoint_as_wire(row, one) for one in _ordered(_checkpoints(connection, lease))]
        amend(connection, row, now, {"tunedModel": {"checkpoints": listed}})
        events.record(
            connection, lease.project, lease.job, lease.epoch, now, "checkpoint", _about(record), _facts(record)
        )
    for content in replaced:
        control.buckets.collect(content)


def settle(control: Control, lease: Lease, result: RunResult, place: Workplace) -> None:
    """Publish what is left, register the model, end the job as SUCCEEDED. Raises Fenced."""
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
    resource = orjson.loads(row.resource)
    records = result.checkpoints
    if resource["supervisedTuningSpec"].get("exportLastCheckpointOnly"):
        records = records[-1:]
    for record in records:
        if (place.run_folder / record.folder).is_dir():
            publish_checkpoint(control, lease, record, place)
    with control.database.reading() as connection:
        made = _ordered(_checkpoints(connection, lease))
    if not made:
        raise FailedPrecondition("The run ended without a checkpoint.")
    uri = artifacts.artifact_uri(control, row)
    final = {}
    if resource.get("outputUri"):
        final[uri + FINAL_FOLDER] = Path(sealing.adapter(control, made[-1].adapter_folder))
    if result.has_report:
        evaluations.publish_report(control, lease, f"{uri.rpartition('checkpoints/')[0]}evaluation", place)
    with ExitStack() as stack:
        received = [
            stack.enter_context(artifacts.received(control, folder, target, place.key))
            for target, folder in final.items()
        ]
        connection = stack.enter_context(control.database.transaction())
        row = _running(connection, lease)
        now = control.database.now(connection)
        for files in received:
            files.write(connection, lease.project)
        made = _ordered(_checkpoints(connection, lease))
        default = evaluations.default_checkpoint(row, made, result.best_checkpoint_id)
        name = registration.register(connection, row, made, default, uri, now)
        advance(connection, row, SUCCEEDED, now, registration.ending(row, result, name, made, default))
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
    kept: artifacts.Kept,
    uri: str,
    known: AnyRow | None,
    now: float,
) -> None:
    """The checkpoint's row in place of the one that an earlier attempt left, and its endpoint."""
    endpoint_id = known.endpoint if known is not None else new_id()
    ours = {"project": row.project, "job": row.id, "checkpoint_id": record.checkpoint_id}
    connection.execute(checkpoint.delete().filter_by(**ours))
    connection.execute(
        checkpoint.insert().values(
            **ours,
            epoch=record.epoch,
            step=record.step,
            endpoint=endpoint_id,
            artifact_uri=uri,
            adapter_folder=str(kept.folder),
            adapter_digest=kept.digest,
            resource=_origin(Plan(**orjson.loads(row.run)), record),
            create_time=now,
        )
    )
    if known is None:
        _insert_endpoint(connection, row, endpoint_id, record, now)


def _folder_name(row: AnyRow, checkpoint_id: str) -> str:
    return f"checkpoint-{checkpoint_id}" if "outputUri" in orjson.loads(row.resource) else checkpoint_id


def _origin(plan: Plan, record: CheckpointRecord) -> str:
    """What answers need to know of a checkpoint without its job or model."""
    evaluation = record.evaluation.model_dump() if record.evaluation else None
    certificate = record.certificate.model_dump() if record.certificate else None
    origin = {
        "weights": plan.weights, "baseModel": plan.base_model, "rank": plan.rank, "evaluation": evaluation,
        "certificate": certificate, "kmsKey": plan.kms_key,
    }  # fmt: skip
    return orjson.dumps(origin).decode()


def _checkpoints(connection: Connection, lease: Lease) -> dict[str, AnyRow]:
    query = sa.select(checkpoint).where(checkpoint.c.project == lease.project, checkpoint.c.job == lease.job)
    return {row.checkpoint_id: row for row in connection.execute(query)}


def _ordered(found: dict[str, AnyRow]) -> list[AnyRow]:
    return sorted(found.values(), key=lambda row: row.step)


def _insert_endpoint(
    connection: Connection, row: AnyRow, endpoint_id: str, record: CheckpointRecord, now: float
) -> None:
    name = ResourceName(row.project, row.location, "endpoints", endpoint_id)
    resource = {
        "name": str(name),
        "displayName": row.display_name,
        "labels": orjson.loads(row.resource).get("labels", {}),
        "createTime": timestamp(now),
        "updateTime": timestamp(now),
        **registration.encryption(row),
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


def _about(record: CheckpointRecord) -> str:
    measured = f", validation loss {record.evaluation.loss:.3f}" if record.evaluation else ""
    return f"Checkpoint {record.checkpoint_id} was published: epoch {record.epoch}, step {record.step}{measured}."


def _facts(record: CheckpointRecord) -> dict[str, Any]:
    return {"checkpointId": record.checkpoint_id, "epoch": record.epoch, "step": record.step}
