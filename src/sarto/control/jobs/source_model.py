"""The starting point of a tuning job: a base model of the catalogue, or a tuned model."""

from __future__ import annotations

from dataclasses import dataclass

from sarto.catalog import BaseModelEntry
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import QUANTISED, Control
from sarto.control.jobs.violations import ROOT, Violations
from sarto.control.models import custom_bases, resolution
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound, PermissionDenied
from sarto.names import LocationName, parse_resource
from sarto.schema.tuning_jobs import PreTunedModel, TuningJob

EXPORT = "aiplatform.models.export"


@dataclass(frozen=True)
class SourceModel:
    """The starting point of training: a base model, or a tuned one."""

    entry: BaseModelEntry
    rank: int
    base_model: str
    parent: resolution.ResolvedModel | None = None

    @property
    def weights(self) -> str:
        return self.parent.weights if self.parent else self.entry.weights.id

    @property
    def quantisation(self) -> str:
        """Quantisation of a tuned model's base; empty for none."""
        return self.weights.partition(QUANTISED)[2]


def with_source(job: TuningJob) -> TuningJob:
    """The job with its source in the right field: one client sends the name of a tuned model as `baseModel`."""
    if job.base_model.startswith("projects/") and "/publishers/" not in job.base_model:
        return job.model_copy(
            update={"base_model": "", "pre_tuned_model": PreTunedModel(tuned_model_name=job.base_model)}
        )
    return job


def find(
    control: Control, principal: Principal, parent: LocationName, job: TuningJob, faults: Violations
) -> SourceModel | None:
    try:
        if job.pre_tuned_model is not None:
            return _tuned_source(control, principal, parent, job.pre_tuned_model)
        if not job.base_model:
            faults.add(f"{ROOT}.base_model", "Required field is not set; name a base model, or preTunedModel.")
            return None
        name = job.base_model
        if name.startswith("projects/"):
            name = name.partition("/locations/")[2].partition("/")[2]
        entry = control.catalog.find(name, f"{ROOT}.base_model")
    except InvalidArgument as error:
        faults.wrong.extend(error.violations or [FieldViolation(f"{ROOT}.base_model", error.message)])
        return None
    return SourceModel(entry, entry.rules.default_adapter_size, entry.name)


def _tuned_source(control: Control, principal: Principal, parent: LocationName, source: PreTunedModel) -> SourceModel:
    path = f"{ROOT}.pre_tuned_model"
    if not source.tuned_model_name:
        raise InvalidArgument.field(f"{path}.tuned_model_name", "Required field is not set.")
    try:
        name = parse_resource(source.tuned_model_name, "models", versioned=True)
        authorization.require(
            control.database, principal, EXPORT, name.project
        )  # as for exports: the new model contains the weights
        tuned = resolution.tuned(control, principal, source.tuned_model_name, source.checkpoint_id)
    except (NotFound, PermissionDenied, FailedPrecondition) as error:
        raise InvalidArgument.field(path, error.message) from None
    if tuned.location != parent.location:
        raise InvalidArgument.field(
            f"{path}.tuned_model_name",
            f"The tuned model is in {tuned.location}; tune it further there, not in {parent.location}.",
        )
    entry = control.catalog.find(tuned.base_model, f"{path}.tuned_model_name")
    return SourceModel(entry, tuned.rank, tuned.base_model, tuned)


def weights_of(control: Control, project: str, job: TuningJob, source: SourceModel | None, faults: Violations) -> str:
    """The id of the weights to tune: the source's, or those of the custom base's folder."""
    if not job.custom_base_model or source is None:
        return source.weights if source else ""
    path = f"{ROOT}.custom_base_model"
    if source.parent is not None:
        faults.add(path, "A tuned model has its base already; name baseModel, or leave customBaseModel out.")
    elif source.entry.rules.kind != "open":
        faults.add(path, f"This is for open models, not for {source.base_model}.")
    else:
        try:
            return custom_bases.find(control, project, job.custom_base_model, source.entry.weights, path).id
        except InvalidArgument as error:
            faults.wrong.extend(error.violations or [FieldViolation(path, error.message)])
    return ""
