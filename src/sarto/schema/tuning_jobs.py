"""TuningJob and its parts, as in the tuning API.

Fields of the API that Sarto does not support are listed here, so that `control/jobs/validation.py` refuses them by
name. `SPECS` has a line for each tuning method; `TuningJob.tuning_spec` is the spec of a job, of any method.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.alias_generators import to_camel

from sarto.schema.distillation import DistillationDataStats, DistillationHyperParameters, DistillationSpec
from sarto.schema.evaluation import EvaluateDatasetRun, EvaluationConfig
from sarto.schema.generation import Content
from sarto.schema.reinforcement import (
    ReinforcementTuningDataStats,
    ReinforcementTuningHyperParameters,
)
from sarto.schema.reinforcement import ReinforcementTuningSpec as ReinforcementTuningSpec
from sarto.schema.tuning_values import RANKS as RANKS
from sarto.schema.tuning_values import AdapterSize as AdapterSize
from sarto.schema.tuning_values import PlainDistribution as PlainDistribution
from sarto.schema.tuning_values import TuningMode as TuningMode
from sarto.schema.wire import Boolean, Double, Int64, Message, ProtoEnum, Struct, Text, Timestamp


class JobState(ProtoEnum):
    JOB_STATE_UNSPECIFIED = "JOB_STATE_UNSPECIFIED"
    JOB_STATE_QUEUED = "JOB_STATE_QUEUED"
    JOB_STATE_PENDING = "JOB_STATE_PENDING"
    JOB_STATE_RUNNING = "JOB_STATE_RUNNING"
    JOB_STATE_SUCCEEDED = "JOB_STATE_SUCCEEDED"
    JOB_STATE_FAILED = "JOB_STATE_FAILED"
    JOB_STATE_CANCELLING = "JOB_STATE_CANCELLING"
    JOB_STATE_CANCELLED = "JOB_STATE_CANCELLED"
    JOB_STATE_PAUSED = "JOB_STATE_PAUSED"
    JOB_STATE_EXPIRED = "JOB_STATE_EXPIRED"
    JOB_STATE_UPDATING = "JOB_STATE_UPDATING"
    JOB_STATE_PARTIALLY_SUCCEEDED = "JOB_STATE_PARTIALLY_SUCCEEDED"

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED, JobState.JOB_STATE_EXPIRED}
)


class TuningJobState(ProtoEnum):
    """The finer phase of a job, beside `state`."""

    TUNING_JOB_STATE_UNSPECIFIED = "TUNING_JOB_STATE_UNSPECIFIED"
    TUNING_JOB_STATE_WAITING_FOR_QUOTA = "TUNING_JOB_STATE_WAITING_FOR_QUOTA"
    TUNING_JOB_STATE_PROCESSING_DATASET = "TUNING_JOB_STATE_PROCESSING_DATASET"
    TUNING_JOB_STATE_WAITING_FOR_CAPACITY = "TUNING_JOB_STATE_WAITING_FOR_CAPACITY"
    TUNING_JOB_STATE_TUNING = "TUNING_JOB_STATE_TUNING"
    TUNING_JOB_STATE_POST_PROCESSING = "TUNING_JOB_STATE_POST_PROCESSING"


class Status(Message):
    """google.rpc.Status; `code` is an rpc code."""

    code: int = 0
    message: Text = ""
    details: list[Struct] = Field(default_factory=list)


class GcsDestination(Message):
    output_uri_prefix: Text = ""


class EncryptionSpec(Message):
    kms_key_name: Text = ""


class SupervisedHyperParameters(Message):
    epoch_count: Int64 | None = None
    learning_rate_multiplier: Double | None = None
    learning_rate: Double | None = None
    adapter_size: AdapterSize | None = None
    batch_size: Int64 | None = None
    beta: ClassVar[None] = None


class SupervisedTuningSpec(Message):
    """The documentation has other names for some fields; both are read."""

    SPELLINGS: ClassVar[dict[str, str]] = {
        "training_dataset": "training_dataset_uri",
        "validation_dataset": "validation_dataset_uri",
        "hyperparameters": "hyper_parameters",
    }
    dataset_field: ClassVar[str] = "training_dataset_uri"
    """The field of the data to learn from."""

    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    hyper_parameters: SupervisedHyperParameters | None = None
    export_last_checkpoint_only: Boolean | None = None
    evaluation_config: EvaluationConfig | None = None
    tuning_mode: TuningMode | None = None

    @property
    def dataset_uri(self) -> str:
        """The data to learn from."""
        return self.training_dataset_uri

    @property
    def parameters(self) -> SupervisedHyperParameters:
        """The hyper-parameters; those of an empty message if the spec has none."""
        return self.hyper_parameters or SupervisedHyperParameters()


class PreferenceOptimizationHyperParameters(Message):
    learning_rate: ClassVar[None] = None
    batch_size: ClassVar[None] = None

    beta: Double | None = None
    epoch_count: Int64 | None = None
    learning_rate_multiplier: Double | None = None
    adapter_size: AdapterSize | None = None


class PreferenceOptimizationSpec(Message):
    SPELLINGS: ClassVar[dict[str, str]] = SupervisedTuningSpec.SPELLINGS
    tuning_mode: ClassVar[None] = None
    dataset_field: ClassVar[str] = "training_dataset_uri"

    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    hyper_parameters: PreferenceOptimizationHyperParameters | None = None
    export_last_checkpoint_only: Boolean | None = None
    evaluation_config: EvaluationConfig | None = None

    @property
    def dataset_uri(self) -> str:
        """The data to learn from."""
        return self.training_dataset_uri

    @property
    def parameters(self) -> PreferenceOptimizationHyperParameters:
        """The hyper-parameters; those of an empty message where the spec has none."""
        return self.hyper_parameters or PreferenceOptimizationHyperParameters()


TuningSpec = SupervisedTuningSpec | PreferenceOptimizationSpec | DistillationSpec | ReinforcementTuningSpec
"""The spec of any method. A spec without one of these fields declares it as a ClassVar that is None."""
HyperParameters = (
    SupervisedHyperParameters
    | PreferenceOptimizationHyperParameters
    | DistillationHyperParameters
    | ReinforcementTuningHyperParameters
)
"""The hyper-parameters of any method, in the same way."""


DataFormat = Literal["auto", "translation", "preference", "prompts", "reinforcement"]
"""The names in `conversations/examples.py`."""


@dataclass(frozen=True)
class SpecRow:
    """The API side of one tuning method."""

    method: str
    """Its name in a run's spec."""
    message: (
        type[SupervisedTuningSpec]
        | type[PreferenceOptimizationSpec]
        | type[DistillationSpec]
        | type[ReinforcementTuningSpec]
    )
    field: str
    """The field of TuningJob that holds its spec."""
    data_stats: str
    """The field of TuningDataStats that holds its statistics."""
    data_format: DataFormat
    """Form of the lines of its datasets."""
    tune_type: str
    """The label `tune-type` of its models."""
    client_name: str
    """Its name in Google's clients."""
    openai_name: str = ""
    """Its name in OpenAI's fine-tuning API; empty if it is not offered there."""
    default_beta: float | None = None
    """None for a method without a beta."""
    rate_share: float = 1.0
    """Factor on the learning rate that is recommended for supervised tuning of a base model."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the learning rate rises."""
    batch_size_for_all: bool = False
    """Whether models that are not open have a batch size too."""
    most_rows: int | None = None
    """Most rows of its training data, if there are fewer than this service allows."""

    def reads(self, kind: str) -> bool:
        """Whether it tunes models of this kind; translation models have rows of their own form."""
        return kind != "translation" or self.data_format == "auto"

    def format_for(self, kind: str) -> DataFormat:
        """`data_format`, except for translation models, whose rows have their own form."""
        return "translation" if kind == "translation" and self.reads(kind) else self.data_format

    @cached_property
    def key(self) -> str:
        """`field` in JSON."""
        return to_camel(self.field)

    @cached_property
    def data_stats_key(self) -> str:
        """`data_stats` in JSON."""
        return to_camel(self.data_stats)


