"""What a run made, made real: adapter files kept and copied into buckets, checkpoint endpoints, model versions.

Bytes first, under no name; then their names in the bucket and the rows that point at them, in one transaction that
holds the lease: a supervisor that was taken for dead can replace nothing. Every step may be repeated.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto import failpoints
from sarto.control import evaluations, events, leases, projects
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.control.leases import Lease
from sarto.control.progress import data_stats, effective
from sarto.control.tuning_jobs import RUNNING, SUCCEEDED, Fenced, advance, amend
from sarto.control.validation import Plan
from sarto.errors import AlreadyExists, FailedPrecondition, NotFound
from sarto.failpoints import around
from sarto.names import ResourceName, new_id, parse_gs_uri
from sarto.schema.runs import CheckpointRecord, ChosenParameters, RunResult
from sarto.schema.tuning_jobs import AdapterSize
from sarto.storage import together
from sarto.storage.buckets import Buckets
from sarto.storage.content import Content
from sarto.storage.tables import checkpoint, endpoint, model, model_version

TUNE_TYPE = "sft"
TUNE_TYPE_LABEL = "tune-type"
BASE_MODEL_LABEL = "google-vertex-llm-tuning-base-model-id"
FINAL_FOLDER = "final/"
"""Under the documented name, the last checkpoint once more."""
OPEN_FOLDER = "postprocess/node-0/checkpoints"


@dataclass(frozen=True)
class Kept:
    """An adapter on this machine, named by its content."""

    digest: str
    folder: Path


def publish_checkpoint(control: Control, lease: Lease, record: CheckpointRecord, run_folder: Path) -> None:
    """Give a checkpoint its files, its row and its endpoint, while training goes on. Raises Fenced."""
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
        known = _checkpoints(connection, lease).get(record.checkpoint_id)
    kept = _keep(control, run_folder / record.folder, record.files)
    if known is not None and known.adapter_digest == kept.digest:
        return
    uri = f"{artifact_uri(control, row)}{_folder_name(row, record.checkpoint_id)}/"
    with _received(control, kept.folder, uri) as files, control.database.transaction() as connection:
        row = _running(connection, lease)
        now = control.database.now(connection)
        replaced = files.write(connection, lease.project)
        _insert_checkpoint(connection, row, record, kept, uri, known, now)
        listed = [_as_wire(row, one) for one in _ordered(_checkpoints(connection, lease))]
        amend(connection, row, now, {"tunedModel": {"checkpoints": listed}})
        events.record(
            connection, lease.project, lease.job, lease.epoch, now, "checkpoint", _about(record), _facts(record)
        )
    for content in replaced:
        control.buckets.collect(content)


def settle(control: Control, lease: Lease, result: RunResult, run_folder: Path) -> None:
    """Publish what is left, register the model, end the job as SUCCEEDED. Raises Fenced."""
    with control.database.reading() as connection:
        row = leases.hold(connection, lease)
    resource = orjson.loads(row.resource)
    records = result.checkpoints
    if resource["supervisedTuningSpec"].get("exportLastCheckpointOnly"):
        records = records[-1:]
    for record in records:
        if (run_folder / record.folder).is_dir():
            publish_checkpoint(control, lease, record, run_folder)
    with control.database.reading() as connection:
        made = _ordered(_checkpoints(connection, lease))
    if not made:
        raise FailedPrecondition("The run ended without a checkpoint.")
    uri = artifact_uri(control, row)
    final = {uri + FINAL_FOLDER: Path(made[-1].adapter_folder)} if resource.get("outputUri") else {}
    if result.has_report:
        evaluations.publish_report(control, lease, f"{uri.rpartition('checkpoints/')[0]}evaluation")
    with ExitStack() as stack:
        received = [stack.enter_context(_received(control, folder, place)) for place, folder in final.items()]
        connection = stack.enter_context(control.database.transaction())
        row = _running(connection, lease)
        now = control.database.now(connection)
        for files in received:
            files.write(connection, lease.project)
        made = _ordered(_checkpoints(connection, lease))
        default = evaluations.default_checkpoint(row, made, result.best_checkpoint_id)
        name = _register(connection, row, made, default, uri, now)
        advance(connection, row, SUCCEEDED, now, _ending(row, result, name, made, default))
        best = (
            f" The best by validation is {result.best_checkpoint_id}: {result.best_reason}"
            if result.best_reason
            else ""
        )
        events.record(
            connection, lease.project, lease.job, lease.epoch, now, "succeeded", f"The model is {name}.{best}"
        )


def artifact_uri(control: Control, row: AnyRow) -> str:
    """The gs:// folder of all of a job's checkpoints, with `/` at its end; its bucket exists after this."""
    output = orjson.loads(row.resource).get("outputUri")
    if output:
        parse_gs_uri(output, "tuning_job.output_uri")
        return f"{output.rstrip('/')}/{OPEN_FOLDER}/"
    project = projects.find(control.database, row.project)
    assert project is not None
    bucket = f"sarto-{project.id}-models"
    try:
        control.buckets.bucket(bucket, row.project)
    except NotFound:
        try:
            control.buckets.create_bucket(row.project, bucket)
        except AlreadyExists:
            raise FailedPrecondition(f"The bucket gs://{bucket} for tuned models belongs to another project.") from None
    return f"gs://{bucket}/tuningJobs/{row.id}/checkpoints/"


