"""Registers the result of a finished job: a model or its next version, and the final fields of the job.

Writes rows and resources only, in the caller's transaction.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.contract.tuning_run import CheckpointRecord, ChosenParameters, RunResult
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow
from sarto.control.jobs.job_row import job_of, plan_of
from sarto.control.jobs.plan import JobPlan
from sarto.control.models.checkpoint_origin import CheckpointOrigin
from sarto.control.models.registry import TUNING_MODE
from sarto.control.runs.progress import data_stats, effective
from sarto.names import ResourceName, new_id
from sarto.schema.tuning_jobs import AdapterSize, SpecRow, TuningJob, TuningJobMetadata, TuningMode, TuningSpec
from sarto.storage.database.database import report
from sarto.storage.database.tables import endpoint, model, model_version

TUNE_TYPE_LABEL = "tune-type"
BASE_MODEL_LABEL = "google-vertex-llm-tuning-base-model-id"


def register(
    connection: Connection, row: AnyRow, checkpoints: list[AnyRow], default: AnyRow, uri: str, now: float
) -> ResourceName:
    """Register a new model, or the next version of the tuned one; returns its versioned name."""
    plan = plan_of(row)
    model_id, version = plan.model, 0
    if model_id:
        model_row = connection.execute(
            sa.select(model).where(model.c.project == row.project, model.c.id == model_id).with_for_update()
        ).first()
        numbers = sa.select(sa.func.max(model_version.c.version)).where(
            model_version.c.project == row.project, model_version.c.model == model_id
        )
        version = connection.execute(numbers).scalar() or 0
        model_id = model_id if model_row is not None else ""  # it was deleted meanwhile: begin a new one
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
            resource=orjson.dumps(_model(row, plan, name, version, checkpoints, uri, now)).decode(),
            create_time=now,
        )
    )
    connection.execute(
        endpoint.update()
        .where(endpoint.c.project == row.project, endpoint.c.job == row.id)
        .values(model=model_id, version=version)
    )
    registered = ResourceName(row.project, row.location, "models", model_id, str(version))
    report(connection, "aiplatform.models.upload", row.project, str(registered))
    return registered


def _model(
    row: AnyRow, plan: JobPlan, name: ResourceName, version: int, checkpoints: list[AnyRow], uri: str, now: float
) -> dict[str, Any]:
    """The version in the registry's form, without its mutable fields: default checkpoint, default alias, endpoints."""
    job = job_of(row)
    labels = {**job.labels, TUNE_TYPE_LABEL: _method(job).tune_type, BASE_MODEL_LABEL: plan.base_model}
    return {
        "name": str(name),
        "versionId": str(version),
        "displayName": row.display_name,
        "description": job.description,
        "labels": labels,
        "artifactUri": uri,
        "checkpoints": [
            {"checkpointId": one.checkpoint_id, "epoch": str(one.epoch), "step": str(one.step)} for one in checkpoints
        ],
        "modelSourceInfo": {"sourceType": "GENIE"},
        "metadata": {
            "tuningJob": job.name,
            "baseModel": plan.base_model,
            "weights": plan.weights,
            **({TUNING_MODE: str(TuningMode.TUNING_MODE_FULL)} if plan.is_full else {}),
        },
        "supportedDeploymentResourcesTypes": ["SHARED_RESOURCES"],
        "createTime": timestamp(now),
        "updateTime": timestamp(now),
        "versionCreateTime": timestamp(now),
        "versionUpdateTime": timestamp(now),
        **encryption(job),
    }


def keeps_last_only(job: TuningJob) -> bool:
    """Whether the job's user wants only the last checkpoint."""
    return bool(job.tuning_spec and job.tuning_spec.export_last_checkpoint_only)


def _method(job: TuningJob) -> SpecRow:
    row = job.spec_row
    assert row is not None, "a job has a spec"
    return row


