"""The parameters of a run, which follow from its data and its machine."""

from __future__ import annotations

from dataclasses import replace

from sarto.contract.base_shape import BaseShape
from sarto.contract.common import Teaching
from sarto.contract.tuning_run import ChosenParameters, RunSpec
from sarto.engine.dataset.default_parameters import DataShape, choose
from sarto.engine.dataset.prepare import PreparedDataset
from sarto.engine.dataset_report.forecast import Machine
from sarto.engine.dataset_report.machine_speed import measure
from sarto.engine.tuning.placement import choose_device


def with_teacher(chosen: ChosenParameters, teaching: Teaching | None) -> ChosenParameters:
    """The parameters with those of a distillation."""
    if teaching is None:
        return chosen
    reasons = {"distillation_level": teaching.level_reason}
    if not teaching.temperature:
        reasons["teacher_temperature"] = "0, greedy, since no temperature above it is set"
    is_token = teaching.level == "token"
    return chosen.model_copy(
        update={
            "teacher": teaching.teacher,
            "distillation_level": teaching.level,
            "candidate_count": teaching.candidates,
            "teacher_temperature": teaching.temperature,
            "sft_loss_weight_multiplier": teaching.loss_weight if is_token else None,
            "reasons": chosen.reasons | reasons,
        }
    )


def choose_parameters(
    spec: RunSpec, training: PreparedDataset, shape: BaseShape, prompts: int | None
) -> ChosenParameters:
    """The parameters of the run; `prompts` is the number of rows that train if some are held out."""
    data = DataShape.of(training.store)
    if prompts is not None:
        data = replace(data, rows=prompts)
    chosen = choose(data, spec.parameters, shape.parameters, threads=spec.threads, device=str(choose_device(spec)))
    return with_teacher(chosen, spec.teaching)


def machine_of(spec: RunSpec) -> Machine | None:
    """The machine for the forecast; None where answers are sampled, whose lengths are not known before."""
    return None if spec.parameters.reinforcement else measure(spec.threads, spec.dtype)