def _running(connection: Connection, lease: Lease) -> AnyRow:
    """The held row of a job that is not being cancelled. Raises Fenced."""
    row = leases.hold(connection, lease)
    if row.state != str(RUNNING):
        raise Fenced(f"job {lease.job} is {row.state}")
    return row


def _keep(control: Control, source: Path, files: dict[str, str]) -> Kept:
    """The adapter's files under a name made of their digests, so that equal adapters are kept once."""
    digest = hashlib.sha256("".join(f"{name}:{sha}\n" for name, sha in sorted(files.items())).encode()).hexdigest()
    folder = control.adapter_folder(digest)
    if not folder.is_dir():
        part = folder.with_name(f".{digest}.{new_id()}")
        part.mkdir(parents=True)
        for name in files:
            _link(source / name, part / name)
        try:
            with around("rename"):
                part.rename(folder)
        except OSError:  # another supervisor kept the same adapter meanwhile
            shutil.rmtree(part)
    return Kept(digest, folder)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class _Files:
    """Copies of a folder's files that are on the disk and have no name in their bucket yet."""

    buckets: Buckets
    bucket: str
    received: dict[str, Content]

    def write(self, connection: Connection, project: str) -> list[str]:
        """Name them, under the lease that the transaction holds; gives the content they replaced."""
        return together.write(self.buckets, connection, self.bucket, self.received, project)


@contextmanager
def _received(control: Control, folder: Path, uri: str) -> Iterator[_Files]:
    bucket, prefix = parse_gs_uri(uri, "tuning_job.output_uri")
    files = {prefix + path.name: path for path in sorted(folder.iterdir())}
    failpoints.reached("receive before")
    with together.receive(control.buckets, files) as received:
        failpoints.reached("receive after")
        yield _Files(control.buckets, bucket, received)


def _insert_checkpoint(
    connection: Connection,
    row: AnyRow,
    record: CheckpointRecord,
    kept: Kept,
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
        "certificate": certificate,
    }  # fmt: skip
    return orjson.dumps(origin).decode()


def _checkpoints(connection: Connection, lease: Lease) -> dict[str, AnyRow]:
    query = sa.select(checkpoint).where(checkpoint.c.project == lease.project, checkpoint.c.job == lease.job)
    return {row.checkpoint_id: row for row in connection.execute(query)}


def _ordered(found: dict[str, AnyRow]) -> list[AnyRow]:
    return sorted(found.values(), key=lambda row: row.step)


def _as_wire(row: AnyRow, made: AnyRow) -> dict[str, Any]:
    return {
        "checkpointId": made.checkpoint_id,
        "epoch": str(made.epoch),
        "step": str(made.step),
        "endpoint": str(ResourceName(row.project, row.location, "endpoints", made.endpoint)),
    }


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


