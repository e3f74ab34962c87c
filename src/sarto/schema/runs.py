"""The contract of control and engine: what a run is given (`spec.json`), what it says while it works (`progress.jsonl`,
one JSON object a line), and what it leaves (`result.json`, written last and whole).

Everything here is in the engine's words; Vertex's words were turned into numbers by `control/supervisor.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

REPORT_FILE = "data_report.json"
"""In the run folder, from the moment the data was read."""
EVALUATION_FOLDER = "evaluation"
"""In the resume folder, so that no later attempt asks again; in the run folder where there is none."""


ASKED_FILE, ANSWERED_FILE = "asked.jsonl", "answered.jsonl"
"""In the run folder: a run's questions to models elsewhere, and the service's answers to them."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseWeights(_Record):
    """A base on disk: a folder with `config.json`, `model*.safetensors`, `tokenizer.json`, `chat_template.jinja`."""

    name: str
    """What it is called in labels and messages, for example `SmolLM2-135M-Instruct`."""
    folder: str
    digest: str
    """Hex digest that names the weights for caches and certificates."""
    quantisation: Literal["int8", "nf4"] | None = None
    """The matrices of the layers are kept in 8 or 4 bits, and what they then say is the base."""


class DatasetRef(_Record):
    """A dataset as the run reads it: the user's name for messages, and a local file with exactly those bytes."""

    uri: str
    path: str
    size_bytes: int
    digest: str = ""


class TuningParameters(_Record):
    """Numbers of a run. None means: let the run choose from the data (and say so in a `parameters` event)."""

    rank: int
    alpha: float
    target_modules: list[str] = Field(default_factory=list)
    """Projections that get an adapter, by their last name (`q_proj` …); empty means all linear projections."""
    epoch_count: int | None = None
    learning_rate: float | None = None
    learning_rate_reason: str = ""
    """Why it is this one, where its user did not say."""
    learning_rate_multiplier: float = 1.0
    """Multiplies the learning rate, be it given or chosen."""
    batch_size: int | None = None
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0


class JudgeModel(_Record):
    """A model that scores answers: a base, and the folder of an adapter for a tuned one."""

    base: BaseWeights
    adapter_folder: str = ""
    adapter_digest: str = ""


class EvaluationPlan(_Record):
    """What is evaluated after every checkpoint. Without `config` it is the standard report alone."""

    config: dict[str, Any] | None = None
    """An EvaluationConfig as the API writes it."""
    judges: dict[str, JudgeModel] = Field(default_factory=dict)
    """By the names the config gives them; the base of the job answers for none named."""
    outside_judges: list[str] = Field(default_factory=list)
    """Judges that the service asks for the run, which has no network."""
    output_uri: str = ""
    """Where the files of the config's metrics will be found."""
    max_seconds: float = 0.0
    """Longest that the evaluation of a checkpoint may take; 0 is without limit."""


class RunSpec(_Record):
    job: str
    """Resource name of the job, for messages and metadata only."""
    epoch: int
    """The lease epoch this run was started under."""
    run_folder: str
    method: Literal["supervised"] = "supervised"
    base: BaseWeights
    base_source: str = ""
    """Folder of a hub snapshot that `base.folder` is made from if it is not there yet."""
    parent_adapter: str | None = None
    """Folder of the PEFT adapter to start from, when a tuned model is tuned further."""
    training_dataset: DatasetRef
    validation_dataset: DatasetRef | None = None
    data_format: Literal["auto", "translation"] = "auto"
    parameters: TuningParameters
    export_last_checkpoint_only: bool = False
    max_tokens_per_example: int
    max_training_examples: int = 10_000_000
    max_validation_examples: int = 5_000
    cache_folder: str
    """Where token caches live; shared between runs, content-addressed."""
    resume_folder: str | None = None
    """Where resume points of this job are kept across attempts."""
    resume_seconds: float = 30.0
    threads: int
    device: str = "auto"
    ranks: int = Field(default=1, ge=1)
    """Processes that share every step, each on a GPU of its own; without GPUs they share the processor."""
    shard: bool = False
    """Spread the base over the ranks even where each could hold it whole."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    serve_int8: bool = False
    """The tuned model will be served with weights in int8; so it is compared and evaluated."""
    low_memory: bool = False
    evaluation: EvaluationPlan | None = None
    stop_early: bool = False
    """Stop when validation loss turns; otherwise a run only reports the advice."""


class Distribution(_Record):
    """Summary of one integer per row; the shape of the API's dataset distribution."""

    sum: int
    min: float
    max: float
    mean: float
    median: float
    p5: float
    p95: float
    buckets: list[tuple[int, float, float]]
    """(count, left, right); empty buckets are left out."""


class DataStats(_Record):
    """Of the training rows that are used; `dropped` rows are counted apart."""

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
    """Contents of the first rows as the API shows them, each text cut near 400 characters."""
    step_count: int
    """Optimiser steps of the whole job."""


class ChosenParameters(_Record):
    """What the run really uses, with the reason for each value nobody gave."""

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
    reasons: dict[str, str]
    details: dict[str, Any] = Field(default_factory=dict)


class StepMetrics(_Record):
    step: int
    epoch: int
    """1-based epoch the step belongs to."""
    loss: float
    """Mean cross-entropy in nats over the supervised tokens of the whole optimiser step."""
    accuracy: float
    """Share of supervised tokens predicted right under teacher forcing."""
    supervised_tokens: int
    tokens: int
    """Rendered tokens of the step's examples, shared prefixes counted every time."""
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds_left: float
    flop_utilisation: float = 0.0
    """Share of the measured product ceiling that the useful tokens account for; 0 where it was not measured."""
    peak_memory_bytes: int = 0


