"""The contract between control and engine for a tuning run: its input (`spec.json`), its progress (`progress.jsonl`,
one JSON object a line), and its result (`result.json`, written last and atomically).

All fields are in the engine's terms; `control/runs/run_spec.py` converts the API's terms to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from sarto.contract.common import (
    BaseWeights,
    DataFormat,
    DatasetRef,
    EvaluationPlan,
    Files,
    Instructions,
    ParityCertificate,
    Record,
    Teaching,
    TuningParameters,
)
from sarto.contract.places import FileName


class PastRun(Record):
    """Forecast and measured time of a finished job's tuning, which corrects later forecasts."""

    base: str
    """Digest of the base."""
    processor: str
    threads: int
    precision: str
    forecast_seconds: float
    """Forecast before any correction."""
    tuning_seconds: float


class RunSpec(Record):
    job: str
    """Resource name of the job, for messages and metadata only."""
    epoch: int
    """The lease epoch under which this run was started."""
    run_folder: FileName
    method: str
    """A name in the engine's METHODS; a run refuses any other."""
    base: BaseWeights
    base_source: FileName = ""
    """Folder of a hub snapshot from which `base.folder` is created if it is missing."""
    parent_adapter: FileName | None = None
    """Folder of the PEFT adapter of a tuned model from which to continue."""
    training_dataset: DatasetRef
    validation_dataset: DatasetRef | None = None
    data_format: DataFormat = "auto"
    parameters: TuningParameters
    export_last_checkpoint_only: bool = False
    max_tokens_per_example: int
    max_training_examples: int = 10_000_000
    max_validation_examples: int = 5_000
    cache_folder: FileName
    """Folder of token caches; shared between runs, content-addressed."""
    resume_folder: FileName | None = None
    """Folder of this job's resume points across attempts."""
    resume_seconds: float = 30.0
    threads: int
    instructions: Instructions = Instructions()
    device: str = "auto"
    ranks: int = Field(default=1, ge=1)
    """Number of processes that share every step, each on a GPU of its own; without GPUs they share the processor."""
    shard: bool = False
    """Shard the base over the ranks even if each could hold it whole."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    serve_int8: bool = False
    """The tuned model will be served in int8, and is compared and evaluated in int8."""
    low_memory: bool = False
    evaluation: EvaluationPlan | None = None
    teaching: Teaching | None = None
    """Of a distillation: the rows of its datasets are prompts, which the teacher answers first."""
    past_runs: list[PastRun] = Field(default_factory=list)
    """Runs of the same project, newest first."""
    quotes: bool = True
    """Whether events may quote the data; not those of a job with a customer key."""
    stop_early: bool = False
    """Stop when validation loss turns; otherwise a run only reports the advice."""

    def files(self) -> Files:
        judges = [*(self.evaluation.judges.values() if self.evaluation else ())]
        judges += [self.teaching.model] if self.teaching and self.teaching.model else []
        datasets = [self.training_dataset, *([self.validation_dataset] if self.validation_dataset else [])]
        read = [self.base.folder, self.base_source, self.parent_adapter or "", *(each.path for each in datasets)]
        read += [path for judge in judges for path in (judge.base.folder, judge.adapter_folder)]
        converted = self.base.folder if self.base_source else ""
        write = [self.run_folder, self.resume_folder or "", converted]
        return Files(
            read=[name for name in read if name], write=[name for name in write if name], scratch=[self.cache_folder]
        )


class Distribution(Record):
    """Summary of one integer per row, in the form of the API's dataset distribution."""

    sum: int
    min: float
    max: float
    mean: float
    median: float
    p5: float
    p95: float
    buckets: list[tuple[int, float, float]]
    """(count, left, right); empty buckets are omitted."""


class DataStats(Record):
    """Statistics of the used training rows; `dropped` rows are counted separately."""

    example_count: int
    dropped_count: int
    dropped_indices: list[int]
    """1-based line numbers of every dropped row."""
    dropped_reasons: list[str]
    """One reason per dropped row, in the same order."""
    character_count: int
    token_count: int
    """Rendered tokens of one pass over the data."""
    input_tokens: Distribution
    output_tokens: Distribution
    messages: Distribution
    sample_contents: list[dict[str, Any]]
    """Contents of the first rows in the API's form, each text cut near 400 characters; empty for pairs."""
    sample_pairs: list[dict[str, Any]] = Field(default_factory=list)
    """The first pairs in the same form: contents, and completions with their scores."""
    scores: Distribution | None = None
    """Scores of the completions of pairs; None for rows without scores."""
    sample_prompts: list[dict[str, Any]] = Field(default_factory=list)
    """The first rows in the same form, of data whose rows are prompts."""
    is_prompts: bool = False
    """The rows are prompts; `output_tokens` are those of earlier replies, which are zero."""
    step_count: int
    """Optimiser steps of the whole job."""


