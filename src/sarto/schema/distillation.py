"""The spec of distillation and its statistics, as in the tuning API. The deprecated form has `training_dataset_uri` and
`student_model`, the present one `prompt_dataset_uri` and the job's `base_model`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.generation import Content, GenerationConfig
from sarto.schema.tuning_values import AdapterSize, PlainDistribution, TuningMode
from sarto.schema.wire import Boolean, Double, Int64, Message, Text


class DistillationHyperParameters(Message):
    beta: ClassVar[None] = None

    epoch_count: Int64 | None = None
    learning_rate_multiplier: Double | None = None
    learning_rate: Double | None = None
    adapter_size: AdapterSize | None = None
    batch_size: Int64 | None = None
    generation_config: GenerationConfig | None = None
    """How the teacher answers."""
    sft_loss_weight_multiplier: Double | None = None


class DistillationSpec(Message):
    SPELLINGS: ClassVar[dict[str, str]] = {
        "prompt_dataset": "prompt_dataset_uri",
        "training_dataset": "training_dataset_uri",
        "validation_dataset": "validation_dataset_uri",
        "hyperparameters": "hyper_parameters",
    }

    prompt_dataset_uri: Text = ""
    training_dataset_uri: Text = ""
    """Deprecated: the prompts."""
    validation_dataset_uri: Text = ""
    student_model: Text = ""
    """Deprecated: the base model."""
    pipeline_root_directory: Text = ""
    """Deprecated: the output folder."""
    base_teacher_model: Text = ""
    tuned_teacher_model_source: Text = ""
    hyper_parameters: DistillationHyperParameters | None = None
    export_last_checkpoint_only: Boolean | None = None
    evaluation_config: EvaluationConfig | None = None
    tuning_mode: TuningMode | None = None

    @property
    def parameters(self) -> DistillationHyperParameters:
        """The hyper-parameters; those of an empty message where the spec has none."""
        return self.hyper_parameters or DistillationHyperParameters()

    @property
    def is_deprecated_form(self) -> bool:
        return bool(self.training_dataset_uri) and not self.prompt_dataset_uri

    @property
    def dataset_field(self) -> str:
        """The field of the prompts."""
        return "training_dataset_uri" if self.is_deprecated_form else "prompt_dataset_uri"

    @property
    def dataset_uri(self) -> str:
        """The prompts."""
        return self.prompt_dataset_uri or self.training_dataset_uri

    @property
    def teacher(self) -> str:
        """The name of the teacher, of whatever kind."""
        return self.base_teacher_model or self.tuned_teacher_model_source

    @property
    def teacher_field(self) -> str:
        return "base_teacher_model" if self.base_teacher_model else "tuned_teacher_model_source"


class DatasetStats(Message):
    tuning_dataset_example_count: Int64 | None = None
    total_tuning_character_count: Int64 | None = None
    total_billable_character_count: Int64 | None = None
    total_billable_token_count: Int64 | None = None
    tuning_step_count: Int64 | None = None
    user_input_token_distribution: PlainDistribution | None = None
    user_output_token_distribution: PlainDistribution | None = None
    user_message_per_example_distribution: PlainDistribution | None = None
    contents_per_example_distribution: PlainDistribution | None = None
    user_dataset_examples: list[Content] = Field(default_factory=list)
    dropped_example_indices: list[Int64] = Field(default_factory=list)
    dropped_example_reasons: list[Text] = Field(default_factory=list)


class DistillationDataStats(Message):
    training_dataset_stats: DatasetStats | None = None
    """Of the prompts, without the teacher's answers."""
