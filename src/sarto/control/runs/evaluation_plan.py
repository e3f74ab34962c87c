"""Other models that a run uses: judges in the evaluation after each checkpoint, and the teacher of a distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sarto.contract.common import EvaluationPlan, JudgeModel, Teaching
from sarto.contract.places import Places
from sarto.control.context import Control
from sarto.control.jobs import other_models
from sarto.control.jobs.plan import JobPlan, Judge
from sarto.control.runs import sealed_files
from sarto.errors import FailedPrecondition
from sarto.schema.evaluation import judge_names
from sarto.schema.generation import GenerationConfig
from sarto.schema.tuning_jobs import ReinforcementTuningSpec, TuningJob


def evaluation_plan(
    control: Control, job: TuningJob, judges_here: Mapping[str, Judge], places: Places
) -> EvaluationPlan | None:
    """The evaluation plan for a spec, with file names in these places; None without validation data, and for a method
    whose rows have no replies to compare answers with. Raises SartoError if a judge is not here any more."""
    spec = job.tuning_spec
    if spec is None or not spec.validation_dataset_uri or isinstance(spec, ReinforcementTuningSpec):
        return None
    config = spec.evaluation_config
    limit = control.limits.max_evaluation_seconds
    if config is None:
        return EvaluationPlan(max_seconds=limit)
    judges = {name: _model(control, places, judge) for name, judge in judges_here.items()}
    assert config.output_config and config.output_config.gcs_destination
    prefix = config.output_config.gcs_destination.output_uri_prefix.rstrip("/")
    return EvaluationPlan(
        config=config.to_json(),
        judges=judges,
        outside_judges=sorted({name for _, name in judge_names(config, "")} - judges.keys()),
        output_uri=f"{prefix}/{job.name.rpartition('/')[2]}",
        max_seconds=limit,
    )


def teaching(control: Control, job: TuningJob, plan: JobPlan, student: Path, places: Places) -> Teaching | None:
    """The teacher for a run's spec; None for other methods. Raises FailedPrecondition if it is not here any more, or if
    the level that the user named cannot be had."""
    spec = job.distillation_spec
    if spec is None:
        return None
    model = None
    if plan.teacher is not None:
        weights, folder, _ = plan.teacher
        if folder and not control.adapter_folder(folder).is_dir():
            raise FailedPrecondition("The teacher was deleted before the job ran.")
        model = _model(control, places, plan.teacher)
        obstacle = other_models.level_obstacle(control, weights, student, is_full=plan.is_full)
        level, reason = other_models.distillation_level(job, obstacle)
    elif spec.teacher not in control.judges:
        raise FailedPrecondition(f"The teacher {spec.teacher} is not configured on this server any more.")
    else:
        level, reason = other_models.distillation_level(
            job, f"{spec.teacher} is not on this server, so only its answers are known"
        )
    parameters = spec.parameters
    config = (parameters.generation_config or GenerationConfig()).to_json()
    weight = parameters.sft_loss_weight_multiplier
    return Teaching(
        teacher=spec.teacher,
        model=model,
        generation={name: value for name, value in config.items() if name != "candidateCount"},
        candidates=config.get("candidateCount", 1),
        level="token" if level == "token" else "sequence",
        level_reason=reason,
        loss_weight=1.0 if weight is None else weight,
    )


def _model(control: Control, places: Places, model: Judge) -> JudgeModel:
    weights, folder, digest = model
    return JudgeModel(
        base=places.named(control.base(weights)),
        adapter_folder=places.name(sealed_files.adapter(control, folder)) if folder else "",
        adapter_digest=digest,
    )