SPECS: dict[str, SpecRow] = {
    "supervised": SpecRow(
        method="supervised",
        message=SupervisedTuningSpec,
        field="supervised_tuning_spec",
        data_stats="supervised_tuning_data_stats",
        data_format="auto",
        tune_type="sft",
        client_name="SUPERVISED_FINE_TUNING",
        openai_name="supervised",
    ),
    "preference": SpecRow(
        method="preference",
        message=PreferenceOptimizationSpec,
        field="preference_optimization_spec",
        data_stats="preference_optimization_data_stats",
        data_format="preference",
        tune_type="preference",
        client_name="PREFERENCE_TUNING",
        openai_name="dpo",
        default_beta=0.1,
        rate_share=0.1,
        warmup_fraction=0.1,
    ),
    "distillation": SpecRow(
        method="distillation",
        message=DistillationSpec,
        field="distillation_spec",
        data_stats="distillation_data_stats",
        data_format="prompts",
        tune_type="distillation",
        client_name="DISTILLATION",
    ),
    "reinforcement": SpecRow(
        method="reinforcement",
        message=ReinforcementTuningSpec,
        field="reinforcement_tuning_spec",
        data_stats="reinforcement_tuning_data_stats",
        data_format="reinforcement",
        tune_type="reinforcement",
        client_name="REINFORCEMENT_TUNING",
        rate_share=0.1,
        batch_size_for_all=True,
        most_rows=5000,
    ),
}
"""The table of specs: a line for each implemented method, by its name."""


