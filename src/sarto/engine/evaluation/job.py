"""Evaluation as a job sees it: after every checkpoint its answers, the config's metrics and the report so far.

Everything lies in one folder, and what is there already is not asked again:
`answers/<system>.jsonl`, `checkpoint-<id>/` (the files of `evaluate.py`) and `report/` (those of `export.py`).
Whoever calls it (it never calls back) gives rows, models and measured losses, and carries the folder where it belongs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from sarto.engine.evaluation.answers import Answer, load_answers, save_answers
from sarto.engine.evaluation.asking import PAUSES_SECONDS, Generate, answer_rows
from sarto.engine.evaluation.evaluate import AGGREGATION_FILE, JUDGE_NOTE, evaluate_dataset
from sarto.engine.evaluation.export import write_report
from sarto.engine.evaluation.report import Report, System, build_report
from sarto.engine.evaluation.rows import EvaluationRow, default_generation_config
from sarto.schema.evaluation import EvaluateDatasetRun, EvaluationConfig
from sarto.schema.generation import GenerationConfig

BASE = "base"


@dataclass(frozen=True)
class CheckpointMeasures:
    """A checkpoint and what its run measured; losses in nats per token, accuracy between 0 and 1."""

    checkpoint_id: str
    step: int
    epoch: int
    validation_loss: float | None = None
    token_accuracy: float | None = None
    training_loss: float | None = None
    digest: str = ""
    """Of the adapter; answers of another adapter are not taken for this one's."""

    @property
    def name(self) -> str:
        return f"checkpoint {self.checkpoint_id}"

    @property
    def folder_name(self) -> str:
        return f"checkpoint-{self.checkpoint_id}"

    @property
    def answers_name(self) -> str:
        return f"{self.folder_name}-{self.digest[:12]}" if self.digest else self.folder_name


@dataclass(frozen=True)
class JobEvaluation:
    """What stays the same for all checkpoints of a job. `base` is the untuned model; `judges` answer for the autorater
    models the config names ("" for none named). `output_uri` is where `folder` will be found."""

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
    """Of an answer where the config does not say; 0 goes by the bytes of the references."""
    base_measures: tuple[float | None, float | None] = (None, None)
    """Validation loss and token accuracy of the base."""
    on_answer: Callable[[str, Answer], None] | None = None
    """Hears of each new answer with the name of its system, for progress."""

    @property
    def generation_config(self) -> GenerationConfig:
        """How answers are sampled: as the config says, else greedily; their length is always bounded."""
        given = self.config.inference_generation_config if self.config else None
        default = default_generation_config(self.rows)
        if self.max_output_tokens:
            default = default.model_copy(update={"max_output_tokens": self.max_output_tokens})
        if given is None:
            return default
        most = given.max_output_tokens or default.max_output_tokens
        return given.model_copy(update={"max_output_tokens": most})


async def evaluate_checkpoint(
    job: JobEvaluation, checkpoint: CheckpointMeasures, generate: Generate
) -> EvaluateDatasetRun | None:
    """Answers of the base (once) and of this checkpoint, and the config's run over them; None without a config.

    Safe to repeat: rows that have an answer keep it. The user's faults are in the run's `error`.
    """
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
    """The standard report over the base and those of `checkpoints` that were evaluated whole, written to `report/`; the
    last of them is the subject. None while none was."""
    return await asyncio.to_thread(_report, job, checkpoints, notes)


def _report(job: JobEvaluation, checkpoints: Sequence[CheckpointMeasures], notes: Sequence[str]) -> Report | None:
    systems = [System(BASE, load_answers(_path(job, BASE)), None, None, *job.base_measures)]
    for checkpoint in sorted(checkpoints, key=lambda item: item.step):
        answers = load_answers(_path(job, checkpoint.answers_name))
        if len(answers) == len(job.rows):
            measures = checkpoint.validation_loss, checkpoint.token_accuracy, checkpoint.training_loss
            systems.append(System(checkpoint.name, answers, checkpoint.step, checkpoint.epoch, *measures))
    if len(systems) == 1 or len(systems[0].answers) < len(job.rows):
        return None
    notes = [*notes, *_judged(job, checkpoints)]
    report = build_report(job.rows, systems, title=job.title, dataset=job.dataset_uri, notes=notes)
    write_report(job.folder / "report", report, job.rows, systems)
    return report


def _judged(job: JobEvaluation, checkpoints: Sequence[CheckpointMeasures]) -> list[str]:
    """How far the judges of the config's metrics agree with themselves, and that they are weak."""
    found = []
    for checkpoint in checkpoints:
        path = job.folder / checkpoint.folder_name / AGGREGATION_FILE
        metrics = orjson.loads(path.read_bytes())["metrics"] if path.exists() else []
        for metric in metrics:
            if metric.get("agreement") is not None:
                alpha = metric["krippendorffAlpha"]
                words = f"{metric['title']} by {metric['judge'] or 'the base'} on {checkpoint.name}"
                beyond = "" if alpha is None else f", alpha {alpha:.2f}"
                found.append(f"{words}: repeated samples agree in {metric['agreement']:.0%} of pairs{beyond}.")
    return [*found, JUDGE_NOTE] if found else []


async def _answers(job: JobEvaluation, name: str, generate: Generate) -> list[Answer]:
    """Every row's answer; those on disk are kept, those that failed are asked for again."""
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
    finally:  # also when the time is over: what was answered need not be asked again
        if missing:
            save_answers(path, [known[row.line] for row in job.rows if row.line in known])
    return [known[row.line] for row in job.rows]


def _path(job: JobEvaluation, name: str) -> Path:
    return job.folder / "answers" / f"{name}.jsonl"
