"""What a TuningJob must be before it is accepted: every fault of a request at once, in the words of the field it is in.

Gives the job as it will be stored and the `Plan` its run needs. Knows no state; used by `tuning_jobs.create`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from uuid import uuid4

from sarto.catalog import BaseModelEntry
from sarto.control import acting, custom_bases, datasets, evaluation_checks, resolution
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.evaluation_checks import BEST, BEST_LABEL, Judges
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound, PermissionDenied, Unimplemented
from sarto.names import LocationName, parse_gs_uri
from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.evaluation_faults import config_faults
from sarto.schema.examples import DataFormat
from sarto.schema.tuning_jobs import AdapterSize, PreTunedModel, SupervisedTuningSpec, TuningJob, TuningMode

ROOT = "tuning_job"
SPEC = f"{ROOT}.supervised_tuning_spec"
EVALUATION = f"{ROOT}.evaluation_config"
PARAMETERS = f"{SPEC}.hyper_parameters"
MOST_LABELS = 64
LABEL_CHARACTERS = 64
NAME_CHARACTERS = 128
OUR_LABELS = "sarto-"
BASE_LABEL = "sarto-base"
STOP_EARLY_LABEL, LOW_MEMORY_LABEL = "sarto-stop-early", "sarto-low-memory"
"""Switches that the API has no field for: a label of a job, "true" or "false"."""
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
_KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")


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


@dataclass
class _Faults:
    wrong: list[FieldViolation] = field(default_factory=list)
    unbuilt: list[FieldViolation] = field(default_factory=list)

    def add(self, path: str, description: str) -> None:
        self.wrong.append(FieldViolation(path, description))

    def refuse(self, path: str, description: str) -> None:
        """A field we know and cannot honour yet."""
        self.unbuilt.append(FieldViolation(path, description))

    def raise_if_any(self) -> None:
        if self.wrong:
            raise InvalidArgument.of(self.wrong + self.unbuilt)
        if self.unbuilt:
            listed = InvalidArgument.of(self.unbuilt)
            raise Unimplemented(listed.message, listed.details)


@dataclass(frozen=True)
class _Source:
    """Where training begins: a base model, or a tuned one."""

    entry: BaseModelEntry
    rank: int
    base_model: str
    parent: resolution.Deployed | None = None

    @property
    def weights(self) -> str:
        return self.parent.weights if self.parent else self.entry.weights.id


def accept(
    control: Control, principal: Principal, project: str, parent: LocationName, job: TuningJob
) -> tuple[TuningJob, Plan]:
    """The job to store and its plan. Raises InvalidArgument with all faults, or Unimplemented naming the fields."""
    job = _with_source(job.model_copy(update=OUTPUT_ONLY))
    faults = _Faults()
    source = _source(control, principal, parent, job, faults)
    _check_words(job, faults)
    if not faults.wrong:
        acting.check_create(control, principal, project, job)
    _check_labels(job, source, faults)
    _check_specs(job, faults)
    job, judges = _with_evaluation(control, principal, project, job, faults)
    if source is not None:
        _check_output(job, source, faults)
    spec = job.supervised_tuning_spec
    weights = _check_custom_base(control, project, job, source, faults)
    rank = 0
    if spec is not None:
        rank = _check_parameters(spec, source, faults)
        _check_datasets(control, project, spec, source, faults)
    faults.raise_if_any()
    assert source is not None
    if not job.custom_base_model:
        control.base(weights)  # refuses now what a run could not begin with
    return _stored(job, source), replace(_plan(job, source, rank, weights), judges=judges)


def label_value(text: str) -> str:
    """A name as a label value: lower case, and every character that labels do not have as a hyphen."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:LABEL_CHARACTERS]


def _with_source(job: TuningJob) -> TuningJob:
    """`baseModel` may hold the name of a tuned model, as one of the clients sends it."""
    if job.base_model.startswith("projects/") and "/publishers/" not in job.base_model:
        return job.model_copy(
            update={"base_model": "", "pre_tuned_model": PreTunedModel(tuned_model_name=job.base_model)}
        )
    return job


def _source(
    control: Control, principal: Principal, parent: LocationName, job: TuningJob, faults: _Faults
) -> _Source | None:
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
    return _Source(entry, entry.rules.default_adapter_size, entry.name)


def _tuned_source(control: Control, principal: Principal, parent: LocationName, source: PreTunedModel) -> _Source:
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
    return _Source(entry, found.rank, found.base_model, found)


def _check_words(job: TuningJob, faults: _Faults) -> None:
    if len(job.tuned_model_display_name) > NAME_CHARACTERS:
        faults.add(
            f"{ROOT}.tuned_model_display_name",
            f"{len(job.tuned_model_display_name)} characters are given; at most {NAME_CHARACTERS} are allowed.",
        )
    if job.service_account and not _ACCOUNT.fullmatch(job.service_account):
        faults.add(f"{ROOT}.service_account", f'"{job.service_account}" is not the email of a service account.')
    if job.encryption_spec is not None and job.encryption_spec.kms_key_name:
        path, key = f"{ROOT}.encryption_spec.kms_key_name", job.encryption_spec.kms_key_name
        if not _KEY.fullmatch(key):
            wanted = "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
            faults.add(path, f'"{key}" is not of the form {wanted}.')
        else:
            faults.refuse(path, "Encryption with a key of your own is not built yet; leave the field out.")


