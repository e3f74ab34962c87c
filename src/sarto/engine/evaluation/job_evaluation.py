"""The evaluation of a job: answers, the config's metrics and the report after every checkpoint.

All files are in one folder, and existing answers are not generated again: `answers/<system>.jsonl`, `checkpoint-<id>/`
(files of `evaluate_dataset.py`) and `report/` (files of `report/files.py`). The caller passes rows, models and measured
losses, and moves the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from sarto.contract.run_folder import EVALUATION_REPORT_FOLDER
from sarto.engine.evaluation.answers import Answer, load_answers, save_answers
from sarto.engine.evaluation.evaluate_dataset import AGGREGATION_FILE, JUDGE_NOTE, evaluate_dataset
from sarto.engine.evaluation.generate import PAUSES_SECONDS, Generate, answer_rows
from sarto.engine.evaluation.report.best_checkpoint import BestCheckpoint, CheckpointScores, best_checkpoint
from sarto.engine.evaluation.report.files import write_report
from sarto.engine.evaluation.report.report import Report, System, build_report
from sarto.engine.evaluation.rows import EvaluationRow, default_generation_config
from sarto.schema.evaluation import EvaluateDatasetRun, EvaluationConfig
from sarto.schema.generation import GenerationConfig
from sarto.system.files import write_whole

BASE, BASE_FILE = "base", "base.json"


@dataclass(frozen=True)
class CheckpointMeasures:
    """A checkpoint with the measures of its run; losses in nats per token, accuracy between 0 and 1."""

    checkpoint_id: str
    step: int
    epoch: int
    validation_loss: float | None = None
    token_accuracy: float | None = None
    training_loss: float | None = None
    pairs: tuple[int, int] | None = None
    """Of validation pairs: how many have the preferred completion first, and how many there are."""
    digest: str = ""
    """Digest of the adapter; answers of another adapter are not used for this one."""

    @property
    def name(self) -> str:
        return f"checkpoint {self.checkpoint_id}"

    @property
    def folder_name(self) -> str:
        return f"checkpoint-{self.checkpoint_id}"

    @property
    def answers_name(self) -> str:
        return f"{self.folder_name}-{self.digest[:12]}" if self.digest else self.folder_name


def base_measures(folder: Path, measure: Callable[[], tuple[float, float] | None]) -> tuple[float | None, float | None]:
    """Validation loss and token accuracy of the base, measured once for all attempts; None of what cannot be."""
    path = folder / BASE_FILE
    if path.exists():
        loss, accuracy = orjson.loads(path.read_bytes())
        return loss, accuracy
    losses = measure() or (None, None)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, orjson.dumps(losses))
    return losses


@dataclass(frozen=True)
class JobEvaluation:
    """The constants of a job's evaluations. `base` is the untuned model; `judges` has the model of each autorater name
    in the config ("" for the default). `output_uri` is the later location of `folder`."""

    title: str
    folder: Path
    rows: Sequence[EvaluationRow]
    base: Generate
    config: EvaluationConfig | None = None
    judges: Mapping[str, Generate] = field(default_factory=dict)
    dataset_uri: str = ""
    output_uri: str = ""
    concurrency: int = 8
    pauses: tuple[float, ...] = PAUSES_SECONDS
    max_output_tokens: int = 0
    """Limit of an answer if the config sets none; 0 derives it from the bytes of the references."""
    base_measures: tuple[float | None, float | None] = (None, None)
    """Validation loss and token accuracy of the base."""
    on_answer: Callable[[str, Answer], None] | None = None
    """Called with the system's name for each new answer."""

    @property
    def generation_config(self) -> GenerationConfig:
        """Sampling of answers: as in the config, else greedy; their length is always bounded."""
        requested = self.config.inference_generation_config if self.config else None
        default = default_generation_config(self.rows)
        if self.max_output_tokens:
            default = default.model_copy(update={"max_output_tokens": self.max_output_tokens})
        if requested is None:
            return default
        most = requested.max_output_tokens or default.max_output_tokens
        return requested.model_copy(update={"max_output_tokens": most})


