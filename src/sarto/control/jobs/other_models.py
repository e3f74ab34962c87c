"""Checks at create of the other models that a job uses: judges in its evaluation, and the teacher of a distillation."""

from __future__ import annotations

from pathlib import Path

from sarto.contract.common import CUSTOM
from sarto.contract.vocabulary import difference
from sarto.control.access import authorization
from sarto.control.access.principal import Principal
from sarto.control.context import Control
from sarto.control.jobs.label_switches import LEVEL_LABEL, Switches
from sarto.control.jobs.plan import Judge, Judges
from sarto.control.jobs.violations import ROOT, Violations, spec_path
from sarto.control.models import resolution
from sarto.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound, SartoError
from sarto.names import parse_gs_uri
from sarto.schema.distillation import DistillationSpec
from sarto.schema.evaluation import EvaluationConfig, judge_names
from sarto.schema.tuning_jobs import TuningJob

GENERATION = ("temperature", "top_p", "top_k", "candidate_count", "thinking_config")
"""Fields of generationConfig that the API allows here."""
MOST_CANDIDATES, MOST_WEIGHT = 8, 1000.0
WEIGHT = "sft_loss_weight_multiplier"
SEQUENCE = "leave sftLossWeightMultiplier and the label out to learn from its answers alone"


def check_evaluation(
    control: Control, principal: Principal, project: str, config: EvaluationConfig, path: str, has_validation: bool
) -> tuple[list[FieldViolation], Judges]:
    """Faults of an evaluation: output, judges and templates, and the judges of this server for the JobPlan."""
    faults: list[FieldViolation] = []
    if not has_validation:
        where = path.removesuffix("evaluation_config") + "validation_dataset_uri"
        faults.append(FieldViolation(where, "An evaluationConfig needs validation data to run on; name a file."))
    destination = config.output_config.gcs_destination if config.output_config else None
    if destination and destination.output_uri_prefix.startswith("gs://"):
        where = f"{path}.output_config.gcs_destination.output_uri_prefix"
        try:
            control.buckets.bucket(parse_gs_uri(f"{destination.output_uri_prefix.rstrip('/')}/x", where)[0], project)
        except InvalidArgument as error:
            faults.extend(error.violations)
        except SartoError as error:
            faults.append(FieldViolation(where, error.message))
    judges: Judges = {}
    for where, name in judge_names(config, path):
        if name in control.judges:
            continue
        try:
            judge = resolution.resolve(control, principal, name)
            control.base(judge.weights)
            judges[name] = judge.weights, judge.adapter_folder, judge.adapter_digest
        except SartoError as error:
            known = f" Judges elsewhere: {', '.join(sorted(control.judges))}." if control.judges else ""
            faults.append(FieldViolation(where, f"The autorater cannot be used: {error.message}{known}"))
    return faults, judges


def with_student(job: TuningJob, faults: Violations) -> TuningJob:
    """A job in the deprecated form with its base model and output folder in the fields of the present form."""
    spec = job.distillation_spec
    if spec is None:
        return job
    path = spec_path(job)
    if spec.prompt_dataset_uri and spec.training_dataset_uri:
        faults.add(f"{path}.training_dataset_uri", "This is the deprecated name of promptDatasetUri; give one of them.")
    if spec.student_model and (job.pre_tuned_model or job.base_model not in ("", spec.student_model)):
        faults.add(f"{path}.student_model", "This is the deprecated name of the job's baseModel; give one of them.")
    elif spec.student_model:
        job = job.model_copy(update={"base_model": spec.student_model})
    if spec.pipeline_root_directory:
        try:
            parse_gs_uri(f"{spec.pipeline_root_directory.rstrip('/')}/x", f"{path}.pipeline_root_directory")
        except SartoError as error:
            faults.add(f"{path}.pipeline_root_directory", error.message)
    return job


def check_teacher(
    control: Control,
    principal: Principal,
    project: str,
    job: TuningJob,
    student: str,
    kms_key: str,
    faults: Violations,
) -> Judge | None:
    """Check teacher and settings of a distillation. `student`: id of its base weights, empty if it is not known.
    Returns the teacher if it is a model of this server."""
    spec, path = job.distillation_spec, spec_path(job)
    if spec is None:
        return None
    _check_answers(control, spec, path, faults)
    if bool(spec.base_teacher_model) == bool(spec.tuned_teacher_model_source):
        words = "Give one teacher: baseTeacherModel or tunedTeacherModelSource" + (
            ", not both." if spec.base_teacher_model else "; neither is set."
        )
        faults.add(f"{path}.base_teacher_model", words)
        return None
    if spec.teacher in control.judges:
        if spec.tuned_teacher_model_source:
            faults.add(f"{path}.tuned_teacher_model_source", f"{spec.teacher} is elsewhere; name it baseTeacherModel.")
        _check_level(job, f"{spec.teacher} is not on this server", faults)
        return None
    try:
        found = _find_teacher(control, principal, project, spec)
        control.base(found.weights)
    except SartoError as error:
        known = f" Models elsewhere: {', '.join(sorted(control.judges))}." if control.judges else ""
        faults.add(f"{path}.{spec.teacher_field}", f"The teacher cannot be used: {error.message}{known}")
        return None
    if bool(spec.base_teacher_model) == bool(found.model_id or found.checkpoint_id):
        other = "tunedTeacherModelSource" if spec.base_teacher_model else "baseTeacherModel"
        kind = "a tuned" if spec.base_teacher_model else "a base"
        faults.add(f"{path}.{spec.teacher_field}", f"{spec.teacher} is {kind} model; name it in {other}.")
    if found.kms_key and found.kms_key != kms_key:
        words = f"The teacher is encrypted under {found.kms_key}; give the job an encryptionSpec with that key."
        faults.add(f"{path}.{spec.teacher_field}", words)
    if student and not (student.startswith(CUSTOM) and job.custom_base_model):
        folder = Path(control.base(student).folder)
        _check_level(job, level_obstacle(control, found.weights, folder, is_full=job.is_full), faults)
    return found.weights, found.adapter_folder, found.adapter_digest


