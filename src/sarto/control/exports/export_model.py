"""models:export: checks the request and queues it. `export_work` does the work.

The model's name is resolved at the call and stored. The queue row is deleted when the operation is done.
"""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa

from sarto.contract.export_run import FORMATS, WHOLE_FORMATS
from sarto.control import operations
from sarto.control.access import authorization, quoting, run_identity
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.models import resolution
from sarto.control.models.checkpoint_origin import CheckpointOrigin
from sarto.control.operations import OperationRun
from sarto.errors import FieldViolation, InvalidArgument, NotFound
from sarto.names import ResourceName, parse_gs_uri
from sarto.schema.models import ExportModelRequest
from sarto.schema.tuning_jobs import TuningJob
from sarto.storage.database.tables import checkpoint, model_export, model_version, tuning_job

CONFIG = "output_config"
METADATA = "ExportModelOperationMetadata"


class ExportRun(OperationRun):
    model: str
    """The versioned name of the model."""
    title: str
    format: str
    weights: str
    base_model: str
    adapter_folder: str
    rank: int
    checkpoint: str
    step: int
    origin: CheckpointOrigin
    """Facts of the checkpoint."""
    job: str
    """Id of the tuning job, whose folder has the held-out rows."""
    job_resource: TuningJob
    """The job at the time of the call; empty if it was deleted before."""
    bucket: str
    folder: str
    """Output folder, below the bucket."""


def export(control: Control, principal: Principal, name: ResourceName, request: ExportModelRequest) -> dict[str, Any]:
    """Start the operation. Raises InvalidArgument with every fault, NotFound for model, checkpoint or bucket."""
    project = authorization.require(control.database, principal, "aiplatform.models.export", name.project).number
    chosen, uri = _read(request)
    bucket, prefix = parse_gs_uri(uri, f"{CONFIG}.artifact_destination.output_uri_prefix")
    authorization.require(control.database, principal, "storage.objects.create", name.project, f"buckets/{bucket}")
    control.buckets.bucket(bucket, project)
    run_identity.check_both(control, principal, project, [(uri, run_identity.WRITE)])
    deployed = resolution.tuned(control, principal, str(name), request.checkpoint_id)
    if not deployed.adapter_folder and chosen not in WHOLE_FORMATS:
        listed = ", ".join(WHOLE_FORMATS)
        raise InvalidArgument.field(
            f"{CONFIG}.export_format_id", f'{name} was tuned whole and has no "{chosen}"; use one of {listed}.'
        )
    control.base(deployed.weights)
    number = ResourceName(project, deployed.location, "models", name.id, str(deployed.version))
    folder = f"{prefix.rstrip('/')}/model-export/{name.id}-{deployed.version}/{chosen}".lstrip("/")
    output = {"artifactOutputUri": f"gs://{bucket}/{folder}"}
    may_replace = run_identity.may_replace(control, project, output["artifactOutputUri"], "", principal)
    with control.database.transaction() as connection:
        row = connection.execute(
            sa.select(checkpoint.c.job, checkpoint.c.resource, checkpoint.c.step)
            .join(model_version, model_version.c.job == checkpoint.c.job)
            .where(
                model_version.c.project == project, checkpoint.c.project == project,
                # by its version: jobs with equal adapters share a folder
                model_version.c.model == deployed.model_id, model_version.c.version == deployed.version,
                checkpoint.c.checkpoint_id == deployed.checkpoint_id,
            )
        ).first()  # fmt: skip
        if row is None:
            raise NotFound(f"Checkpoint {deployed.checkpoint_id} of {name} was deleted.")
        job = connection.execute(
            sa.select(tuning_job.c.resource).where(tuning_job.c.project == project, tuning_job.c.id == row.job)
        ).scalar()
        job_resource = orjson.loads(job or "{}")
        now = control.database.now(connection)
        facts = {"outputInfo": output, **quoting.about(job_resource)}
        operation = operations.begin(connection, number.parent, f"models/{name.id}", METADATA, facts, now)
        run = ExportRun(
            model=str(number), title=deployed.display_name, format=chosen, weights=deployed.weights,
            base_model=deployed.base_model, adapter_folder=deployed.adapter_folder, rank=deployed.rank,
            checkpoint=deployed.checkpoint_id, step=row.step, origin=CheckpointOrigin.of(row), job=row.job,
            job_resource=TuningJob.read(job_resource), bucket=bucket, folder=folder, kms_key=deployed.kms_key,
            may_replace=may_replace,
        )  # fmt: skip
        operations.enqueue(connection, model_export, operation, run, principal, now)
    return operation


def _read(request: ExportModelRequest) -> tuple[str, str]:
    """(format, gs:// prefix). Raises InvalidArgument with every fault."""
    config = request.output_config
    faults = []
    chosen = config.export_format_id if config else ""
    destination = config.artifact_destination.output_uri_prefix if config and config.artifact_destination else ""
    if chosen not in FORMATS:
        faults.append(FieldViolation(f"{CONFIG}.export_format_id", f'"{chosen}" is not one of {", ".join(FORMATS)}.'))
    if not destination:
        faults.append(
            FieldViolation(
                f"{CONFIG}.artifact_destination.output_uri_prefix", "Name the output folder: gs://BUCKET/PATH."
            )
        )
    if config and config.image_destination is not None:
        faults.append(FieldViolation(f"{CONFIG}.image_destination", "There is no image to export; leave it out."))
    if faults:
        raise InvalidArgument.of(faults)
    return chosen, destination
