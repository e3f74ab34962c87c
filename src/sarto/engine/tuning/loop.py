"""The tuning loop: steps, evaluations, checkpoints and resume points in a fixed order, with progress in the log.

`Trainer` decides all numbers; the clock only decides when a resume point is written, and the reported speed.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from sarto.contract.tuning_run import CheckpointRecord, EvalMetrics, StepMetrics
from sarto.engine.tuning import divergence
from sarto.engine.tuning.checkpointing import Checkpointing
from sarto.engine.tuning.packing import TokenizedRows
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.schedule import PATIENCE, turned
from sarto.engine.tuning.trainer import StepOutcome, Trainer
from sarto.errors import FailedPrecondition

ARITHMETIC = ("overflow", "cannot be converted", "out of range", "must be finite")
"""Texts in torch's errors for numbers that do not fit; any other RuntimeError may be the machine's fault."""
SMOOTHING = 0.9
"""Smoothing factor of the reported speed, from step to step."""


@dataclass(frozen=True)
class Milestones:
    """Steps with an action after them."""

    evaluations: frozenset[int]
    checkpoints: frozenset[int]
    stop_early: bool


def tune(
    trainer: Trainer,
    validation: TokenizedRows | None,
    milestones: Milestones,
    progress_log: ProgressLog,
    checkpointing: Checkpointing,
    meter: Meter,
    assess: Callable[[CheckpointRecord], None] | None = None,
) -> None:
    """Train from the trainer's position to the end. `assess` is called with every checkpoint after it is published.

    Raises FailedPrecondition when numbers are not finite, when the first step cannot be computed, and when the final
    loss is above the first by HOPELESS_NATS."""
    schedule = trainer.schedule
    advised = False
    while trainer.completed < schedule.total_steps:
        meter.start()
        outcome = trainer.step() if trainer.completed else _first_step(trainer)
        step, epoch = trainer.completed, schedule.epoch(trainer.completed)
        progress_log.step(meter.metrics(step, epoch, outcome, schedule.total_steps - step))
        evaluation = None
        # Every checkpoint is evaluated too: the best one is chosen by validation loss.
        if validation is not None and (step in milestones.evaluations or step in milestones.checkpoints):
            progress_log.say("note", message=f"After step {step}: computing the validation loss.")
            metrics = trainer.evaluate(validation)
            evaluation = EvalMetrics(
                step=step, epoch=epoch, loss=metrics.loss, supervised_tokens=metrics.units, **metrics.measured
            )
            checkpointing.evaluations.append(evaluation)
            progress_log.evaluation(evaluation)
        over = turned(checkpointing.evaluations)
        stop = over and milestones.stop_early
        if step in milestones.checkpoints or stop:  # an early stop exports too, else its last steps would be lost
            record = checkpointing.export(trainer.adapter, step, epoch, evaluation, outcome.loss)
            progress_log.checkpoint(record)
            if assess is not None:
                assess(record)
        if over and not advised:
            advised = True
            progress_log.say("note", message=_advice(checkpointing.evaluations, stop))
        if stop:
            break
        # Last: a resume point then has the evaluation and the checkpoint of its step, and no attempt repeats them.
        checkpointing.save_if_due(trainer, progress_log)
    _check_divergence(progress_log, schedule.learning_rate)


def _first_step(trainer: Trainer) -> StepOutcome:
    """The first step. An arithmetic error in it would occur again, so it is an error of the job, not a lost run."""
    try:
        return trainer.step()
    except (ArithmeticError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in ARITHMETIC):
            raise  # missing memory and the like may be the machine's fault, for which a run is retried
        raise FailedPrecondition(
            f"The first step cannot be computed ({error}) with a learning rate of {trainer.schedule.learning_rate:.3g};"
            " try a smaller learning rate multiplier."
        ) from error


def _check_divergence(progress_log: ProgressLog, learning_rate: float) -> None:
    first, last = divergence.rise(progress_log.losses)
    words = divergence.words(first, last, learning_rate)
    if last > first + divergence.HOPELESS_NATS:
        raise FailedPrecondition(words)
    if last > first + divergence.SUSPECT_NATS:
        progress_log.say("warning", message=words)


class Meter:
    """Speed, remaining time, utilisation and memory. The warm-up of the first step does not count for the speed.

    Utilisation is relative to the measured ceiling, or to the fastest step if that was faster, so it never exceeds 1.
    """

    def __init__(self, flops_per_token: float, flops_per_target: float, peak_flops: float) -> None:
        self.flops_per_token, self.flops_per_target, self.peak_flops = flops_per_token, flops_per_target, peak_flops
        self._rate = 0.0
        self._tokens_per_step = 0.0
        self._started = 0.0
        self._measured = 0

    def start(self) -> None:
        self._started = time.perf_counter()

    def metrics(self, step: int, epoch: int, outcome: StepOutcome, steps_left: int) -> StepMetrics:
        seconds = time.perf_counter() - self._started
        now = outcome.rendered_tokens / seconds
        keep = SMOOTHING if self._measured > 1 else 0.0  # the second step replaces the first, which is warm-up
        self._rate = keep * self._rate + (1 - keep) * now
        self._tokens_per_step = keep * self._tokens_per_step + (1 - keep) * outcome.rendered_tokens
        self._measured += 1
        useful = outcome.computed_tokens * self.flops_per_token + outcome.target_tokens * self.flops_per_target
        if self.peak_flops:
            self.peak_flops = max(self.peak_flops, useful / seconds)
        return StepMetrics(
            step=step,
            epoch=epoch,
            loss=outcome.loss,
            **outcome.measured,
            supervised_tokens=outcome.supervised_tokens,
            tokens=outcome.rendered_tokens,
            learning_rate=outcome.learning_rate,
            gradient_norm=outcome.gradient_norm,
            tokens_per_second=self._rate,
            seconds_left=steps_left * self._tokens_per_step / self._rate,
            flop_utilisation=useful / seconds / self.peak_flops if self.peak_flops else 0.0,
            peak_memory_bytes=peak_memory_bytes(),
        )


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _advice(evaluations: list[EvalMetrics], stopped: bool) -> str:
    best = min(evaluations, key=lambda each: each.loss)
    remedy = "stopped here" if stopped else "fewer epochs would serve this data better"
    if best.reward is not None:
        return f"validation reward has fallen since its best, {best.reward:.3f} at step {best.step}: {remedy}"
    return (
        f"validation loss has risen for {PATIENCE} evaluations since its best, {best.loss:.4f} at step {best.step} "
        f"(epoch {best.epoch}): {remedy}"
    )
