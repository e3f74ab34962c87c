"""`rebaseTunedModel`: the data and parameters of an earlier job once more, on another base model."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sarto.control import iam, operations, tuning_jobs
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.resolution import find_version
from sarto.errors import FailedPrecondition, InvalidArgument, Unimplemented
from sarto.names import LocationName, ResourceName, parse_resource
from sarto.schema.tuning_jobs import RebaseTunedModelRequest, SupervisedTuningSpec, TuningJob
from sarto.storage.tables import tuning_job

NEEDED = "aiplatform.tuningJobs.create"


def rebase(
    control: Control, principal: Principal, parent: LocationName, request: RebaseTunedModelRequest
) -> dict[str, Any]:
    """Create the new job; gives a done operation whose response is that job. Raises as `tuning_jobs.create` does."""
    project = iam.require(control.database, principal, NEEDED, parent.project).number
    _refuse_unbuilt(request)
    source = _source(control, principal, request)
    wanted = request.tuning_job or TuningJob()
    job = TuningJob(
        base_model=wanted.base_model or _base(source),
        custom_base_model=wanted.custom_base_model or ("" if wanted.base_model else source.custom_base_model),
        tuned_model_display_name=wanted.tuned_model_display_name or source.tuned_model_display_name,
        description=wanted.description or source.description,
        labels={**{k: v for k, v in source.labels.items() if not k.startswith("sarto-")}, **wanted.labels},
        output_uri=_output(control, request, wanted, source),
        supervised_tuning_spec=_spec(control, wanted, source),
        encryption_spec=wanted.encryption_spec or source.encryption_spec,
    )
    made = tuning_jobs.create(control, principal, parent, job)
    with control.database.transaction() as connection:
        return operations.done(
            connection,
            LocationName(project, parent.location),
            f"tuningJobs/{made['name'].rpartition('/')[2]}",
            "RebaseTunedModelOperationMetadata",
            {"@type": f"{operations.METADATA}TuningJob", **made},
            control.database.now(connection),
        )


def _refuse_unbuilt(request: RebaseTunedModelRequest) -> None:
    if request.tuned_model_ref is not None and request.tuned_model_ref.pipeline_job:
        raise Unimplemented("tuned_model_ref.pipeline_job: there are no pipeline jobs here; name a tuned model or job.")
    if request.deploy_to_same_endpoint:
        raise Unimplemented("deploy_to_same_endpoint: the new model gets endpoints of its own; leave the field out.")


def _source(control: Control, principal: Principal, request: RebaseTunedModelRequest) -> TuningJob:
    """The recorded job that made the referenced model. Raises NotFound, FailedPrecondition when it was deleted."""
    given = request.tuned_model_ref
    if given is None or not (given.tuned_model or given.tuning_job):
        raise InvalidArgument.field("tuned_model_ref", "Required field is not set; name a tuned model or tuning job.")
    if given.tuning_job:
        name = parse_resource(given.tuning_job, "tuningJobs")
        return TuningJob.read(tuning_jobs.get(control, principal, name))
    name = parse_resource(given.tuned_model, "models", versioned=True)
    return TuningJob.read(_job_of_model(control, principal, name))


def _job_of_model(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    project = iam.require(control.database, principal, "aiplatform.models.get", name.project).number
    with control.database.reading() as connection:
        job = find_version(connection, project, name).job
        query = sa.select(tuning_job.c.id).where(tuning_job.c.project == project, tuning_job.c.id == job)
        if connection.execute(query).first() is None:
            raise FailedPrecondition(f"The record of the job that made {name} was deleted, and its data with it.")
    return tuning_jobs.get(control, principal, ResourceName(project, name.location, "tuningJobs", job))


def _base(source: TuningJob) -> str:
    return source.base_model or (source.pre_tuned_model.base_model if source.pre_tuned_model else "")


def _spec(control: Control, wanted: TuningJob, source: TuningJob) -> SupervisedTuningSpec:
    """The override if one is given; else the recorded spec, less an adapter size that the new base does not have."""
    spec = wanted.supervised_tuning_spec or source.supervised_tuning_spec
    if spec is None:
        raise FailedPrecondition("The earlier job has no supervised tuning spec to run again.")
    given = spec.hyper_parameters
    if wanted.supervised_tuning_spec is None and wanted.base_model and given and given.adapter_size:
        entry = control.catalog.find(wanted.base_model)
        if given.adapter_size.rank not in entry.rules.adapter_sizes:
            return spec.model_copy(update={"hyper_parameters": given.model_copy(update={"adapter_size": None})})
    return spec


def _output(control: Control, request: RebaseTunedModelRequest, wanted: TuningJob, source: TuningJob) -> str:
    if request.artifact_destination is not None and request.artifact_destination.output_uri_prefix:
        return request.artifact_destination.output_uri_prefix
    if wanted.output_uri:
        return wanted.output_uri
    entry = control.catalog.find(wanted.base_model or _base(source))
    return source.output_uri if entry.rules.kind == "open" else ""