class EvalMetrics(_Record):
    step: int
    epoch: int
    loss: float
    accuracy: float
    supervised_tokens: int


class ParityCertificate(_Record):
    """Serving against training on held-out rows: prompts have equal tokens (else there is no certificate), and the
    logits of the replies are compared token by token."""

    rows: int
    reply_tokens: int
    precision: str
    max_logit_difference: float
    max_logit: float
    tolerance: float
    """The largest difference that passes."""
    mean_kl_nats: float
    """Mean divergence of serving's distribution from training's, per reply token."""
    kl_tolerance_nats: float
    training_perplexity: float | None = None
    """Of the replies, as training has it and as serving has it: what serving's precision costs."""
    serving_perplexity: float | None = None
    same_choice_share: float
    """Share of reply tokens where both find the same token likeliest."""
    passed: bool


class CheckpointRecord(_Record):
    checkpoint_id: str
    """"1", "2", … in the order they were made."""
    epoch: int
    step: int
    folder: str
    """Relative to the run folder; holds the PEFT adapter files."""
    files: dict[str, str]
    """File name → sha256 hex."""
    evaluation: EvalMetrics | None = None
    training_loss: float | None = None
    """Of the step after which it was made."""
    certificate: ParityCertificate | None = None


class Assessment(_Record):
    """A checkpoint whose answers were scored. `run` is the API's EvaluateDatasetRun, where a config asked for one."""

    checkpoint_id: str
    folder: str
    """In the evaluation folder; holds the files of the config's metrics."""
    run: dict[str, Any] | None = None
    step: int = 0
    scores: dict[str, float] = Field(default_factory=dict)
    """Mean of each metric of the standard report."""


class OutsideQuestion(_Record):
    """A line of `asked.jsonl`: what a model elsewhere is to be asked. `request` is a GenerateContentRequest."""

    number: int
    judge: str
    request: dict[str, Any]


class OutsideAnswer(_Record):
    """A line of `answered.jsonl`, written by the service: a GenerateContentResponse, or the status of an error."""

    number: int
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class EvaluationSpec(_Record):
    """What an evaluation outside a tuning job is given: `spec.json` in its folder, which gets `out/` and, last,
    `result.json`."""

    title: str
    folder: str
    rows: str
    """File of the rows to ask and score."""
    dataset_uri: str
    output_uri: str
    """Where `out/` will be found."""
    models: list[str] = Field(default_factory=list)
    """Who answers the rows, by names that the service is asked under; without any the rows hold answers."""
    config: dict[str, Any] = Field(default_factory=dict)
    """An EvaluationConfig as the API writes it; may be without metrics where models answer."""
    max_rows: int


class EvaluationResult(_Record):
    """With `error` (a google.rpc.Status) there is nothing to publish. `runs` are EvaluateDatasetRuns by model, of rows
    with answers under the empty name."""

    error: dict[str, Any] | None = None
    rows: int = 0
    left_out: int = 0
    """Rows that could not be read."""
    runs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    has_report: bool = False


class Progress(_Record):
    """One line of `progress.jsonl`. `kind` says which of the other fields is set; `time` is seconds since 1970."""

    kind: Literal["phase", "note", "data", "parameters", "step", "evaluation", "checkpoint", "assessment"]
    time: float
    phase: Literal["PROCESSING_DATASET", "TUNING", "POST_PROCESSING"] | None = None
    message: str = ""
    data: DataStats | None = None
    parameters: ChosenParameters | None = None
    step: StepMetrics | None = None
    evaluation: EvalMetrics | None = None
    checkpoint: CheckpointRecord | None = None
    assessment: Assessment | None = None


class RunResult(_Record):
    """The end of a run. With `error` (a google.rpc.Status) the job fails and is not tried again: the fault is in the
    user's data or request. A run that died of anything else leaves no result."""

    error: dict[str, Any] | None = None
    checkpoints: list[CheckpointRecord] = Field(default_factory=list)
    best_checkpoint_id: str | None = None
    best_reason: str = ""
    has_report: bool = False
    """Whether the evaluation folder holds the standard report."""
    data: DataStats | None = None
    parameters: ChosenParameters | None = None
    report_file: str | None = None
    """The data report as JSON, relative to the run folder."""
    peak_memory_bytes: int = 0
    wall_seconds: float = 0.0


class DatasetQuestion(_Record):
    """What is asked of the data stage outside a run: the report on a dataset, or the proof of one of its rows."""

    training: DatasetRef
    validation: DatasetRef | None = None
    data_format: Literal["auto", "translation"] = "auto"
    parameters: TuningParameters
    max_tokens_per_example: int
    max_training_examples: int
    max_validation_examples: int
    cache_folder: str
    refusal: str = ""
    """Why a job on this data would be refused when it is created; empty if it would not."""
    row: int = 1
    """1-based line of the training file that is to be shown."""


ExportFormat = Literal["adapter", "merged-safetensors", "gguf-f16", "gguf-q8-0"]


class ExportSpec(_Record):
    """What an export is given: `spec.json` in its folder, which gets `files/` and, last, `result.json`."""

    model: str
    title: str = ""
    format: ExportFormat
    base: BaseWeights
    adapter_folder: str
    folder: str
    held_out: str
    """File of a few dataset rows on which the export is compared with the served model."""
    held_out_uri: str
    data_format: Literal["auto", "translation"] = "auto"
    license: str = ""
    card: dict[str, Any] = Field(default_factory=dict)
    """Facts for the model card: lineage, data, hyperparameters, metrics."""
    threads: int


class ExportProgress(_Record):
    percent: int
    message: str


class ExportResult(_Record):
    """With `error` (a google.rpc.Status) nothing may be published."""

    error: dict[str, Any] | None = None
    files: list[str] = Field(default_factory=list)
    comparison: ParityCertificate | None = None
