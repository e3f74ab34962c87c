"""Default parameters of a run that learns from rewards, each with a reason. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field

from sarto.contract.common import ReinforcementParameters, TuningParameters
from sarto.errors import InvalidArgument

STEPS, MOST_EPOCHS, MOST_STEPS = 110, 10, 500
"""Steps of a run without a number of epochs or steps, but at most so many epochs; and the limit for any run."""
WARMUP_STEPS = 10
SMALL = (8, 8, 512)
"""Prompts of a step, answers to each, and tokens of an answer without an accelerator."""
LARGE = (32, 16, 32_768)
"""The same with one, as in the tuning API."""
SMALL_REASON = "for a machine without an accelerator"
GROUP = 16
"""The number of answers of a step is a multiple of it."""
MOST_ANSWERS = 8192


@dataclass(frozen=True)
class SamplingParameters:
    batch_size: int
    samples_per_prompt: int
    max_output_tokens: int
    steps: int
    epochs: int
    """Passes over the prompts that are begun."""
    evaluate_interval: int
    checkpoint_interval: int
    reasons: dict[str, str] = field(default_factory=dict)


def choose_sampling(
    prompts: int, requested: TuningParameters, given: ReinforcementParameters, *, has_accelerator: bool
) -> SamplingParameters:
    """The parameters for this number of prompts. Raises InvalidArgument for numbers that only fit other data."""
    reasons: dict[str, str] = {}
    why = "the default with an accelerator" if has_accelerator else SMALL_REASON
    batch, samples, tokens = LARGE if has_accelerator else SMALL
    if requested.batch_size is not None:
        batch = requested.batch_size
    else:
        reasons["batch_size"] = f"{batch} prompts a step, {why}"
    if given.samples_per_prompt is not None:
        samples = given.samples_per_prompt
    else:
        reasons["samples_per_prompt"] = f"{samples} answers to each prompt, {why}"
    if given.max_output_tokens is not None:
        tokens = given.max_output_tokens
    else:
        reasons["max_output_tokens"] = f"at most {tokens} tokens of an answer, {why}"
    if batch * samples % GROUP or batch * samples > MOST_ANSWERS:
        raise InvalidArgument(
            f"batchSize times samplesPerPrompt is {batch} x {samples}; it must be a multiple of {GROUP} and at most "
            f"{MOST_ANSWERS:,}. Give both numbers."
        )
    steps = _steps(prompts, batch, requested, given, reasons)
    per_epoch = min(steps, -(-prompts // batch))
    evaluate, checkpoint = given.evaluate_interval, given.checkpoint_interval
    if evaluate is None:
        evaluate = checkpoint or per_epoch
        reasons["evaluate_interval"] = f"every {evaluate} steps: " + (
            "at each checkpoint" if checkpoint else "once in each pass over the prompts"
        )
    if checkpoint is None:
        checkpoint = -(-per_epoch // evaluate) * evaluate
        reasons["checkpoint_interval"] = f"every {checkpoint} steps: once in each pass over the prompts"
    return SamplingParameters(
        batch, samples, tokens, steps, -(-steps * batch // prompts), evaluate, checkpoint, reasons
    )


def _steps(
    prompts: int, batch: int, requested: TuningParameters, given: ReinforcementParameters, reasons: dict[str, str]
) -> int:
    if given.step_count is not None:
        steps = given.step_count
    elif requested.epoch_count is not None:
        steps = -(-requested.epoch_count * prompts // batch)
    else:
        steps = min(STEPS, -(-MOST_EPOCHS * prompts // batch))
        reasons["step_count"] = f"{steps}: {STEPS} steps, but at most {MOST_EPOCHS} passes over {prompts:,} prompts"
    if steps > MOST_STEPS:
        raise InvalidArgument(
            f"epochCount {requested.epoch_count} with {prompts:,} prompts in batches of {batch} makes {steps:,} steps; "
            f"at most {MOST_STEPS} are allowed. Use fewer epochs or a larger batchSize."
        )
    return steps