class ChosenParameters(Record):
    """The parameters that the run uses, with the reason for each value that was not given."""

    rank: int
    alpha: float
    epoch_count: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    total_steps: int
    precision: str
    device: str
    threads: int
    beta: float | None = None
    """Of a method that learns from pairs."""
    teacher: str | None = None
    """Of a distillation, as the values after it."""
    distillation_level: Literal["sequence", "token"] | None = None
    candidate_count: int | None = None
    teacher_temperature: float | None = None
    """0 is greedy."""
    sft_loss_weight_multiplier: float | None = None
    """Weight of the cross-entropy beside the divergence, at token level."""
    samples_per_prompt: int | None = None
    """This and the next fields: of a method that learns from rewards."""
    max_output_tokens: int | None = None
    evaluate_interval: int | None = None
    checkpoint_interval: int | None = None
    kl_weight: float | None = None
    temperature: float | None = None
    seed: int | None = None
    reasons: dict[str, str]
    details: dict[str, Any] = Field(default_factory=dict)


class StepMetrics(Record):
    step: int
    epoch: int
    """1-based epoch of the step."""
    loss: float
    """Mean in nats over the method's units in the whole optimiser step: supervised tokens, pairs, or tokens of
    answers."""
    accuracy: float = 0.0
    """Share of supervised tokens predicted right under teacher forcing, or of pairs whose preferred completion has the
    higher reward."""
    kl: float | None = None
    """Mean divergence in nats a token: of the student from the teacher in distillation at token level, and from the
    initial model in a method that learns from rewards."""
    margin: float | None = None
    """Mean over pairs of the reward of the preferred completion less that of the other one."""
    chosen_logp: float | None = None
    """Mean log-probability of the preferred completions in nats, over whole completions."""
    rejected_logp: float | None = None
    """The same of the rejected completions."""
    reward: float | None = None
    """This and the next fields: of a method that learns from rewards. Mean reward of the answers."""
    generation_length: float | None = None
    """Mean number of tokens of an answer."""
    thinking_length: float | None = None
    reward_latency: float | None = None
    """Mean seconds for the reward of an answer, and the 95th percentile."""
    reward_latency_p95: float | None = None
    sampling_latency: float | None = None
    sampling_latency_p95: float | None = None
    cut_share: float | None = None
    """Share of the answers that were cut at the limit of their length."""
    failed_share: float | None = None
    """Share of the answers whose reward could not be computed."""
    learnable: float | None = None
    """Share of the prompts whose answers differ in their reward."""
    mismatch: float | None = None
    """Mean difference of the log-probabilities of sampler and trainer in nats."""
    supervised_tokens: int
    """Number of the units."""
    tokens: int
    """Rendered tokens of the step's examples, shared prefixes counted every time."""
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float
    flop_utilisation: float = 0.0
    """Share of the measured product ceiling that the computed tokens account for, at most 1; 0 if it was not
    measured."""
    peak_memory_bytes: int = 0


class EvalMetrics(Record):
    step: int
    epoch: int
    loss: float
    """The negative reward of a method that learns from rewards."""
    accuracy: float = 0.0
    kl: float | None = None
    margin: float | None = None
    chosen_logp: float | None = None
    rejected_logp: float | None = None
    reward: float | None = None
    """This and the next fields: as those of StepMetrics, for one greedy answer to each prompt."""
    generation_length: float | None = None
    thinking_length: float | None = None
    reward_latency: float | None = None
    reward_latency_p95: float | None = None
    sampling_latency: float | None = None
    sampling_latency_p95: float | None = None
    cut_share: float | None = None
    failed_share: float | None = None
    supervised_tokens: int


@dataclass(frozen=True)
class Series:
    """The time series of a method: name → field."""

    steps: dict[str, str]
    """Fields of StepMetrics; one that is None has no value in this run."""
    evaluations: dict[str, str]
    """Fields of EvalMetrics."""


