"""What a run says while it works: `progress.jsonl`, flushed line by line, and TensorBoard events beside it.

Steps, evaluations and checkpoints also go to a history file in the resume folder, so that a later attempt can tell the
whole story: its own progress file begins with the lines before its resume point.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Any

from sarto.engine.tuning.tensorboard import EventFile
from sarto.failpoints import around
from sarto.schema.runs import Assessment, CheckpointRecord, EvalMetrics, Progress, StepMetrics


class Journal:
    def __init__(self, run_folder: Path, history: Path | None) -> None:
        """`history`: this attempt's own file in the resume folder."""
        self.history = history
        self._progress = (run_folder / "progress.jsonl").open("a")
        self._events = EventFile(run_folder / "tensorboard", time.time())
        self._history: IO[bytes] | None = None
        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
            self._history = history.open("wb")

    def close(self) -> None:
        self._progress.close()
        self._events.close()
        if self._history:
            self._history.close()

    def say(self, kind: Any, **fields: Any) -> None:
        """A line that belongs to this attempt only: phase, note, data, parameters."""
        self._line(Progress(kind=kind, time=time.time(), **fields))

    def step(self, metrics: StepMetrics) -> None:
        self._remember(Progress(kind="step", time=time.time(), step=metrics))

    def evaluation(self, metrics: EvalMetrics) -> None:
        self._remember(Progress(kind="evaluation", time=time.time(), evaluation=metrics))

    def checkpoint(self, record: CheckpointRecord) -> None:
        self._remember(Progress(kind="checkpoint", time=time.time(), checkpoint=record))

    def assessment(self, found: Assessment) -> None:
        self._remember(Progress(kind="assessment", time=time.time(), assessment=found))

    def replay(self, lines: bytes) -> None:
        """Tell again what an earlier attempt did up to its resume point."""
        for line in lines.splitlines():
            self._remember(Progress.model_validate_json(line))

    @property
    def history_bytes(self) -> int:
        return self._history.tell() if self._history else 0

    def _remember(self, entry: Progress) -> None:
        self._line(entry)
        if self._history:
            self._history.write(entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
            self._history.flush()
        if (step := entry.step) is not None:
            values = {
                "/train_total_loss": step.loss,
                "/train_fraction_of_correct_next_step_preds": step.accuracy,
                "/train_num_predictions": step.supervised_tokens,
                "/learning_rate": step.learning_rate,
                "/gradient_norm": step.gradient_norm,
                "/tokens_per_second": step.tokens_per_second,
            }
            self._events.scalars(step.step, values, entry.time)
        if (found := entry.evaluation) is not None:
            values = {
                "/eval_total_loss": found.loss,
                "/eval_fraction_of_correct_next_step_preds": found.accuracy,
                "/eval_num_predictions": found.supervised_tokens,
            }
            self._events.scalars(found.step, values, entry.time)

        if (scored := entry.assessment) is not None:
            self._events.scalars(
                scored.step, {f"/eval_{name}": mean for name, mean in scored.scores.items()}, entry.time
            )

    def _line(self, entry: Progress) -> None:
        with around(f"tell {entry.kind}"):
            self._progress.write(entry.model_dump_json(exclude_defaults=True) + "\n")
            self._progress.flush()