def _register(
    connection: Connection, row: AnyRow, made: list[AnyRow], default: AnyRow, uri: str, now: float
) -> ResourceName:
    """A new model, or the next version of the one that was tuned further; gives its versioned name."""
    plan = Plan(**orjson.loads(row.run))
    model_id, version = plan.model, 0
    if model_id:
        found = connection.execute(
            sa.select(model).where(model.c.project == row.project, model.c.id == model_id).with_for_update()
        ).first()
        numbers = sa.select(sa.func.max(model_version.c.version)).where(
            model_version.c.project == row.project, model_version.c.model == model_id
        )
        version = connection.execute(numbers).scalar() or 0
        model_id = model_id if found is not None else ""  # it was deleted meanwhile: begin a new one
    if not model_id:
        model_id, version = new_id(), 0
        connection.execute(
            model.insert().values(
                project=row.project, id=model_id, location=row.location, default_version=1, create_time=now
            )
        )
    version += 1
    connection.execute(
        model.update().where(model.c.project == row.project, model.c.id == model_id).values(default_version=version)
    )
    name = ResourceName(row.project, row.location, "models", model_id)
    connection.execute(
        model_version.insert().values(
            project=row.project,
            model=model_id,
            version=version,
            job=row.id,
            base=plan.weights,
            default_checkpoint=default.checkpoint_id,
            resource=orjson.dumps(_model(row, plan, name, version, made, uri, now)).decode(),
            create_time=now,
        )
    )
    connection.execute(
        endpoint.update()
        .where(endpoint.c.project == row.project, endpoint.c.job == row.id)
        .values(model=model_id, version=version)
    )
    return ResourceName(row.project, row.location, "models", model_id, str(version))


def _model(
    row: AnyRow, plan: Plan, name: ResourceName, version: int, made: list[AnyRow], uri: str, now: float
) -> dict[str, Any]:
    """The version as the registry shows it, but for what changes: default checkpoint, default alias, endpoints."""
    job = orjson.loads(row.resource)
    labels = {**job.get("labels", {}), TUNE_TYPE_LABEL: TUNE_TYPE, BASE_MODEL_LABEL: plan.base_model}
    return {
        "name": str(name),
        "versionId": str(version),
        "displayName": row.display_name,
        "description": job.get("description", ""),
        "labels": labels,
        "artifactUri": uri,
        "checkpoints": [
            {"checkpointId": one.checkpoint_id, "epoch": str(one.epoch), "step": str(one.step)} for one in made
        ],
        "modelSourceInfo": {"sourceType": "GENIE"},
        "metadata": {"tuningJob": job["name"], "baseModel": plan.base_model, "weights": plan.weights},
        "supportedDeploymentResourcesTypes": ["SHARED_RESOURCES"],
        "createTime": timestamp(now),
        "updateTime": timestamp(now),
        "versionCreateTime": timestamp(now),
        "versionUpdateTime": timestamp(now),
    }


def _ending(row: AnyRow, result: RunResult, name: ResourceName, made: list[AnyRow], default: AnyRow) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "tunedModel": {
            "model": str(name),
            "endpoint": str(ResourceName(row.project, row.location, "endpoints", default.endpoint)),
            "checkpoints": [_as_wire(row, one) for one in made],
        }
    }
    if result.data is not None:
        changes["tuningDataStats"] = {"supervisedTuningDataStats": data_stats(result.data)}
    resource = orjson.loads(row.resource)
    metadata = resource.get("tuningJobMetadata", {})
    metadata.get("throughput", {}).pop("secondsLeft", None)  # loss and speed stay, as they were last
    if result.parameters is not None:
        metadata["effectiveParameters"] = effective(result.parameters)
        metadata["totalStepCount"] = metadata["completedStepCount"] = str(result.parameters.total_steps)
        metadata["completedEpochCount"] = str(result.parameters.epoch_count)
        plan = Plan(**orjson.loads(row.run))
        changes["supervisedTuningSpec"] = _resolved(resource["supervisedTuningSpec"], plan, result.parameters)
    return {**changes, "tuningJobMetadata": metadata or None}


def _resolved(spec: dict[str, Any], plan: Plan, chosen: ChosenParameters) -> dict[str, Any]:
    """The job's spec with the values that were chosen where its user gave none. Written at the end only: until then a
    later attempt has to see what was given."""
    given = spec.get("hyperParameters", {})
    found: dict[str, Any] = {
        "epochCount": str(chosen.epoch_count),
        "adapterSize": str(AdapterSize.of_rank(chosen.rank)),
    }
    if "learningRate" not in given:
        found["learningRateMultiplier"] = 1.0
    if plan.kind == "open":
        found["batchSize"] = str(chosen.batch_size)
    named = {name: value for name, value in given.items() if value != str(AdapterSize.ADAPTER_SIZE_UNSPECIFIED)}
    return {**spec, "hyperParameters": {**found, **named}}


def _about(record: CheckpointRecord) -> str:
    measured = f", validation loss {record.evaluation.loss:.3f}" if record.evaluation else ""
    return f"Checkpoint {record.checkpoint_id} was published: epoch {record.epoch}, step {record.step}{measured}."


def _facts(record: CheckpointRecord) -> dict[str, Any]:
    return {"checkpointId": record.checkpoint_id, "epoch": record.epoch, "step": record.step}