def dataset_key(row: SpecRow) -> str:
    """The field of the data to learn from, in JSON."""
    return to_camel(row.message().dataset_field)


def spec_row(resource: dict[str, Any]) -> SpecRow | None:
    """The method of a job's JSON; None for a job without an implemented spec, and for any other resource."""
    return next((row for row in SPECS.values() if row.key in resource), None)


def dataset_of(spec: dict[str, Any]) -> str:
    """The URI of the data to learn from, in a spec's JSON; empty if there is none."""
    uri: str = spec.get("promptDatasetUri") or spec.get("trainingDatasetUri") or ""
    return uri


def spec_of(resource: dict[str, Any]) -> dict[str, Any]:
    """The spec in a job's JSON, of any method; empty if `spec_row` returns None."""
    row = spec_row(resource)
    spec: dict[str, Any] = resource[row.key] if row else {}
    return spec


class PreTunedModel(Message):
    tuned_model_name: Text = ""
    checkpoint_id: Text = ""
    base_model: Text = ""


class DatasetBucket(Message):
    count: Double = 0.0
    left: Double = 0.0
    right: Double = 0.0


class DatasetDistribution(Message):
    sum: Int64 | None = None
    billable_sum: Int64 | None = None
    min: Double | None = None
    max: Double | None = None
    mean: Double | None = None
    median: Double | None = None
    p5: Double | None = None
    p95: Double | None = None
    buckets: list[DatasetBucket] = Field(default_factory=list)


class SupervisedTuningDataStats(Message):
    tuning_dataset_example_count: Int64 | None = None
    total_tuning_character_count: Int64 | None = None
    total_billable_character_count: Int64 | None = None
    total_billable_token_count: Int64 | None = None
    tuning_step_count: Int64 | None = None
    user_input_token_distribution: DatasetDistribution | None = None
    user_output_token_distribution: DatasetDistribution | None = None
    user_message_per_example_distribution: DatasetDistribution | None = None
    user_dataset_examples: list[Content] = Field(default_factory=list)
    total_truncated_example_count: Int64 | None = None
    truncated_example_indices: list[Int64] = Field(default_factory=list)
    dropped_example_reasons: list[Text] = Field(default_factory=list)


class PreferenceCompletion(Message):
    score: Double | None = None
    completion: Content | None = None


class PreferencePair(Message):
    contents: list[Content] = Field(default_factory=list)
    completions: list[PreferenceCompletion] = Field(default_factory=list)


class PreferenceOptimizationDataStats(Message):
    tuning_dataset_example_count: Int64 | None = None
    tuning_step_count: Int64 | None = None
    total_billable_token_count: Int64 | None = None
    user_input_token_distribution: PlainDistribution | None = None
    user_output_token_distribution: PlainDistribution | None = None
    scores_distribution: PlainDistribution | None = None
    score_variance_per_example_distribution: PlainDistribution | None = None
    user_dataset_examples: list[PreferencePair] = Field(default_factory=list)
    dropped_example_indices: list[Int64] = Field(default_factory=list)
    dropped_example_reasons: list[Text] = Field(default_factory=list)


class TuningDataStats(Message):
    supervised_tuning_data_stats: SupervisedTuningDataStats | None = None
    distillation_data_stats: DistillationDataStats | None = None
    preference_optimization_data_stats: PreferenceOptimizationDataStats | None = None
    reinforcement_tuning_data_stats: ReinforcementTuningDataStats | None = None


class TunedModelCheckpoint(Message):
    checkpoint_id: Text = ""
    epoch: Int64 | None = None
    step: Int64 | None = None
    endpoint: Text = ""


class TunedModel(Message):
    model: Text = ""
    endpoint: Text = ""
    checkpoints: list[TunedModelCheckpoint] = Field(default_factory=list)


