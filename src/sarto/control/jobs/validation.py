"""Validation of a TuningJob at create. All faults of a request are reported at once, each with its field path.

Returns the job as it will be stored, and the `JobPlan` for its run.
"""

from __future__ import annotations

import re
from dataclasses import replace
from uuid import uuid4

from pydantic.alias_generators import to_camel

from sarto.control.access import run_identity
from sarto.control.access.principal import Principal
from sarto.control.aip.labels import NAME_CHARACTERS
from sarto.control.context import QUANTISED, Control
from sarto.control.jobs import (
    dataset_check,
    hyper_parameters,
    label_switches,
    other_models,
    source_model,
)
from sarto.control.jobs.plan import JobPlan, Judges
from sarto.control.jobs.plan import Wishes as Wishes
from sarto.control.jobs.source_model import SourceModel
from sarto.control.jobs.violations import EVALUATION, ROOT, Violations, spec_path
from sarto.control.keys import key_use
from sarto.control.models import model_bucket
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from sarto.names import LocationName, parse_gs_uri
from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.evaluation_validation import config_faults
from sarto.schema.tuning_jobs import SPECS, DatasetVersion, TuningJob, TuningJobMetadata
from sarto.storage.buckets.store import StoredObject

BUILT_SPECS = tuple(row.field for row in SPECS.values())
UNBUILT_SPECS = tuple(name for name in TuningJob.ONEOFS["tuning_spec"] if name not in BUILT_SPECS)
METHODS = {row.client_name: row.field for row in SPECS.values()}
"""The field of each method by its name in Google's clients; with any other name they send a job without a spec."""
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


def accept(
    control: Control,
    principal: Principal,
    project: str,
    parent: LocationName,
    job: TuningJob,
    wishes: Wishes | None = None,
) -> tuple[TuningJob, JobPlan, list[StoredObject]]:
    """The job to store, its plan, and the versions of its datasets that were checked, without their rows if there are
    `wishes`. Raises InvalidArgument with all faults, Unimplemented with the fields, FailedPrecondition for a location
    where the model is not tuned."""
    faults = Violations()
    job = source_model.with_source(other_models.with_student(job.model_copy(update=OUTPUT_ONLY), faults))
    source = source_model.find(control, principal, parent, job, faults)
    _check_words(job, faults)
    if not faults.wrong:
        run_identity.check_create(control, principal, project, job)
    kms_key = _check_key(control, project, parent, job, source, faults)
    label_switches.check(job, source, faults)
    _check_specs(job, source, faults)
    job, judges = _with_evaluation(control, principal, project, job, faults)
    if source is not None:
        _check_location(control, parent, source)
        _check_output(control, project, job, source, faults)
    weights = source_model.weights_of(control, project, job, source, faults)
    if (form := label_switches.Switches.of(job.labels).quantisation) and QUANTISED not in weights:
        weights = f"{weights}{QUANTISED}{form}"
    rank, teacher, data = 0, None, list[StoredObject]()
    if job.tuning_spec is not None and job.spec_row is not None:
        rank = hyper_parameters.check(
            job.tuning_spec, spec_path(job), source, faults, batch_size_for_all=job.spec_row.batch_size_for_all
        )
        hyper_parameters.check_mode(control, job, source, kms_key, faults)
        teacher = other_models.check_teacher(control, principal, project, job, weights, kms_key, faults)
        data = _check_datasets(control, principal, project, job, source, faults, kms_key, with_rows=wishes is None)
    faults.raise_if_any()
    assert source is not None
    if not job.output_uri:
        model_bucket.model_bucket(control, project)  # now, not when the run has trained
    if not job.custom_base_model:
        control.base(weights)  # refuses a base now with which a run could not start
    may_replace = not job.output_uri or run_identity.may_replace(
        control, project, f"{job.output_uri.rstrip('/')}/{model_bucket.OPEN_FOLDER}", job.service_account, principal
    )
    evaluation = run_identity.evaluation_prefix(job)
    plan = replace(
        _plan(job, source, rank, weights),
        **vars(wishes or Wishes()),
        judges=judges,
        teacher=teacher,
        kms_key=kms_key,
        may_replace=may_replace,
        may_replace_evaluation=not evaluation
        or run_identity.may_replace(control, project, evaluation, job.service_account, principal, makes_own=True),
    )
    return _stored(job, source, data), plan, data


def _check_words(job: TuningJob, faults: Violations) -> None:
    if len(job.tuned_model_display_name) > NAME_CHARACTERS:
        faults.add(
            f"{ROOT}.tuned_model_display_name",
            f"{len(job.tuned_model_display_name)} characters are given; at most {NAME_CHARACTERS} are allowed.",
        )
    if job.service_account and not _ACCOUNT.fullmatch(job.service_account):
        faults.add(f"{ROOT}.service_account", f'"{job.service_account}" is not the email of a service account.')


def _check_key(
    control: Control, project: str, parent: LocationName, job: TuningJob, source: SourceModel | None, faults: Violations
) -> str:
    try:
        return key_use.of_job(control, project, parent.location, job, source.parent if source else None)
    except InvalidArgument as error:
        faults.wrong.extend(error.violations)
    except FailedPrecondition as error:  # kept as this error, unless the request has other faults
        if not faults.wrong:
            raise
        faults.add(key_use.FIELD, error.message)
    return ""


