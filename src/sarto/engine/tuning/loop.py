"""The tuning itself: steps, evaluations, checkpoints and resume points in their fixed order, told to the journal.

Everything that decides a number is in `Trainer`; the clock only decides when a resume point is written and what the
progress says about speed. Used by `engine/run.py`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from sarto.engine.tuning.journal import Journal
from sarto.engine.tuning.keeper import Keeper
from sarto.engine.tuning.schedule import PATIENCE, turned
from sarto.engine.tuning.trainer import Examples, StepOutcome, Trainer
from sarto.schema.runs import CheckpointRecord, EvalMetrics, StepMetrics

SMOOTHING = 0.9
"""Of the reported speed, from step to step."""


@dataclass(frozen=True)
class Milestones:
    """Steps after which something happens."""

    evaluations: frozenset[int]
    checkpoints: frozenset[int]
    stop_early: bool


def tune(
    trainer: Trainer,
    validation: Examples | None,
    milestones: Milestones,
    journal: Journal,
    keeper: Keeper,
    meter: Meter,
    assess: Callable[[CheckpointRecord], None] | None = None,
) -> None:
    """From where the trainer stands to the end; `assess` sees every checkpoint once it is announced.

    Raises FailedPrecondition when numbers stop being finite.
    """
    schedule = trainer.schedule
    advised = False
    while trainer.completed < schedule.total_steps:
        meter.start()
        outcome = trainer.step()
        step, epoch = trainer.completed, schedule.epoch(trainer.completed)
        journal.step(meter.metrics(step, epoch, outcome, schedule.total_steps - step))
        evaluation = None
        if validation is not None and (step in milestones.evaluations or step in milestones.checkpoints):
            loss, accuracy, count = trainer.evaluate(validation)
            evaluation = EvalMetrics(step=step, epoch=epoch, loss=loss, accuracy=accuracy, supervised_tokens=count)
            keeper.evaluations.append(evaluation)
            journal.evaluation(evaluation)
        over = turned(keeper.evaluations)
        stop = over and milestones.stop_early
        if step in milestones.checkpoints or stop:
            record = keeper.export(trainer.adapter, step, epoch, evaluation, outcome.loss)
            journal.checkpoint(record)
            if assess is not None:
                assess(record)
        if over and not advised:
            advised = True
            journal.say("note", message=_advice(keeper.evaluations, stop))
        if stop:
            return
        keeper.save_if_due(trainer, journal)


class Meter:
    """Speed, time left, utilisation and memory; the first step's warm-up does not count for the speed."""

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
        keep = SMOOTHING if self._measured > 1 else 0.0
        self._rate = keep * self._rate + (1 - keep) * now
        self._tokens_per_step = keep * self._tokens_per_step + (1 - keep) * outcome.rendered_tokens
        self._measured += 1
        useful = outcome.rendered_tokens * self.flops_per_token + outcome.supervised_tokens * self.flops_per_target
        return StepMetrics(
            step=step,
            epoch=epoch,
            loss=outcome.loss,
            accuracy=outcome.accuracy,
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


def best_checkpoint(checkpoints: list[CheckpointRecord]) -> tuple[str | None, str]:
    """The id, and the evidence in words: the lowest validation loss, or the last one where nothing was measured."""
    if not checkpoints:
        return None, ""
    measured = [(each.evaluation, each) for each in checkpoints if each.evaluation is not None]
    if not measured:
        return checkpoints[-1].checkpoint_id, "the last checkpoint: there was no validation data to compare them by"
    found, best = min(measured, key=lambda pair: pair[0].loss)
    others = ", ".join(f"{each.loss:.4f}" for each, record in measured if record is not best)
    against = f"; the others have {others}" if others else "; it is the only one"
    return best.checkpoint_id, f"lowest validation loss, {found.loss:.4f} after epoch {best.epoch}{against}"


def _advice(evaluations: list[EvalMetrics], stopped: bool) -> str:
    best = min(evaluations, key=lambda each: each.loss)
    remedy = "stopped here" if stopped else "fewer epochs would serve this data better"
    return (
        f"validation loss has risen for {PATIENCE} evaluations since its best, {best.loss:.4f} at step {best.step} "
        f"(epoch {best.epoch}): {remedy}"
    )