def _check_labels(job: TuningJob, source: _Source | None, faults: _Faults) -> None:
    path = f"{ROOT}.labels"
    if len(job.labels) > MOST_LABELS:
        faults.add(path, f"{len(job.labels)} labels are given; at most {MOST_LABELS} are allowed.")
    for key, value in job.labels.items():
        where = f"{path}[{key}]"
        if not key or not _is_label(key) or not key[0].isalpha():
            faults.add(
                where,
                f'The label key "{key}" must begin with a lower case letter and have at most {LABEL_CHARACTERS} lower '
                "case letters, digits, underscores and dashes.",
            )
        elif not _is_label(value):
            faults.add(
                where,
                f'The label value "{value}" must have at most {LABEL_CHARACTERS} lower case letters, digits, '
                "underscores and dashes.",
            )
        elif key in (STOP_EARLY_LABEL, LOW_MEMORY_LABEL):
            if value not in ("true", "false"):
                faults.add(where, f'The label "{key}" is "true" or "false".')
            elif key == STOP_EARLY_LABEL and value == "true" and not _has_validation(job):
                faults.add(where, "Stopping early needs validation data to look at; give a validationDatasetUri.")
        elif key == BEST_LABEL and value == BEST:
            continue
        elif key.startswith(OUR_LABELS) and source and (key, value) != (BASE_LABEL, _base_label(source)):
            faults.add(where, f'Labels beginning with "{OUR_LABELS}" are set by the service.')


def _has_validation(job: TuningJob) -> bool:
    spec = job.supervised_tuning_spec
    return spec is not None and bool(spec.validation_dataset_uri)


def _is_label(text: str) -> bool:
    """Letters of any script, as long as they are not capitals."""
    allowed = (c in "_-" or c.isdigit() or (c.isalpha() and c == c.lower()) for c in text)
    return len(text) <= LABEL_CHARACTERS and all(allowed)


def _check_specs(job: TuningJob, faults: _Faults) -> None:
    for name in UNBUILT_SPECS:
        if getattr(job, name) is not None:
            faults.refuse(f"{ROOT}.{name}", "This method of tuning is not built yet; use supervisedTuningSpec.")
    if job.supervised_tuning_spec is None and not faults.unbuilt:
        faults.add(SPEC, "Required field is not set.")


def _with_evaluation(
    control: Control, principal: Principal, project: str, job: TuningJob, faults: _Faults
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


def _check_output(job: TuningJob, source: _Source, faults: _Faults) -> None:
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


def _check_custom_base(control: Control, project: str, job: TuningJob, source: _Source | None, faults: _Faults) -> str:
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


def _check_parameters(spec: SupervisedTuningSpec, source: _Source | None, faults: _Faults) -> int:
    """Checks all hyper-parameters; gives the rank, 0 while it is not known."""
    if spec.tuning_mode is TuningMode.TUNING_MODE_FULL:
        faults.refuse(f"{SPEC}.tuning_mode", "Full tuning is not built yet; use TUNING_MODE_PEFT_ADAPTER.")
    given = spec.hyper_parameters
    if given is None:
        return source.rank if source else 0
    for name, value in (
        ("epoch_count", given.epoch_count),
        ("learning_rate_multiplier", given.learning_rate_multiplier),
        ("learning_rate", given.learning_rate),
        ("batch_size", given.batch_size),
    ):
        if value is not None and not (value > 0 and math.isfinite(value)):
            faults.add(f"{PARAMETERS}.{name}", f"{value} is not allowed; give a number greater than 0.")
    if given.learning_rate is not None and given.learning_rate_multiplier is not None:
        faults.add(f"{PARAMETERS}.learning_rate", "Give learningRate or learningRateMultiplier, not both.")
    if source is None:
        return 0
    if source.entry.rules.kind != "open":
        for name, value in (("learning_rate", given.learning_rate), ("batch_size", given.batch_size)):
            if value is not None:
                hint = " Use learningRateMultiplier." if name == "learning_rate" else ""
                faults.add(f"{PARAMETERS}.{name}", f"This is for open models, not for {source.base_model}.{hint}")
    return _rank(given.adapter_size, source, faults)


def _rank(size: AdapterSize | None, source: _Source, faults: _Faults) -> int:
    if size is None or size.is_unspecified:
        return source.rank
    allowed = [source.rank] if source.parent else source.entry.rules.adapter_sizes
    if size.rank not in allowed:
        listed = ", ".join(str(AdapterSize.of_rank(rank)) for rank in sorted(allowed))
        why = " (the size of the model it continues)" if source.parent else ""
        faults.add(f"{PARAMETERS}.adapter_size", f"{size} is not supported for {source.base_model}; use {listed}{why}.")
    return size.rank


def _check_datasets(
    control: Control, project: str, spec: SupervisedTuningSpec, source: _Source | None, faults: _Faults
) -> None:
    data_format: DataFormat = "translation" if source and source.entry.rules.kind == "translation" else "auto"
    if not spec.training_dataset_uri:
        faults.add(f"{SPEC}.training_dataset_uri", "Required field is not set.")
    for name, uri in (
        ("training_dataset_uri", spec.training_dataset_uri),
        ("validation_dataset_uri", spec.validation_dataset_uri),
    ):
        if uri:
            try:
                datasets.look(control, project, f"{SPEC}.{name}", uri, data_format)
            except InvalidArgument as error:
                faults.wrong.extend(error.violations or [FieldViolation(f"{SPEC}.{name}", error.message)])


def _base_label(source: _Source) -> str:
    return label_value(source.entry.weights.id)


def _stored(job: TuningJob, source: _Source) -> TuningJob:
    changes: dict[str, object] = {"labels": {**job.labels, BASE_LABEL: _base_label(source)}}
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


def _plan(job: TuningJob, source: _Source, rank: int, weights: str) -> Plan:
    plan = Plan(weights, source.base_model, source.entry.rules.kind, rank)
    if source.parent is None:
        return plan
    is_new = bool(job.tuned_model_display_name) and job.tuned_model_display_name != source.parent.display_name
    return replace(plan, parent_adapter=source.parent.adapter_folder, model="" if is_new else source.parent.model_id)
