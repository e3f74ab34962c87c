"""TuningJob and what hangs on it, as the tuning API writes them. Known fields that Sarto cannot honour are refused by
name in `control/tuning_jobs.py`; they are listed here so that they are never mistaken for unknown ones."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sarto.schema.evaluation import EvaluateDatasetRun, EvaluationConfig
from sarto.schema.generation import Content
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


class AdapterSize(ProtoEnum):
    """LoRA rank by name. The wire numbers are not in size order: TWO was added last."""

    ADAPTER_SIZE_UNSPECIFIED = "ADAPTER_SIZE_UNSPECIFIED"
    ADAPTER_SIZE_ONE = "ADAPTER_SIZE_ONE"
    ADAPTER_SIZE_FOUR = "ADAPTER_SIZE_FOUR"
    ADAPTER_SIZE_EIGHT = "ADAPTER_SIZE_EIGHT"
    ADAPTER_SIZE_SIXTEEN = "ADAPTER_SIZE_SIXTEEN"
    ADAPTER_SIZE_THIRTY_TWO = "ADAPTER_SIZE_THIRTY_TWO"
    ADAPTER_SIZE_TWO = "ADAPTER_SIZE_TWO"

    @property
    def rank(self) -> int:
        return RANKS[self]

    @classmethod
    def of_rank(cls, rank: int) -> AdapterSize:
        return next(size for size, value in RANKS.items() if value == rank)


RANKS: dict[AdapterSize, int] = {
    AdapterSize.ADAPTER_SIZE_UNSPECIFIED: 0,
    AdapterSize.ADAPTER_SIZE_ONE: 1,
    AdapterSize.ADAPTER_SIZE_TWO: 2,
    AdapterSize.ADAPTER_SIZE_FOUR: 4,
    AdapterSize.ADAPTER_SIZE_EIGHT: 8,
    AdapterSize.ADAPTER_SIZE_SIXTEEN: 16,
    AdapterSize.ADAPTER_SIZE_THIRTY_TWO: 32,
}


class TuningMode(ProtoEnum):
    TUNING_MODE_UNSPECIFIED = "TUNING_MODE_UNSPECIFIED"
    TUNING_MODE_FULL = "TUNING_MODE_FULL"
    TUNING_MODE_PEFT_ADAPTER = "TUNING_MODE_PEFT_ADAPTER"


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


class SupervisedTuningSpec(Message):
    """The documentation writes some of these under other names; both are read."""

    SPELLINGS: ClassVar[dict[str, str]] = {
        "training_dataset": "training_dataset_uri",
        "validation_dataset": "validation_dataset_uri",
        "hyperparameters": "hyper_parameters",
    }

    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    hyper_parameters: SupervisedHyperParameters | None = None
    export_last_checkpoint_only: Boolean | None = None
    evaluation_config: EvaluationConfig | None = None
    tuning_mode: TuningMode | None = None


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


class TuningDataStats(Message):
    supervised_tuning_data_stats: SupervisedTuningDataStats | None = None
    distillation_data_stats: Struct | None = None
    preference_optimization_data_stats: Struct | None = None
    reinforcement_tuning_data_stats: Struct | None = None


class TunedModelCheckpoint(Message):
    checkpoint_id: Text = ""
    epoch: Int64 | None = None
    step: Int64 | None = None
    endpoint: Text = ""


class TunedModel(Message):
    model: Text = ""
    endpoint: Text = ""
    checkpoints: list[TunedModelCheckpoint] = Field(default_factory=list)


class TuningJobMetadata(Message):
    """Progress, and (ours) the values the service resolved, so that nothing it chose stays hidden."""

    completed_epoch_count: Int64 | None = None
    completed_step_count: Int64 | None = None
    total_step_count: Int64 | None = None
    effective_parameters: Struct | None = None
    throughput: Struct | None = None


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
    preference_optimization_spec: Struct | None = None
    distillation_spec: Struct | None = None
    reinforcement_tuning_spec: Struct | None = None
    partner_model_tuning_spec: Struct | None = None
    veo_tuning_spec: Struct | None = None
    veo_lora_tuning_spec: Struct | None = None
    full_fine_tuning_spec: Struct | None = None
    distillation_sampling_spec: Struct | None = None
    satisfies_pzs: Boolean | None = None
    satisfies_pzi: Boolean | None = None


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