class DatasetVersion(Message):
    """The version of an object that a job reads, in the storage API's terms."""

    uri: Text = ""
    generation: Int64 | None = None
    md5_hash: Text = ""


class TuningJobMetadata(Message):
    """Progress, and (Sarto's own) all values that the service chose."""

    completed_epoch_count: Int64 | None = None
    completed_step_count: Int64 | None = None
    total_step_count: Int64 | None = None
    effective_parameters: Struct | None = None
    throughput: Struct | None = None
    datasets: list[DatasetVersion] = Field(default_factory=list)
    warnings: list[Text] = Field(default_factory=list)
    """Warnings for the user before the model is used."""


class TuningJob(Message):
    SPELLINGS: ClassVar[dict[str, str]] = {"source_model": "base_model"}
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "source_model": ("base_model", "pre_tuned_model"),
        "tuning_spec": (
            "supervised_tuning_spec",
            "preference_optimization_spec",
            "distillation_spec",
            "reinforcement_tuning_spec",
            "partner_model_tuning_spec",
            "veo_tuning_spec",
            "veo_lora_tuning_spec",
            "full_fine_tuning_spec",
            "distillation_sampling_spec",
        ),
    }

    name: Text = ""
    base_model: Text = ""
    pre_tuned_model: PreTunedModel | None = None
    custom_base_model: Text = ""
    tuned_model_display_name: Text = ""
    description: Text = ""
    labels: dict[str, Text] = Field(default_factory=dict)
    state: JobState | None = None
    tuning_job_state: TuningJobState | None = None
    create_time: Timestamp | None = None
    start_time: Timestamp | None = None
    end_time: Timestamp | None = None
    update_time: Timestamp | None = None
    error: Status | None = None
    experiment: Text = ""
    tuned_model: TunedModel | None = None
    tuning_data_stats: TuningDataStats | None = None
    tuning_job_metadata: TuningJobMetadata | None = None
    encryption_spec: EncryptionSpec | None = None
    service_account: Text = ""
    output_uri: Text = ""
    evaluation_config: EvaluationConfig | None = None
    evaluate_dataset_runs: list[EvaluateDatasetRun] = Field(default_factory=list)
    gcs_metrics_uri: Text = ""
    pipeline_job: Text = ""
    supervised_tuning_spec: SupervisedTuningSpec | None = None
    preference_optimization_spec: PreferenceOptimizationSpec | None = None
    distillation_spec: DistillationSpec | None = None
    reinforcement_tuning_spec: ReinforcementTuningSpec | None = None
    partner_model_tuning_spec: Struct | None = None
    veo_tuning_spec: Struct | None = None
    veo_lora_tuning_spec: Struct | None = None
    full_fine_tuning_spec: Struct | None = None
    distillation_sampling_spec: Struct | None = None
    satisfies_pzs: Boolean | None = None
    satisfies_pzi: Boolean | None = None

    @property
    def spec_row(self) -> SpecRow | None:
        """The method of the job; None if no spec of an implemented method is set."""
        return next((row for row in SPECS.values() if getattr(self, row.field) is not None), None)

    @property
    def tuning_spec(self) -> TuningSpec | None:
        """The spec of the job, of any method."""
        row = self.spec_row
        spec: TuningSpec | None = getattr(self, row.field) if row else None
        return spec

    @property
    def is_full(self) -> bool:
        """Whether it tunes all weights."""
        spec = self.tuning_spec
        return spec is not None and spec.tuning_mode is TuningMode.TUNING_MODE_FULL

    @property
    def spec_field(self) -> str:
        """The field of `tuning_spec`, for messages; that of the first method if there is none."""
        return (self.spec_row or next(iter(SPECS.values()))).field

    def with_spec(self, spec: TuningSpec) -> TuningJob:
        """The job with this spec, in the field of its method."""
        row = next(row for row in SPECS.values() if isinstance(spec, row.message))
        return self.model_copy(update={row.field: spec})


class TunedModelRef(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"tuned_model_ref": ("tuned_model", "tuning_job", "pipeline_job")}

    tuned_model: Text = ""
    tuning_job: Text = ""
    pipeline_job: Text = ""


class RebaseTunedModelRequest(Message):
    parent: Text = ""
    tuned_model_ref: TunedModelRef | None = None
    tuning_job: TuningJob | None = None
    artifact_destination: GcsDestination | None = None
    deploy_to_same_endpoint: Boolean | None = None


class ListTuningJobsResponse(Message):
    tuning_jobs: list[TuningJob] = Field(default_factory=list)
    next_page_token: Text = ""
