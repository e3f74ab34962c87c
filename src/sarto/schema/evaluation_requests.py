"""evaluateDataset and evaluateInstances: metrics outside a tuning job, on a file or on instances in the request.

`engine/evaluation` computes them. Unsupported metrics have a field here, so that they are refused by name.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sarto.schema.evaluation import (
    AutoraterConfig,
    BleuSpec,
    EvaluationDataset,
    ExactMatchSpec,
    Metric,
    OutputConfig,
    PairwiseMetricResult,
    PairwiseMetricSpec,
    PointwiseMetricResult,
    PointwiseMetricSpec,
    RougeSpec,
    Score,
)
from sarto.schema.generation import Content, GenerationConfig
from sarto.schema.wire import Double, Message, Struct, Text


class EvaluateDatasetRequest(Message):
    """`models` and `inference_generation_config` are Sarto's own: with `models` these answer the rows, which otherwise
    have answers already."""

    location: Text = ""
    dataset: EvaluationDataset | None = None
    metrics: list[Metric] = Field(default_factory=list)
    output_config: OutputConfig | None = None
    autorater_config: AutoraterConfig | None = None
    models: list[Text] = Field(default_factory=list)
    inference_generation_config: GenerationConfig | None = None


class TextInstance(Message):
    prediction: Text = ""
    reference: Text = ""


class ExactMatchInput(Message):
    metric_spec: ExactMatchSpec | None = None
    instances: list[TextInstance] = Field(default_factory=list)


class BleuInput(Message):
    metric_spec: BleuSpec | None = None
    instances: list[TextInstance] = Field(default_factory=list)


class RougeInput(Message):
    metric_spec: RougeSpec | None = None
    instances: list[TextInstance] = Field(default_factory=list)


class ContentList(Message):
    contents: list[Content] = Field(default_factory=list)


class ContentMap(Message):
    values: dict[str, ContentList] = Field(default_factory=dict)


class JudgedInstance(Message):
    """The values of a template's fields: as the text of a JSON object, or as contents by name."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"instance": ("json_instance", "content_map_instance")}

    json_instance: Text = ""
    content_map_instance: ContentMap | None = None


class PointwiseMetricInput(Message):
    metric_spec: PointwiseMetricSpec | None = None
    instance: JudgedInstance | None = None


class PairwiseMetricInput(Message):
    metric_spec: PairwiseMetricSpec | None = None
    instance: JudgedInstance | None = None


class InstanceData(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"data": ("text", "contents")}

    text: Text | None = None
    contents: ContentList | None = None


class MapInstance(Message):
    map_instance: dict[str, InstanceData] = Field(default_factory=dict)


class EvaluationInstance(Message):
    prompt: InstanceData | None = None
    response: InstanceData | None = None
    reference: InstanceData | None = None
    other_data: MapInstance | None = None
    agent_data: Struct | None = None
    agent_eval_data: Struct | None = None
    rubric_groups: Struct | None = None


OTHER_INPUTS = (
    "fluency_input", "coherence_input", "safety_input", "groundedness_input", "fulfillment_input",
    "summarization_quality_input", "pairwise_summarization_quality_input", "summarization_helpfulness_input",
    "summarization_verbosity_input", "question_answering_quality_input", "pairwise_question_answering_quality_input",
    "question_answering_relevance_input", "question_answering_helpfulness_input",
    "question_answering_correctness_input", "tool_call_valid_input", "tool_name_match_input",
    "tool_parameter_key_match_input", "tool_parameter_kv_match_input", "comet_input", "metricx_input",
    "trajectory_exact_match_input", "trajectory_in_order_match_input", "trajectory_any_order_match_input",
    "trajectory_precision_input", "trajectory_recall_input", "trajectory_single_tool_use_input",
    "rubric_based_instruction_following_input", "rubric_based_metric_input",
)  # fmt: skip
"""Inputs of metrics that Sarto does not compute."""
INPUTS = ("exact_match_input", "bleu_input", "rouge_input", "pointwise_metric_input", "pairwise_metric_input")


class EvaluateInstancesRequest(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"metric_inputs": (*INPUTS, *OTHER_INPUTS)}

    location: Text = ""
    exact_match_input: ExactMatchInput | None = None
    bleu_input: BleuInput | None = None
    rouge_input: RougeInput | None = None
    pointwise_metric_input: PointwiseMetricInput | None = None
    pairwise_metric_input: PairwiseMetricInput | None = None
    metrics: list[Metric] = Field(default_factory=list)
    metric_sources: list[Struct] = Field(default_factory=list)
    instance: EvaluationInstance | None = None
    autorater_config: AutoraterConfig | None = None
    fluency_input: Struct | None = None
    coherence_input: Struct | None = None
    safety_input: Struct | None = None
    groundedness_input: Struct | None = None
    fulfillment_input: Struct | None = None
    summarization_quality_input: Struct | None = None
    pairwise_summarization_quality_input: Struct | None = None
    summarization_helpfulness_input: Struct | None = None
    summarization_verbosity_input: Struct | None = None
    question_answering_quality_input: Struct | None = None
    pairwise_question_answering_quality_input: Struct | None = None
    question_answering_relevance_input: Struct | None = None
    question_answering_helpfulness_input: Struct | None = None
    question_answering_correctness_input: Struct | None = None
    tool_call_valid_input: Struct | None = None
    tool_name_match_input: Struct | None = None
    tool_parameter_key_match_input: Struct | None = None
    tool_parameter_kv_match_input: Struct | None = None
    comet_input: Struct | None = None
    metricx_input: Struct | None = None
    trajectory_exact_match_input: Struct | None = None
    trajectory_in_order_match_input: Struct | None = None
    trajectory_any_order_match_input: Struct | None = None
    trajectory_precision_input: Struct | None = None
    trajectory_recall_input: Struct | None = None
    trajectory_single_tool_use_input: Struct | None = None
    rubric_based_instruction_following_input: Struct | None = None
    rubric_based_metric_input: Struct | None = None


class ExactMatchResults(Message):
    exact_match_metric_values: list[Score] = Field(default_factory=list)


class BleuResults(Message):
    bleu_metric_values: list[Score] = Field(default_factory=list)


class RougeResults(Message):
    rouge_metric_values: list[Score] = Field(default_factory=list)


class MetricResult(Message):
    """The result of one metric on the instance: a score or an error."""

    score: Double | None = None
    explanation: Text = ""
    error: Struct | None = None


class EvaluateInstancesResponse(Message):
    exact_match_results: ExactMatchResults | None = None
    bleu_results: BleuResults | None = None
    rouge_results: RougeResults | None = None
    pointwise_metric_result: PointwiseMetricResult | None = None
    pairwise_metric_result: PairwiseMetricResult | None = None
    metric_results: list[MetricResult] = Field(default_factory=list)
