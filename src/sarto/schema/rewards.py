"""Rewards of reinforcement tuning: the configs of a job, and the messages of validateReinforcementTuningReward.

`sarto.rewards` checks and computes them. Google's clients mix camelCase and snake_case inside one config; both are
read.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sarto.schema.evaluation import AutoraterConfig
from sarto.schema.generation import Content, Tool
from sarto.schema.wire import Double, Message, ProtoEnum, Struct, Text

UNNAMED = "reward"
"""Name of a reward without one."""


class ResponseParseType(ProtoEnum):
    RESPONSE_PARSE_TYPE_UNSPECIFIED = "RESPONSE_PARSE_TYPE_UNSPECIFIED"
    IDENTITY = "IDENTITY"
    REGEX_EXTRACT = "REGEX_EXTRACT"


class MatchOperation(ProtoEnum):
    MATCH_OPERATION_UNSPECIFIED = "MATCH_OPERATION_UNSPECIFIED"
    REGEX_CONTAINS = "REGEX_CONTAINS"
    PARTIAL_MATCH = "PARTIAL_MATCH"
    EXACT_MATCH = "EXACT_MATCH"


class ParseResponseConfig(Message):
    parse_type: ResponseParseType | None = None
    regex_extract_expression: Text = ""

    @property
    def extracts(self) -> bool:
        return self.parse_type is ResponseParseType.REGEX_EXTRACT


class StringMatchExpression(Message):
    match_operation: MatchOperation | None = None
    expression: Text = ""


class JsonMatchExpression(Message):
    key_name: Text = ""
    value_string_match_expression: StringMatchExpression | None = None


class StringMatchRewardScorer(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "match_expression": ("string_match_expression", "json_match_expression")
    }

    wrong_answer_reward: Double | None = None
    correct_answer_reward: Double | None = None
    string_match_expression: StringMatchExpression | None = None
    json_match_expression: JsonMatchExpression | None = None


class ExactMatchScorer(Message):
    wrong_answer_reward: Double | None = None
    correct_answer_reward: Double | None = None
    expression: Text = ""


class ParsedResponseConversionScorer(Message):
    """The autorater's reply is the number itself; the message is set by its presence."""


class AutoraterScorer(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "scorer": ("exact_match_scorer", "parsed_response_conversion_scorer")
    }

    autorater_config: AutoraterConfig | None = None
    autorater_prompt: Text = ""
    autorater_response_parse_config: ParseResponseConfig | None = None
    exact_match_scorer: ExactMatchScorer | None = None
    parsed_response_conversion_scorer: ParsedResponseConversionScorer | None = None


class CodeExecutionRewardScorer(Message):
    python_code_snippet: Text = ""


class CloudRunRewardScorer(Message):
    cloud_run_uri: Text = ""


class SingleReinforcementTuningRewardConfig(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "reward_scorer": (
            "string_match_reward_scorer", "code_execution_reward_scorer", "autorater_scorer", "cloud_run_reward_scorer",
        )
    }  # fmt: skip

    reward_name: Text = ""
    parse_response_config: ParseResponseConfig | None = None
    string_match_reward_scorer: StringMatchRewardScorer | None = None
    code_execution_reward_scorer: CodeExecutionRewardScorer | None = None
    autorater_scorer: AutoraterScorer | None = None
    cloud_run_reward_scorer: CloudRunRewardScorer | None = None

    @property
    def name(self) -> str:
        return self.reward_name or UNNAMED


class WeightedRewardConfig(Message):
    reward_config: SingleReinforcementTuningRewardConfig | None = None
    weight: Double | None = None


class CompositeReinforcementTuningRewardConfig(Message):
    weighted_reward_configs: list[WeightedRewardConfig] = Field(default_factory=list)


RewardConfig = SingleReinforcementTuningRewardConfig | CompositeReinforcementTuningRewardConfig


class ReinforcementTuningExample(Message):
    """A row of the data. `to_json` gives the `example` that scorers get, in camelCase."""

    contents: list[Content] = Field(default_factory=list)
    references: dict[str, Text] = Field(default_factory=dict)
    system_instruction: Content | None = None
    tools: list[Tool] = Field(default_factory=list)


class ValidateRewardRequest(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "reward_config": ("single_reward_config", "composite_reward_config")
    }

    parent: Text = ""
    sample_response: Content | None = None
    example: ReinforcementTuningExample | None = None
    single_reward_config: SingleReinforcementTuningRewardConfig | None = None
    composite_reward_config: CompositeReinforcementTuningRewardConfig | None = None

    @property
    def config(self) -> RewardConfig | None:
        return self.single_reward_config or self.composite_reward_config


class RewardInfo(Message):
    reward: Double | None = None
    user_requested_aux_info: Text = ""
    error_status: Struct | None = None


class ValidateRewardResponse(Message):
    overall_reward: Double | None = None
    error: Text = ""
    reward_info_details: dict[str, RewardInfo] = Field(default_factory=dict)