_SUPERVISED = Series(
    steps={
        "/train_total_loss": "loss",
        "/train_fraction_of_correct_next_step_preds": "accuracy",
        "/train_num_predictions": "supervised_tokens",
    },
    evaluations={
        "/eval_total_loss": "loss",
        "/eval_fraction_of_correct_next_step_preds": "accuracy",
        "/eval_num_predictions": "supervised_tokens",
    },
)
ANSWERS = {
    "mean_reward": "reward",
    "generation_length": "generation_length",
    "thinking_token_length": "thinking_length",
    "mean_reward_latency": "reward_latency",
    "p95_reward_latency": "reward_latency_p95",
    "mean_sampling_latency": "sampling_latency",
    "p95_sampling_latency": "sampling_latency_p95",
    "cut_answers": "cut_share",
    "failed_rewards": "failed_share",
}
"""Series of sampled answers, in training and in evaluation."""
SERIES: dict[str, Series] = {
    "supervised": _SUPERVISED,
    "preference": Series(
        steps={
            "/preference_optimization_train_loss": "loss",
            "/train_reward_accuracy": "accuracy",
            "/train_reward_margin": "margin",
            "/train_chosen_log_probability": "chosen_logp",
            "/train_rejected_log_probability": "rejected_logp",
        },
        evaluations={
            "/eval_total_loss": "loss",
            "/eval_reward_accuracy": "accuracy",
            "/eval_reward_margin": "margin",
            "/eval_chosen_log_probability": "chosen_logp",
            "/eval_rejected_log_probability": "rejected_logp",
        },
    ),
    "distillation": Series(
        steps=_SUPERVISED.steps | {"/train_kl_loss": "kl"},
        evaluations=_SUPERVISED.evaluations | {"/eval_kl_loss": "kl"},
    ),
    "reinforcement": Series(
        steps={
            **{f"/train_{name}": field for name, field in ANSWERS.items()},
            "/learnable_prompt_ratio": "learnable",
            "/train_kl": "kl",
            "/train_sampler_mismatch": "mismatch",
        },
        evaluations={f"/eval_{name}": field for name, field in ANSWERS.items()},
    ),
}
"""The time series of each method, by its name. New methods come last, because the order decides the ids of an
experiment's time series."""


class CheckpointRecord(Record):
    checkpoint_id: str
    """"1", "2", … in the order of creation."""
    epoch: int
    step: int
    folder: str
    """Relative to the run folder; has the PEFT adapter files."""
    files: dict[str, str]
    """File name → sha256 hex."""
    evaluation: EvalMetrics | None = None
    training_loss: float | None = None
    """Training loss of the step before it."""
    certificate: ParityCertificate | None = None


class Assessment(Record):
    """A checkpoint whose answers were scored. `run` is the API's EvaluateDatasetRun, if there is a config."""

    checkpoint_id: str
    folder: str
    """In the evaluation folder; has the files of the config's metrics."""
    run: dict[str, Any] | None = None
    step: int = 0
    scores: dict[str, float] = Field(default_factory=dict)
    """Mean of each metric of the standard report."""


class Progress(Record):
    """One line of `progress.jsonl`. `kind` decides which of the other fields is set; `time` is seconds since 1970."""

    kind: Literal["phase", "note", "data", "parameters", "step", "evaluation", "checkpoint", "assessment", "warning"]
    time: float
    phase: Literal["PROCESSING_DATASET", "TUNING", "POST_PROCESSING"] | None = None
    message: str = ""
    data: DataStats | None = None
    parameters: ChosenParameters | None = None
    step: StepMetrics | None = None
    evaluation: EvalMetrics | None = None
    checkpoint: CheckpointRecord | None = None
    assessment: Assessment | None = None


class Remedy(Record):
    """A change with which a run that was refused for lack of memory would fit. Control knows what its user calls it."""

    kind: Literal["quantisation", "devices", "smaller_base", "low_memory", "memory_limit"]
    value: str = ""
    needed_bytes: int = 0
    """On each device; 0 where it is not known."""


class RunResult(Record):
    """The end of a run. With `error` (a google.rpc.Status) the job fails and is not retried: the fault is in the user's
    data or request. A run that ended otherwise has no result."""

    error: dict[str, Any] | None = None
    remedies: list[Remedy] = Field(default_factory=list)
    """Beside an `error` for lack of memory."""
    checkpoints: list[CheckpointRecord] = Field(default_factory=list)
    best_checkpoint_id: str | None = None
    best_reason: str = ""
    has_report: bool = False
    """Whether the evaluation folder has the standard report."""
    data: DataStats | None = None
    parameters: ChosenParameters | None = None
    report_file: str | None = None
    """The data report as JSON, relative to the run folder."""
    peak_memory_bytes: int = 0
    wall_seconds: float = 0.0
