"""What a TuningJob must be before it is accepted: every fault of a request at once, in the words of the field it is in.

Gives the job as it will be stored and the `Plan` its run needs. Knows no state; used by `tuning_jobs.create`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from uuid import uuid4

from sarto.control import (
    acting,
    custom_bases,
    customer_keys,
    datasets,
    evaluation_checks,
    hyper_parameters,
    labels,
    tuning_sources,
)
from sarto.control.auth import Principal
from sarto.control.context import QUANTISED, Control
from sarto.control.evaluation_checks import Judges
from sarto.control.faults import EVALUATION, ROOT, SPEC, Faults
from sarto.control.tuning_sources import Source
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument
from sarto.names import LocationName, parse_gs_uri
from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.evaluation_faults import config_faults
from sarto.schema.examples import DataFormat
from sarto.schema.tuning_jobs import SupervisedTuningSpec, TuningJob

NAME_CHARACTERS = 128
UNBUILT_SPECS = (
    "preference_optimization_spec",
    "distillation_spec",
    "reinforcement_tuning_spec",
    "partner_model_tuning_spec",
    "veo_tuning_spec",
    "veo_lora_tuning_spec",
    "full_fine_tuning_spec",
    "distillation_sampling_spec",
)
OUTPUT_ONLY: dict[str, object] = {
    "name": "",
    "state": None,
    "tuning_job_state": None,
    "create_time": None,
    "start_time": None,
    "end_time": None,
    "update_time": None,
    "error": None,
    "experiment": "",
    "tuned_model": None,
    "tuning_data_stats": None,
    "tuning_job_metadata": None,
    "evaluate_dataset_runs": [],
    "gcs_metrics_uri": "",
    "pipeline_job": "",
    "satisfies_pzs": None,
    "satisfies_pzi": None,
}
_ACCOUNT = re.compile(r"[^@\s/]{1,64}@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")


@dataclass(frozen=True)
class Plan:
    """What was decided when the job was made and its run needs; kept beside the job, never shown."""

    weights: str
    """Id of the base weights, in the catalogue or of a user's own."""
    base_model: str
    """The base model by the name its user wrote."""
    kind: str
    rank: int
    parent_adapter: str = ""
    """Folder of the adapter that training begins with."""
    model: str = ""
    """Id of the model that gets a new version; empty makes a new model."""
    judges: Judges = field(default_factory=dict)
    """Who judges, by the names the evaluationConfig gives them."""
    memory_bytes: int = 0
    """About what its run takes; 0 where that is not known: then it has a server to itself."""
    least_memory_bytes: int = 0
    """With what it can do, on a server that has no more."""
    kms_key: str = ""
    """The key, by its canonical name, under which all that the job leaves is sealed."""


def accept(
    control: Control, principal: Principal, project: str, parent: LocationName, job: TuningJob
) -> tuple[TuningJob, Plan]:
    """The job to store and its plan. Raises InvalidArgument with all faults, Unimplemented naming the fields,
    FailedPrecondition for a place where the model is not tuned."""
    job = tuning_sources.with_source(job.model_copy(update=OUTPUT_ONLY))
    faults = Faults()
    source = tuning_sources.find(control, principal, parent, job, faults)
    _check_words(job, faults)
    if not faults.wrong:
        acting.check_create(control, principal, project, job)
    kms_key = _check_key(control, project, parent, job, source, faults)
    labels.check(job, source, faults)
    _check_specs(job, faults)
    job, judges = _with_evaluation(control, principal, project, job, faults)
    if source is not None:
        _check_place(control, parent, source)
        _check_output(job, source, faults)
    spec = job.supervised_tuning_spec
    weights = _check_custom_base(control, project, job, source, faults)
    if (form := job.labels.get(labels.QUANTISATION_LABEL)) and QUANTISED not in weights:
        weights = f"{weights}{QUANTISED}{form}"
    rank = 0
    if spec is not None:
        rank = hyper_parameters.check(spec, source, faults)
        _check_datasets(control, project, spec, source, faults, kms_key)
    faults.raise_if_any()
    assert source is not None
    if not job.custom_base_model:
        control.base(weights)  # refuses now what a run could not begin with
    return _stored(job, source), replace(_plan(job, source, rank, weights), judges=judges, kms_key=kms_key)


def _check_words(job: TuningJob, faults: Faults) -> None:
    if len(job.tuned_model_display_name) > NAME_CHARACTERS:
        faults.add(
            f"{ROOT}.tuned_model_display_name",
            f"{len(job.tuned_model_display_name)} characters are given; at most {NAME_CHARACTERS} are allowed.",
        )
    if job.service_account and not _ACCOUNT.fullmatch(job.service_account):
        faults.add(f"{ROOT}.service_account", f'"{job.service_account}" is not the email of a service account.')


def _check_key(
    control: Control, project: str, parent: LocationName, job: TuningJob, source: Source | None, faults: Faults
) -> str:
    try:
        return customer_keys.of_job(control, project, parent.location, job, source.parent if source else None)
    except InvalidArgument as error:
        faults.wrong.extend(error.violations)
    except FailedPrecondition as error:  # keep what it is, unless the request is wrong anyway
        if not faults.wrong:
            raise
        faults.add(customer_keys.FIELD, error.message)
    return ""