async def evaluate_checkpoint(
    job: JobEvaluation, checkpoint: CheckpointMeasures, generate: Generate
) -> EvaluateDatasetRun | None:
    """Generate the answers of the base (once) and of this checkpoint, and run the config over them; None without a
    config.

    Safe to repeat: existing answers are kept. Faults of the user are in the run's `error`."""
    baseline = await _answers(job, BASE, job.base)
    answers = await _answers(job, checkpoint.answers_name, generate)
    if job.config is None:
        return None
    return await evaluate_dataset(
        job.config,
        job.rows,
        answers,
        folder=job.folder / checkpoint.folder_name,
        baseline=baseline,
        judges=job.judges,
        checkpoint_id=checkpoint.checkpoint_id,
        dataset_uri=job.dataset_uri,
        output_uri=f"{job.output_uri}/{checkpoint.folder_name}" if job.output_uri else "",
        concurrency=job.concurrency,
        pauses=job.pauses,
    )


async def report_job(
    job: JobEvaluation, checkpoints: Sequence[CheckpointMeasures], notes: Sequence[str] = ()
) -> Report | None:
    """The standard report over the base and the `checkpoints` with complete answers, written to `report/`. The last of
    them is the subject. None without any."""
    return await asyncio.to_thread(_report, job, checkpoints, notes)


def best_by(report: Report | None, checkpoints: Sequence[CheckpointMeasures]) -> BestCheckpoint | None:
    """The best checkpoint by the report, or by losses alone without a verdict of a report."""
    if report is not None and report.best is not None:
        return report.best
    return best_checkpoint([CheckpointScores(one.name, one.step, one.validation_loss) for one in checkpoints], "")


def _report(job: JobEvaluation, checkpoints: Sequence[CheckpointMeasures], notes: Sequence[str]) -> Report | None:
    systems = [System(BASE, load_answers(_path(job, BASE)), None, None, *job.base_measures)]
    for checkpoint in sorted(checkpoints, key=lambda item: item.step):
        answers = load_answers(_path(job, checkpoint.answers_name))
        if len(answers) == len(job.rows):
            systems.append(
                System(
                    checkpoint.name, answers, checkpoint.step, checkpoint.epoch, checkpoint.validation_loss,
                    checkpoint.token_accuracy, checkpoint.training_loss, checkpoint.pairs,
                )
            )  # fmt: skip
    if len(systems) == 1 or len(systems[0].answers) < len(job.rows):
        return None
    notes = [*notes, *_judged(job, checkpoints)]
    report = build_report(job.rows, systems, title=job.title, dataset=job.dataset_uri, notes=notes)
    write_report(job.folder / EVALUATION_REPORT_FOLDER, report, job.rows, systems)
    return report


def _judged(job: JobEvaluation, checkpoints: Sequence[CheckpointMeasures]) -> list[str]:
    """The agreement of the judges of the config's metrics with themselves, and a note that they are weak."""
    planned = []
    for checkpoint in checkpoints:
        path = job.folder / checkpoint.folder_name / AGGREGATION_FILE
        metrics = orjson.loads(path.read_bytes())["metrics"] if path.exists() else []
        for metric in metrics:
            if metric.get("agreement") is not None:
                alpha = metric["krippendorffAlpha"]
                words = f"{metric['title']} by {metric['judge'] or 'the base'} on {checkpoint.name}"
                beyond = "" if alpha is None else f", alpha {alpha:.2f}"
                planned.append(f"{words}: repeated samples agree in {metric['agreement']:.0%} of pairs{beyond}.")
    return [*planned, JUDGE_NOTE] if planned else []


async def _answers(job: JobEvaluation, name: str, generate: Generate) -> list[Answer]:
    """The answers of all rows. Those on disk are kept, failed ones are generated again."""
    path = _path(job, name)
    known = {answer.line: answer for answer in await asyncio.to_thread(load_answers, path) if not answer.error}
    missing = [row for row in job.rows if row.line not in known]

    def keep(answer: Answer) -> None:
        known[answer.line] = answer
        if job.on_answer is not None:
            job.on_answer(name, answer)

    try:
        await answer_rows(
            missing, generate, config=job.generation_config, concurrency=job.concurrency, pauses=job.pauses,
            on_answer=keep,
        )  # fmt: skip
    finally:  # also after a timeout: finished answers are used again
        if missing:
            save_answers(path, [known[row.line] for row in job.rows if row.line in known])
    return [known[row.line] for row in job.rows]


def _path(job: JobEvaluation, name: str) -> Path:
    return job.folder / "answers" / f"{name}.jsonl"
