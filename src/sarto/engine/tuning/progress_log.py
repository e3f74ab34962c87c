"""Progress of a run: `progress.jsonl`, flushed line by line, and TensorBoard events beside it.

Steps, evaluations and checkpoints also go into a history file in the resume folder. A later attempt copies the lines
before its resume point to the start of its own progress file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Any

from sarto.contract.run_folder import PROGRESS_FILE
from sarto.contract.tuning_run import Assessment, CheckpointRecord, EvalMetrics, Progress, StepMetrics
from sarto.engine.tuning.methods.method import Method
from sarto.engine.tuning.tensorboard_writer import EventFile
from sarto.system.failpoints import around


class ProgressLog:
    def __init__(self, run_folder: Path, history: Path | None, method: Method) -> None:
        """`history`: this attempt's file in the resume folder. `method` names the series of the events."""
        self.history, self.method = history, method
        self.losses: list[float] = []
        """Losses of all steps so far, including those of earlier attempts."""
        self._progress = (run_folder / PROGRESS_FILE).open("a")
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
        """Write a line of this attempt only: phase, note, data, parameters."""
        self._line(Progress(kind=kind, time=time.time(), **fields))

    def note(self, message: str) -> None:
        self.say("note", message=message)

    def step(self, metrics: StepMetrics) -> None:
        self._remember(Progress(kind="step", time=time.time(), step=metrics))

    def evaluation(self, metrics: EvalMetrics) -> None:
        self._remember(Progress(kind="evaluation", time=time.time(), evaluation=metrics))

    def checkpoint(self, record: CheckpointRecord) -> None:
        self._remember(Progress(kind="checkpoint", time=time.time(), checkpoint=record))

    def assessment(self, assessment: Assessment) -> None:
        self._remember(Progress(kind="assessment", time=time.time(), assessment=assessment))

    def replay(self, lines: bytes) -> None:
        """Write the lines of earlier attempts up to the resume point again."""
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
            self.losses.append(step.loss)
            values = {
                **_measured(step, self.method.series.steps),
                "/learning_rate": step.learning_rate,
                "/gradient_norm": step.gradient_norm,
                "/tokens_per_second": step.tokens_per_second,
            }
            self._events.scalars(step.step, values, entry.time)
        if (evaluation := entry.evaluation) is not None:
            values = _measured(evaluation, self.method.series.evaluations)
            self._events.scalars(evaluation.step, values, entry.time)

        if (scored := entry.assessment) is not None:
            self._events.scalars(
                scored.step, {f"/eval_{name}": mean for name, mean in scored.scores.items()}, entry.time
            )

    def _line(self, entry: Progress) -> None:
        with around(f"tell {entry.kind}"):
            self._progress.write(entry.model_dump_json(exclude_defaults=True) + "\n")
            self._progress.flush()


def _measured(metrics: StepMetrics | EvalMetrics, series: dict[str, str]) -> dict[str, float]:
    """The values of the series that this run has."""
    return {name: value for name, field in series.items() if (value := getattr(metrics, field)) is not None}