def _check_specs(job: TuningJob, source: SourceModel | None, faults: Violations) -> None:
    built = " or ".join(row.key for row in SPECS.values())
    row = job.spec_row
    if row is not None and source is not None and not row.reads(source.entry.rules.kind):
        faults.add(spec_path(job), f"{row.client_name} is not for {source.base_model}, which translates.")
    for name in UNBUILT_SPECS:
        if getattr(job, name) is not None:
            faults.refuse(f"{ROOT}.{name}", f"This method of tuning is not supported yet; use {built}.")
    if job.tuning_spec is None and not faults.unbuilt:
        listed = ", ".join(f"{name} ({to_camel(field)})" for name, field in METHODS.items())
        words = (
            f"Required field is not set: no tuning method is given. The methods are {listed}; gRPC has the first only."
        )
        faults.add(spec_path(job), words)


def _with_evaluation(
    control: Control, principal: Principal, project: str, job: TuningJob, faults: Violations
) -> tuple[TuningJob, Judges]:
    """The evaluation config in our spelling, in the spec only. google-genai fails to read a job, and every list with
    it, that has a config at its top level with aggregationMetrics, exactMatchSpec or pairwiseMetricSpec."""
    spec = job.tuning_spec
    inside = spec.evaluation_config if spec else None
    own = f"{spec_path(job)}.evaluation_config"
    path, requested = (own, inside) if inside is not None else (EVALUATION, job.evaluation_config)
    if requested is None or spec is None:
        return job, {}
    try:
        config = EvaluationConfig.read(requested, path)
    except InvalidArgument as error:
        faults.wrong.extend(error.violations)
        return job, {}
    faults.wrong.extend(config_faults(config, path))
    has_validation = bool(spec.validation_dataset_uri)
    violations, judges = other_models.check_evaluation(control, principal, project, config, path, has_validation)
    faults.wrong.extend(violations)
    spec = spec.model_copy(update={"evaluation_config": config})
    return job.with_spec(spec).model_copy(update={"evaluation_config": None}), judges


def _check_location(control: Control, parent: LocationName, source: SourceModel) -> None:
    if parent.location == "global" and source.entry.rules.kind != "open" and not control.limits.tuning_in_global:
        raise FailedPrecondition(
            f"{source.base_model} is not tuned in global: name a region such as us-central1, or set tuning_in_global."
        )


def _check_output(control: Control, project: str, job: TuningJob, source: SourceModel, faults: Violations) -> None:
    path = f"{ROOT}.output_uri"
    if source.entry.rules.kind != "open":
        if job.output_uri:
            faults.add(path, f"outputUri is for open models; files of {source.base_model} lie in the service's bucket.")
        return
    if not job.output_uri:
        faults.add(path, f"outputUri is required for {source.base_model}; name a gs:// folder for the tuned weights.")
        return
    try:
        name = parse_gs_uri(job.output_uri, path)[0]
        if control.buckets.bucket(name, project).project != project:
            faults.add(path, f"gs://{name} is for reading only; name a bucket of your project.")
    except InvalidArgument as error:
        faults.wrong.extend(error.violations)
    except NotFound as error:
        faults.add(path, f"{job.output_uri}: {error.message}")


def _check_datasets(
    control: Control,
    principal: Principal,
    project: str,
    job: TuningJob,
    source: SourceModel | None,
    faults: Violations,
    kms_key: str,
    *,
    with_rows: bool,
) -> list[StoredObject]:
    """The datasets in their present versions, with a check of their first rows if `with_rows`. Refuses encrypted data
    for a job without a key, which would store a plain copy of it."""
    looked_at: list[StoredObject] = []
    spec, row, path = job.tuning_spec, job.spec_row, spec_path(job)
    assert spec is not None and row is not None
    data_format = row.format_for(source.entry.rules.kind if source else "")
    if not spec.dataset_uri:
        faults.add(f"{path}.{spec.dataset_field}", "Required field is not set.")
    for name, uri in (
        (spec.dataset_field, spec.dataset_uri),
        ("validation_dataset_uri", spec.validation_dataset_uri),
    ):
        if uri:
            try:
                if with_rows:
                    quotes = run_identity.can_read(control, principal, project, [uri])
                    stored = dataset_check.look(control, project, f"{path}.{name}", uri, data_format, quotes=quotes)
                else:
                    stored = dataset_check.find(control, project, f"{path}.{name}", uri)
                looked_at.append(stored)
                if stored.fields.kms_key and not kms_key:
                    words = f"{uri} is encrypted under {stored.fields.kms_key}; give the job an encryptionSpec."
                    faults.add(f"{path}.{name}", words)
            except InvalidArgument as error:
                faults.wrong.extend(error.violations or [FieldViolation(f"{path}.{name}", error.message)])
    return looked_at


def _stored(job: TuningJob, source: SourceModel, data: list[StoredObject]) -> TuningJob:
    ours = {label_switches.BASE_LABEL: label_switches.base_label(source)}
    if source.quantisation:
        ours[label_switches.QUANTISATION_LABEL] = source.quantisation
    versions = [DatasetVersion(uri=each.uri, generation=each.generation, md5_hash=each.md5) for each in data]
    changes: dict[str, object] = {
        "labels": {**job.labels, **ours},
        "tuning_job_metadata": TuningJobMetadata(datasets=versions),
    }
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


def _plan(job: TuningJob, source: SourceModel, rank: int, weights: str) -> JobPlan:
    plan = JobPlan(weights, source.base_model, source.entry.rules.kind, rank, is_full=job.is_full)
    if source.parent is None:
        return plan
    is_new = bool(job.tuned_model_display_name) and job.tuned_model_display_name != source.parent.display_name
    return replace(plan, parent_adapter=source.parent.adapter_folder, model="" if is_new else source.parent.model_id)
