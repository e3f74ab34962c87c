"""The spec and the statistics of reinforcement tuning. Rewards: `schema/rewards.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from sarto.schema.rewards import (
    CompositeReinforcementTuningRewardConfig,
    ReinforcementTuningExample,
    SingleReinforcementTuningRewardConfig,
)
from sarto.schema.tuning_values import AdapterSize, PlainDistribution
from sarto.schema.wire import Double, Int32, Int64, Message, ProtoEnum, Text


class ReinforcementTuningThinkingLevel(ProtoEnum):
    REINFORCEMENT_TUNING_THINKING_LEVEL_UNSPECIFIED = "REINFORCEMENT_TUNING_THINKING_LEVEL_UNSPECIFIED"
    MINIMAL = "MINIMAL"
    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"


class ReinforcementTuningHyperParameters(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"tuning_length": ("epoch_count", "step_count")}
    learning_rate: ClassVar[None] = None
    beta: ClassVar[None] = None

    epoch_count: Int64 | None = None
    step_count: Int64 | None = None
    learning_rate_multiplier: Double | None = None
    adapter_size: AdapterSize | None = None
    batch_size: Int32 | None = None
    samples_per_prompt: Int32 | None = None
    max_output_tokens: Int32 | None = None
    evaluate_interval: Int32 | None = None
    checkpoint_interval: Int32 | None = None
    thinking_level: ReinforcementTuningThinkingLevel | None = None
    thinking_budget: Int32 | None = None


class ReinforcementTuningSpec(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "reward_config": ("single_reward_config", "composite_reward_config")
    }
    SPELLINGS: ClassVar[dict[str, str]] = {
        "training_dataset": "training_dataset_uri",
        "validation_dataset": "validation_dataset_uri",
        "hyperparameters": "hyper_parameters",
    }
    dataset_field: ClassVar[str] = "training_dataset_uri"
    tuning_mode: ClassVar[None] = None
    export_last_checkpoint_only: ClassVar[None] = None
    evaluation_config: ClassVar[None] = None

    training_dataset_uri: Text = ""
    validation_dataset_uri: Text = ""
    single_reward_config: SingleReinforcementTuningRewardConfig | None = None
    composite_reward_config: CompositeReinforcementTuningRewardConfig | None = None
    hyper_parameters: ReinforcementTuningHyperParameters | None = None

    @property
    def dataset_uri(self) -> str:
        """The data to learn from."""
        return self.training_dataset_uri

    @property
    def parameters(self) -> ReinforcementTuningHyperParameters:
        """The hyper-parameters; those of an empty message where the spec has none."""
        return self.hyper_parameters or ReinforcementTuningHyperParameters()

    def rewards(self, path: str) -> Iterator[tuple[str, SingleReinforcementTuningRewardConfig]]:
        """Each single reward with its path, where the spec is at `path`."""
        if self.single_reward_config is not None:
            yield f"{path}.single_reward_config", self.single_reward_config
        if self.composite_reward_config is not None:
            for index, one in enumerate(self.composite_reward_config.weighted_reward_configs):
                if one.reward_config is not None:
                    where = f"{path}.composite_reward_config.weighted_reward_configs[{index}].reward_config"
                    yield where, one.reward_config

    @property
    def reward(self) -> dict[str, Any]:
        """The reward in JSON, by its field; empty without one."""
        messages = {
            "singleRewardConfig": self.single_reward_config, "compositeRewardConfig": self.composite_reward_config,
        }  # fmt: skip
        return {name: message.to_json() for name, message in messages.items() if message is not None}


class ReinforcementTuningUserDatasetExamples(Message):
    user_dataset_examples: list[ReinforcementTuningExample] = Field(default_factory=list)


class ReinforcementTuningDataStats(Message):
    """The API's DatasetStats, as far as prompts have values for it."""

    tuning_dataset_example_count: Int64 | None = None
    total_tuning_character_count: Int64 | None = None
    total_billable_character_count: Int64 | None = None
    total_billable_token_count: Int64 | None = None
    tuning_step_count: Int64 | None = None
    user_input_token_distribution: PlainDistribution | None = None
    user_output_token_distribution: PlainDistribution | None = None
    user_message_per_example_distribution: PlainDistribution | None = None
    contents_per_example_distribution: PlainDistribution | None = None
    reinforcement_tuning_user_dataset_examples: ReinforcementTuningUserDatasetExamples | None = None
    dropped_example_indices: list[Int64] = Field(default_factory=list)
    dropped_example_reasons: list[Text] = Field(default_factory=list)
