"""What a finished job becomes in the registry: a model or the next version of one, and the job's own last words.

Rows and resources only, in a transaction of the caller's. Used by `publishing`.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.context import AnyRow
from sarto.control.events import timestamp
from sarto.control.progress import data_stats, effective
from sarto.control.validation import Plan
from sarto.names import ResourceName, new_id
from sarto.schema.runs import ChosenParameters, RunResult
from sarto.schema.tuning_jobs import AdapterSize
from sarto.storage.tables import endpoint, model, model_version

TUNE_TYPE = "sft"
TUNE_TYPE_LABEL = "tune-type"
BASE_MODEL_LABEL = "google-vertex-llm-tuning-base-model-id"


def register(
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
        **encryption(row),
    }


def encryption(row: AnyRow) -> dict[str, Any]:
    """The job's encryptionSpec, as what it makes shows it too."""
    spec = orjson.loads(row.resource).get("encryptionSpec")
    return {"encryptionSpec": spec} if spec else {}


def ending(row: AnyRow, result: RunResult, name: ResourceName, made: list[AnyRow], default: AnyRow) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "tunedModel": {
            "model": str(name),
            "endpoint": str(ResourceName(row.project, row.location, "endpoints", default.endpoint)),
            "checkpoints": [checkpoint_as_wire(row, one) for one in made],
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


def checkpoint_as_wire(row: AnyRow, made: AnyRow) -> dict[str, Any]:
    return {
        "checkpointId": made.checkpoint_id,
        "epoch": str(made.epoch),
        "step": str(made.step),
        "endpoint": str(ResourceName(row.project, row.location, "endpoints", made.endpoint)),
    }
