"""`rebaseTunedModel`: a new job with the data and parameters of an earlier one, on another base model."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sarto.control import operations
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs import tuning_jobs
from sarto.control.models.resolution import find_version
from sarto.errors import FailedPrecondition, InvalidArgument, Unimplemented
from sarto.names import LocationName, ResourceName, parse_resource
from sarto.schema.distillation import DistillationSpec
from sarto.schema.tuning_jobs import RebaseTunedModelRequest, TuningJob, TuningSpec
from sarto.storage.database.tables import tuning_job

NEEDED = "aiplatform.tuningJobs.create"


def rebase(
    control: Control, principal: Principal, parent: LocationName, request: RebaseTunedModelRequest
) -> dict[str, Any]:
    """Create the new job; returns a finished operation with that job. Raises as `tuning_jobs.create` does."""
    project = authorization.require(control.database, principal, NEEDED, parent.project).number
    _refuse_unbuilt(request)
    source = _source(control, principal, request)
    overrides = request.tuning_job or TuningJob()
    job = TuningJob(
        base_model=overrides.base_model or _base(source),
        custom_base_model=overrides.custom_base_model or ("" if overrides.base_model else source.custom_base_model),
        tuned_model_display_name=overrides.tuned_model_display_name or source.tuned_model_display_name,
        description=overrides.description or source.description,
        labels={**{k: v for k, v in source.labels.items() if not k.startswith("sarto-")}, **overrides.labels},
        output_uri=_output(control, request, overrides, source),
        encryption_spec=overrides.encryption_spec or source.encryption_spec,
    ).with_spec(_spec(control, project, overrides, source))
    created = tuning_jobs.create(control, principal, parent, job)
    with control.database.transaction() as connection:
        return operations.done(
            connection,
            LocationName(project, parent.location),
            f"tuningJobs/{created['name'].rpartition('/')[2]}",
            "RebaseTunedModelOperationMetadata",
            {"@type": f"{operations.METADATA}TuningJob", **created},
            control.database.now(connection),
        )


def _refuse_unbuilt(request: RebaseTunedModelRequest) -> None:
    if request.tuned_model_ref is not None and request.tuned_model_ref.pipeline_job:
        raise Unimplemented("tuned_model_ref.pipeline_job: pipeline jobs are not supported; name a tuned model or job.")
    if request.deploy_to_same_endpoint:
        raise Unimplemented("deploy_to_same_endpoint: the new model gets endpoints of its own; leave the field out.")


def _source(control: Control, principal: Principal, request: RebaseTunedModelRequest) -> TuningJob:
    """The job of the referenced model. Raises NotFound, FailedPrecondition when it was deleted."""
    reference = request.tuned_model_ref
    if reference is None or not (reference.tuned_model or reference.tuning_job):
        raise InvalidArgument.field("tuned_model_ref", "Required field is not set; name a tuned model or tuning job.")
    if reference.tuning_job:
        name = parse_resource(reference.tuning_job, "tuningJobs")
        return TuningJob.read(tuning_jobs.get(control, principal, name))
    name = parse_resource(reference.tuned_model, "models", versioned=True)
    return TuningJob.read(_job_of_model(control, principal, name))


def _job_of_model(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    project = authorization.require(control.database, principal, "aiplatform.models.get", name.project).number
    with control.database.reading() as connection:
        job = find_version(connection, project, name).job
        query = sa.select(tuning_job.c.id).where(tuning_job.c.project == project, tuning_job.c.id == job)
        if connection.execute(query).first() is None:
            raise FailedPrecondition(f"The record of the job that made {name} was deleted, and its data with it.")
    return tuning_jobs.get(control, principal, ResourceName(project, name.location, "tuningJobs", job))


def _base(source: TuningJob) -> str:
    return source.base_model or (source.pre_tuned_model.base_model if source.pre_tuned_model else "")


def _check_data(control: Control, project: str, source: TuningJob) -> None:
    """Raises FailedPrecondition when the data has changed since the earlier job."""
    known = source.tuning_job_metadata.datasets if source.tuning_job_metadata else []
    for version in known:
        stored = control.buckets.resolve(version.uri, "tuned_model_ref", project)
        if stored.md5 != version.md5_hash:
            raise FailedPrecondition(
                f"{version.uri} was replaced since {source.name} learned from it (then generation {version.generation},"
                f" now {stored.generation}). Store the earlier bytes there again, or name the data to learn from in"
                f" tuning_job.{source.spec_field}."
            )


def _spec(control: Control, project: str, overrides: TuningJob, source: TuningJob) -> TuningSpec:
    """The override if there is one; else the recorded spec, without an adapter size that the new base lacks."""
    spec = overrides.tuning_spec or source.tuning_spec
    if spec is None:
        raise FailedPrecondition("The earlier job has no tuning spec to run again.")
    if overrides.tuning_spec is None:
        _check_data(control, project, source)
    if isinstance(spec, DistillationSpec) and overrides.tuning_spec is None:
        spec = spec.model_copy(update={"student_model": ""})  # the base model of the earlier job
    parameters = spec.hyper_parameters
    if overrides.tuning_spec is None and overrides.base_model and parameters and parameters.adapter_size:
        entry = control.catalog.find(overrides.base_model)
        if parameters.adapter_size.rank not in entry.rules.adapter_sizes:
            return spec.model_copy(update={"hyper_parameters": parameters.model_copy(update={"adapter_size": None})})
    return spec


def _output(control: Control, request: RebaseTunedModelRequest, overrides: TuningJob, source: TuningJob) -> str:
    if request.artifact_destination is not None and request.artifact_destination.output_uri_prefix:
        return request.artifact_destination.output_uri_prefix
    if overrides.output_uri:
        return overrides.output_uri
    entry = control.catalog.find(overrides.base_model or _base(source))
    return source.output_uri if entry.rules.kind == "open" else ""