def _check_specs(job: TuningJob, faults: Faults) -> None:
    for name in UNBUILT_SPECS:
        if getattr(job, name) is not None:
            faults.refuse(f"{ROOT}.{name}", "This method of tuning is not built yet; use supervisedTuningSpec.")
    if job.supervised_tuning_spec is None and not faults.unbuilt:
        faults.add(SPEC, "Required field is not set.")


def _with_evaluation(
    control: Control, principal: Principal, project: str, job: TuningJob, faults: Faults
) -> tuple[TuningJob, Judges]:
    """The evaluation config in our spelling, in the spec alone: google-genai fails to read a job that has it at its top
    level with aggregationMetrics, exactMatchSpec or pairwiseMetricSpec, and with that every list."""
    spec = job.supervised_tuning_spec
    inside = spec.evaluation_config if spec else None
    path, given = (f"{SPEC}.evaluation_config", inside) if inside is not None else (EVALUATION, job.evaluation_config)
    if given is None or spec is None:
        return job, {}
    try:
        config = EvaluationConfig.read(given, path)
    except InvalidArgument as error:
        faults.wrong.extend(error.violations)
        return job, {}
    faults.wrong.extend(config_faults(config, path))
    has_validation = bool(spec.validation_dataset_uri)
    found, judges = evaluation_checks.check(control, principal, project, config, path, has_validation)
    faults.wrong.extend(found)
    spec = spec.model_copy(update={"evaluation_config": config})
    return job.model_copy(update={"evaluation_config": None, "supervised_tuning_spec": spec}), judges


def _check_place(control: Control, parent: LocationName, source: Source) -> None:
    if parent.location == "global" and source.entry.rules.kind != "open" and not control.limits.tuning_in_global:
        raise FailedPrecondition(
            f"{source.base_model} is not tuned in global: name a region such as us-central1, or set tuning_in_global."
        )


def _check_output(job: TuningJob, source: Source, faults: Faults) -> None:
    path = f"{ROOT}.output_uri"
    if source.entry.rules.kind != "open":
        if job.output_uri:
            faults.add(path, f"outputUri is for open models; files of {source.base_model} lie in the service's bucket.")
        return
    if not job.output_uri:
        faults.add(path, f"outputUri is required for {source.base_model}; name a gs:// folder for the tuned weights.")
        return
    try:
        parse_gs_uri(job.output_uri, path)
    except InvalidArgument as error:
        faults.wrong.extend(error.violations)


def _check_custom_base(control: Control, project: str, job: TuningJob, source: Source | None, faults: Faults) -> str:
    """The id of the weights to tune: the source's, or those of the user's own folder."""
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


def _check_datasets(
    control: Control, project: str, spec: SupervisedTuningSpec, source: Source | None, faults: Faults, kms_key: str
) -> None:
    """A job without a key would leave an open copy of data that its bucket keeps sealed."""
    data_format: DataFormat = "translation" if source and source.entry.rules.kind == "translation" else "auto"
    if not spec.training_dataset_uri:
        faults.add(f"{SPEC}.training_dataset_uri", "Required field is not set.")
    for name, uri in (
        ("training_dataset_uri", spec.training_dataset_uri),
        ("validation_dataset_uri", spec.validation_dataset_uri),
    ):
        if uri:
            try:
                found = datasets.look(control, project, f"{SPEC}.{name}", uri, data_format)
                if found.fields.kms_key and not kms_key:
                    words = f"{uri} is sealed under {found.fields.kms_key}; give the job an encryptionSpec."
                    faults.add(f"{SPEC}.{name}", words)
            except InvalidArgument as error:
                faults.wrong.extend(error.violations or [FieldViolation(f"{SPEC}.{name}", error.message)])


def _stored(job: TuningJob, source: Source) -> TuningJob:
    ours = {labels.BASE_LABEL: labels.base_label(source)}
    if source.quantisation:
        ours[labels.QUANTISATION_LABEL] = source.quantisation
    changes: dict[str, object] = {"labels": {**job.labels, **ours}}
    if source.parent is None and not job.tuned_model_display_name:
        changes["tuned_model_display_name"] = f"{source.base_model}-{uuid4()}"[:NAME_CHARACTERS]
    if source.parent is not None:
        changes["tuned_model_display_name"] = job.tuned_model_display_name or source.parent.display_name
        assert job.pre_tuned_model is not None
        changes["pre_tuned_model"] = job.pre_tuned_model.model_copy(
            update={
                "tuned_model_name": source.parent.versioned_name,
                "checkpoint_id": source.parent.checkpoint_id,
                "base_model": source.base_model,
            }
        )
    return job.model_copy(update=changes)


def _plan(job: TuningJob, source: Source, rank: int, weights: str) -> Plan:
    plan = Plan(weights, source.base_model, source.entry.rules.kind, rank)
    if source.parent is None:
        return plan
    is_new = bool(job.tuned_model_display_name) and job.tuned_model_display_name != source.parent.display_name
    return replace(plan, parent_adapter=source.parent.adapter_folder, model="" if is_new else source.parent.model_id)