def _find_teacher(
    control: Control, principal: Principal, project: str, spec: DistillationSpec
) -> resolution.ResolvedModel:
    """A base model by any of its names in the catalogue, or a model by its resource name. Raises SartoError."""
    name = spec.teacher
    if spec.tuned_teacher_model_source or name.startswith("projects/"):
        return resolution.resolve(control, principal, name)
    authorization.require(control.database, principal, resolution.PREDICT, project)
    try:
        entry = control.catalog.find(name, "model")
    except InvalidArgument as error:
        raise NotFound(error.violations[0].description) from None
    return resolution.ResolvedModel(weights=entry.weights.id, base_model=entry.name)


def level_obstacle(control: Control, teacher: str, student: Path, *, is_full: bool) -> str:
    """The reason why a student cannot learn the distribution of a teacher of this server; empty if it can."""
    if is_full:
        return "full tuning learns from answers alone"
    if control.limits.devices > 1:
        return "a run on several devices learns from answers alone"
    return difference(Path(control.base(teacher).folder), student)


def distillation_level(job: TuningJob, words: str) -> tuple[str, str]:
    """Level and reason. `words`: the obstacle to token level. Raises FailedPrecondition if the user named it."""
    asked = _asked(job)
    if words and asked == "token":
        raise FailedPrecondition(f"The teacher's distribution cannot be learned: {words}; {SEQUENCE}.")
    if asked:
        return asked, f"{asked}, as requested"
    if words:
        return "sequence", f"sequence: {words}"
    return "token", "token: the teacher is on this server and has the student's vocabulary"


def _asked(job: TuningJob) -> str:
    """The level that the user named; empty if the service chooses."""
    spec = job.distillation_spec
    label = Switches.of(job.labels).distillation_level
    is_weighed = spec is not None and spec.parameters.sft_loss_weight_multiplier is not None
    return label or ("token" if is_weighed else "")


def _check_level(job: TuningJob, words: str, faults: Violations) -> None:
    if not words or _asked(job) != "token":
        return
    is_label = bool(Switches.of(job.labels).distillation_level)
    path = f"{ROOT}.labels[{LEVEL_LABEL}]" if is_label else f"{spec_path(job)}.hyper_parameters.{WEIGHT}"
    faults.add(path, f"The teacher's distribution cannot be learned: {words}; {SEQUENCE}.")


def _check_answers(control: Control, spec: DistillationSpec, path: str, faults: Violations) -> None:
    parameters, path = spec.parameters, f"{path}.hyper_parameters"
    weight = parameters.sft_loss_weight_multiplier
    if weight is not None and not 0 <= weight <= MOST_WEIGHT:
        faults.add(f"{path}.{WEIGHT}", f"{weight} is not allowed; give a number from 0 to {MOST_WEIGHT:g}.")
    config = parameters.generation_config
    if config is None:
        return
    path = f"{path}.generation_config"
    for name in sorted(config.model_fields_set - set(GENERATION)):
        listed = "temperature, topP, topK, candidateCount and thinkingConfig"
        faults.add(f"{path}.{name}", f"A teacher is set by {listed} only; leave it out.")
    ranges = {"temperature": (0, 2), "top_p": (0, 1), "top_k": (1, 1_000_000), "candidate_count": (1, MOST_CANDIDATES)}
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            faults.add(f"{path}.{name}", f"{value:g} is not allowed; give a number from {least:g} to {most:g}.")
    if (config.candidate_count or 1) > 1 and not config.temperature:
        words = "Without a temperature above 0 all answers to a prompt are equal; set it, or ask for one answer."
        faults.add(f"{path}.candidate_count", words)
    judge = control.judges.get(spec.teacher)
    if judge is not None and judge.judge.kind == "openai":
        for name in ("top_k", "thinking_config"):
            if getattr(config, name) is not None:
                faults.add(f"{path}.{name}", f"{spec.teacher} has no such setting; leave it out.")
