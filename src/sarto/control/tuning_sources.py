"""Where a tuning job begins: a base model of the catalogue, or a model that was tuned before.

Used by `validation` and by what it asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sarto.catalog import BaseModelEntry
from sarto.control import resolution
from sarto.control.auth import Principal
from sarto.control.context import QUANTISED, Control
from sarto.control.faults import ROOT, Faults
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound, PermissionDenied
from sarto.names import LocationName
from sarto.schema.tuning_jobs import PreTunedModel, TuningJob


@dataclass(frozen=True)
class Source:
    """Where training begins: a base model, or a tuned one."""

    entry: BaseModelEntry
    rank: int
    base_model: str
    parent: resolution.Deployed | None = None

    @property
    def weights(self) -> str:
        return self.parent.weights if self.parent else self.entry.weights.id

    @property
    def quantisation(self) -> str:
        """Of a tuned model's base; empty where it is as it is."""
        return self.weights.partition(QUANTISED)[2]


def with_source(job: TuningJob) -> TuningJob:
    """`baseModel` may hold the name of a tuned model, as one of the clients sends it."""
    if job.base_model.startswith("projects/") and "/publishers/" not in job.base_model:
        return job.model_copy(
            update={"base_model": "", "pre_tuned_model": PreTunedModel(tuned_model_name=job.base_model)}
        )
    return job


def find(control: Control, principal: Principal, parent: LocationName, job: TuningJob, faults: Faults) -> Source | None:
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
    return Source(entry, entry.rules.default_adapter_size, entry.name)


def _tuned_source(control: Control, principal: Principal, parent: LocationName, source: PreTunedModel) -> Source:
    path = f"{ROOT}.pre_tuned_model"
    if not source.tuned_model_name:
        raise InvalidArgument.field(f"{path}.tuned_model_name", "Required field is not set.")
    try:
        found = resolution.tuned(control, principal, source.tuned_model_name, source.checkpoint_id)
    except (NotFound, PermissionDenied, FailedPrecondition) as error:
        raise InvalidArgument.field(path, error.message) from None
    if found.location != parent.location:
        raise InvalidArgument.field(
            f"{path}.tuned_model_name",
            f"The tuned model is in {found.location}; tune it further there, not in {parent.location}.",
        )
    entry = control.catalog.find(found.base_model, f"{path}.tuned_model_name")
    return Source(entry, found.rank, found.base_model, found)
