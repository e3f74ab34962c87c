"""Bounds of a job's hyper-parameters, depending on its base model, and what fits its tuning mode."""

from __future__ import annotations

from sarto.contract.common import FULL
from sarto.control.context import Control
from sarto.control.jobs.label_switches import QUANTISATION_LABEL
from sarto.control.jobs.source_model import SourceModel
from sarto.control.jobs.violations import ROOT, Violations, spec_path
from sarto.rewards.validation import config_faults
from sarto.schema.reinforcement import ReinforcementTuningHyperParameters, ReinforcementTuningSpec
from sarto.schema.reinforcement import ReinforcementTuningThinkingLevel as Level
from sarto.schema.tuning_jobs import AdapterSize, TuningJob, TuningMode, TuningSpec

ADAPTER = "use TUNING_MODE_PEFT_ADAPTER"

BOUNDS: dict[str, tuple[float, float]] = {
    "epoch_count": (1, 1000),
    "learning_rate_multiplier": (1e-4, 1000),
    "learning_rate": (1e-9, 1),
    "batch_size": (1, 100_000),
    "beta": (0, 10),
}
"""Least and greatest value of each; outside of them a model learns nothing, or numbers overflow."""

SAMPLING_BOUNDS: dict[str, tuple[float, float]] = {
    "step_count": (1, 500),
    "samples_per_prompt": (2, 8192),
    "max_output_tokens": (1, 32_768),
    "evaluate_interval": (1, 500),
    "checkpoint_interval": (1, 500),
    "learning_rate_multiplier": (0.25, 4),
}
"""Least and greatest value of each; one answer to a prompt has nothing to be compared with."""
UNBUILT_SCORERS = ("code_execution_reward_scorer", "autorater_scorer", "cloud_run_reward_scorer")
GROUP, MOST_ANSWERS = 16, 8192
WITHOUT_THOUGHTS = (None, Level.REINFORCEMENT_TUNING_THINKING_LEVEL_UNSPECIFIED, Level.MINIMAL)


def check(
    spec: TuningSpec, path: str, source: SourceModel | None, faults: Violations, *, batch_size_for_all: bool
) -> int:
    """Check all hyper-parameters of the spec at `path`; returns the rank, 0 if it is not known yet."""
    if isinstance(spec, ReinforcementTuningSpec):
        _check_sampling(spec, path, faults)
    is_full = spec.tuning_mode is TuningMode.TUNING_MODE_FULL
    parameters, path = spec.hyper_parameters, f"{path}.hyper_parameters"
    if parameters is None:
        return source.rank if source and not is_full else 0
    for name, (least, most) in BOUNDS.items():
        value = getattr(parameters, name)
        if value is not None and not least <= value <= most:
            faults.add(f"{path}.{name}", f"{value} is not allowed; give a number from {least:g} to {most:g}.")
    if parameters.learning_rate is not None and parameters.learning_rate_multiplier is not None:
        faults.add(f"{path}.learning_rate", "Give learningRate or learningRateMultiplier, not both.")
    if source is None:
        return 0
    if source.entry.rules.kind != "open":
        for name, value in (("learning_rate", parameters.learning_rate), ("batch_size", parameters.batch_size)):
            if value is not None and not (batch_size_for_all and name == "batch_size"):
                hint = " Use learningRateMultiplier." if name == "learning_rate" else ""
                faults.add(f"{path}.{name}", f"This is for open models, not for {source.base_model}.{hint}")
    return 0 if is_full else _rank(parameters.adapter_size, path, source, faults)


