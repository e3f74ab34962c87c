"""models:export: what is asked, checked and queued. `export_work` does the work.

The queue row belongs to an operation and goes when the operation is done; what a model's name meant is kept with it.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa

from sarto.control import iam, operations, resolution
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.errors import FieldViolation, InvalidArgument, NotFound
from sarto.names import ResourceName, parse_gs_uri
from sarto.schema.models import ExportModelRequest
from sarto.storage.tables import checkpoint, model_export, tuning_job

FORMATS = ("adapter", "merged-safetensors", "gguf-f16", "gguf-q8-0")
CONFIG = "output_config"


def export(control: Control, principal: Principal, name: ResourceName, asked: ExportModelRequest) -> dict[str, Any]:
    """The operation, not done. Raises InvalidArgument with every fault, NotFound for model, checkpoint or bucket."""
    project = iam.require(control.database, principal, "aiplatform.models.export", name.project).number
    chosen, uri = _read(asked)
    bucket, prefix = parse_gs_uri(uri, f"{CONFIG}.artifact_destination.output_uri_prefix")
    iam.require(control.database, principal, "storage.objects.create", name.project, f"buckets/{bucket}")
    control.buckets.bucket(bucket, project)
    deployed = resolution.tuned(control, principal, str(name), asked.checkpoint_id)
    control.base(deployed.weights)
    number = ResourceName(project, deployed.location, "models", name.id, str(deployed.version))
    with control.database.transaction() as connection:
        row = connection.execute(
            sa.select(checkpoint.c.job, checkpoint.c.resource, checkpoint.c.step).where(
                checkpoint.c.project == project, checkpoint.c.adapter_folder == deployed.adapter_folder,
                checkpoint.c.checkpoint_id == deployed.checkpoint_id,
            )
        ).first()  # fmt: skip
        if row is None:
            raise NotFound(f"Checkpoint {deployed.checkpoint_id} of {name} was deleted.")
        job = connection.execute(
            sa.select(tuning_job.c.resource).where(tuning_job.c.project == project, tuning_job.c.id == row.job)
        ).scalar()
        now = control.database.now(connection)
        folder = f"{prefix.rstrip('/')}/model-export/{name.id}-{deployed.version}/{chosen}".lstrip("/")
        output = {"artifactOutputUri": f"gs://{bucket}/{folder}"}
        made = operations.begin(
            connection, number.parent, f"models/{name.id}", "ExportModelOperationMetadata", {"outputInfo": output}, now
        )
        run = {
            "model": str(number), "title": deployed.display_name, "format": chosen, "weights": deployed.weights,
            "adapterFolder": deployed.adapter_folder, "bucket": bucket, "folder": folder, "job": row.job,
            "kmsKey": deployed.kms_key,
            "baseModel": deployed.base_model, "checkpoint": deployed.checkpoint_id, "step": row.step,
            "rank": deployed.rank, "origin": orjson.loads(row.resource), "jobResource": orjson.loads(job or "{}"),
        }  # fmt: skip
        operations.enqueue(connection, model_export, made, run, now)
    return made


def _read(asked: ExportModelRequest) -> tuple[str, str]:
    """(format, gs:// prefix). Raises InvalidArgument with every fault."""
    config = asked.output_config
    faults = []
    chosen = config.export_format_id if config else ""
    destination = config.artifact_destination.output_uri_prefix if config and config.artifact_destination else ""
    if chosen not in FORMATS:
        faults.append(FieldViolation(f"{CONFIG}.export_format_id", f'"{chosen}" is not one of {", ".join(FORMATS)}.'))
    if not destination:
        faults.append(
            FieldViolation(f"{CONFIG}.artifact_destination.output_uri_prefix", "Say where: gs://BUCKET/PATH.")
        )
    if config and config.image_destination is not None:
        faults.append(FieldViolation(f"{CONFIG}.image_destination", "There is no image to export; leave it out."))
    if faults:
        raise InvalidArgument.of(faults)
    return chosen, destination