def encryption(job: TuningJob) -> dict[str, Any]:
    """The job's encryptionSpec, also for its model and endpoints."""
    return {"encryptionSpec": job.encryption_spec.to_json()} if job.encryption_spec else {}


def ending(
    row: AnyRow, result: RunResult, name: ResourceName, checkpoints: list[AnyRow], default: AnyRow
) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "tunedModel": {
            "model": str(name),
            "endpoint": str(ResourceName(row.project, row.location, "endpoints", default.endpoint)),
            "checkpoints": [checkpoint_as_wire(row, one) for one in checkpoints],
        }
    }
    job = job_of(row)
    method = _method(job)
    if result.data is not None:
        changes["tuningDataStats"] = {method.data_stats_key: data_stats(result.data, method)}
    metadata = job.tuning_job_metadata or TuningJobMetadata()
    if metadata.throughput is not None:  # loss and speed stay, as they were last
        lasting = {name: value for name, value in metadata.throughput.items() if name != "secondsLeft"}
        metadata = metadata.model_copy(update={"throughput": lasting})
    if (chosen := result.parameters) is not None:
        counts = {"total_step_count": chosen.total_steps, "completed_step_count": chosen.total_steps}
        if chosen.samples_per_prompt is None:
            counts["completed_epoch_count"] = chosen.epoch_count
        progress = counts | {"effective_parameters": effective(chosen)}
        metadata = metadata.model_copy(update=progress)
        assert job.tuning_spec is not None
        changes[method.key] = _resolved(job.tuning_spec, plan_of(row), chosen).to_json()
    return {**changes, "tuningJobMetadata": metadata.to_json() or None}


SAMPLING = (
    "batch_size", "samples_per_prompt", "max_output_tokens", "evaluate_interval", "checkpoint_interval",
)  # fmt: skip


def _resolved(spec: TuningSpec, plan: JobPlan, chosen: ChosenParameters) -> TuningSpec:
    """The job's spec with the chosen values in unset fields. Written only at the end, since a later attempt needs the
    original."""
    values: dict[str, Any] = {"epoch_count": chosen.epoch_count}
    if chosen.samples_per_prompt is not None:
        values = {} if spec.parameters.epoch_count else {"step_count": chosen.total_steps}
        values |= {name: getattr(chosen, name) for name in SAMPLING}
    if not plan.is_full:
        values["adapter_size"] = AdapterSize.of_rank(chosen.rank)
    if spec.parameters.learning_rate is None:
        values["learning_rate_multiplier"] = 1.0
    if plan.kind == "open":
        values["batch_size"] = chosen.batch_size
    if chosen.beta is not None:
        values["beta"] = chosen.beta
    parameters, unset = spec.parameters, (None, AdapterSize.ADAPTER_SIZE_UNSPECIFIED)
    of_method = type(parameters).model_fields  # a method may have no batch size
    added = {name: values[name] for name in values if name in of_method and getattr(parameters, name) in unset}
    return spec.model_copy(update={"hyper_parameters": parameters.model_copy(update=added)})


def checkpoint_as_wire(row: AnyRow, checkpoint: AnyRow) -> dict[str, Any]:
    return {
        "checkpointId": checkpoint.checkpoint_id,
        "epoch": str(checkpoint.epoch),
        "step": str(checkpoint.step),
        "endpoint": str(ResourceName(row.project, row.location, "endpoints", checkpoint.endpoint)),
    }


def origin(row: AnyRow, record: CheckpointRecord) -> str:
    """The origin of a checkpoint of this job, for its row."""
    plan = plan_of(row)
    return CheckpointOrigin(
        weights=plan.weights,
        base_model=plan.base_model,
        rank=plan.rank,
        evaluation=record.evaluation.model_dump() if record.evaluation else None,
        certificate=record.certificate.model_dump() if record.certificate else None,
        kms_key=plan.kms_key,
        is_full=plan.is_full,
    ).to_json()