def _check_sampling(spec: ReinforcementTuningSpec, path: str, faults: Violations) -> None:
    """Add the faults of a reward, and of the numbers that only its method has."""
    faults.wrong.extend(config_faults(spec.single_reward_config, spec.composite_reward_config, path))
    for where, one in spec.rewards(path):
        for scorer in UNBUILT_SCORERS:
            if getattr(one, scorer) is not None:
                faults.refuse(
                    f"{where}.{scorer}", "Jobs have no rewards by this scorer yet; use stringMatchRewardScorer."
                )
    parameters, path = spec.parameters, f"{path}.hyper_parameters"
    for name, (least, most) in SAMPLING_BOUNDS.items():
        value = getattr(parameters, name)
        if value is not None and not least <= value <= most:
            faults.add(f"{path}.{name}", f"{value} is not allowed; give a number from {least:g} to {most:g}.")
    _check_answers(parameters, path, faults)
    every, stored = parameters.evaluate_interval, parameters.checkpoint_interval
    if every and stored and stored % every:
        words = f"{stored} is not a multiple of evaluateInterval, {every}; each checkpoint is evaluated."
        faults.add(f"{path}.checkpoint_interval", words)
    if parameters.thinking_level not in WITHOUT_THOUGHTS:
        words = f"{parameters.thinking_level} asks for thoughts, which answers do not have here yet; use MINIMAL."
        faults.add(f"{path}.thinking_level", words)
    if parameters.thinking_budget:
        faults.add(f"{path}.thinking_budget", "Answers have no thoughts here yet; use 0, or leave it out.")


def _check_answers(parameters: ReinforcementTuningHyperParameters, path: str, faults: Violations) -> None:
    prompts, samples = parameters.batch_size, parameters.samples_per_prompt
    if prompts is None or samples is None or prompts < 1 or samples < 1:
        return  # a default is known when the run has a machine
    if prompts * samples % GROUP or prompts * samples > MOST_ANSWERS:
        words = f"batchSize times samplesPerPrompt is {prompts * samples:,}; it must be a multiple of {GROUP}"
        faults.add(f"{path}.samples_per_prompt", f"{words}, at most {MOST_ANSWERS:,}.")


def _rank(size: AdapterSize | None, path: str, source: SourceModel, faults: Violations) -> int:
    if size is None or size.is_unspecified:
        return source.rank
    allowed = [source.rank] if source.parent else source.entry.rules.adapter_sizes
    if size.rank not in allowed:
        listed = ", ".join(str(AdapterSize.of_rank(rank)) for rank in sorted(allowed))
        why = " (the size of the model it continues)" if source.parent else ""
        faults.add(f"{path}.adapter_size", f"{size} is not supported for {source.base_model}; use {listed}{why}.")
    return size.rank


def check_mode(control: Control, job: TuningJob, source: SourceModel | None, kms_key: str, faults: Violations) -> None:
    """Add a fault for each field that does not fit the tuning mode."""
    path = f"{spec_path(job)}.tuning_mode"
    if isinstance(job.tuning_spec, ReinforcementTuningSpec) and control.limits.devices > 1:
        faults.refuse(spec_path(job), "Reinforcement tuning on several devices is not built yet; set devices to 1.")
    if source is None:
        return
    if not job.is_full:
        if source.weights.startswith(FULL):
            faults.refuse(
                path, f"{source.base_model} was tuned whole; an adapter on it is not built yet: use TUNING_MODE_FULL."
            )
        return
    assert job.tuning_spec is not None
    size = job.tuning_spec.parameters.adapter_size
    if source.entry.rules.kind != "open":
        faults.add(path, f"TUNING_MODE_FULL is for open models, not for {source.base_model}; {ADAPTER}.")
    if size is not None and not size.is_unspecified:
        faults.add(f"{spec_path(job)}.hyper_parameters.adapter_size", "Full tuning has no adapter; leave it out.")
    if QUANTISATION_LABEL in job.labels:
        faults.add(f"{ROOT}.labels[{QUANTISATION_LABEL}]", "Full tuning changes all weights; leave the label out.")
    if source.parent is not None and source.parent.adapter_folder:
        faults.refuse(path, f"Full tuning of a model with an adapter is not built yet; {ADAPTER}, or name its base.")
    if kms_key:
        faults.refuse(path, f"Full tuning under a customer key is not built yet; {ADAPTER}, or leave the key out.")
    if control.limits.devices > 1 or control.limits.run_gpus:
        faults.refuse(path, f"Full tuning on GPUs or on several devices is not built yet; {ADAPTER}.")
