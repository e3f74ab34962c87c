"""EvaluationConfig of a tuning job, its metrics, and the results per checkpoint.

`evaluation_validation.py` checks a config at create; `engine/evaluation` runs it.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from sarto.schema.generation import GenerationConfig
from sarto.schema.wire import Boolean, Double, Int32, Message, ProtoEnum, Struct, Text, to_snake

ROUGE_TYPES = frozenset({*(f"rouge{n}" for n in range(1, 10)), "rougeL", "rougeLsum"})
RESPONSE_FIELDS = frozenset({"response", "prediction", "candidate_response"})
"""Names of a template's field for the tuned model's answer."""
ROW_FIELDS = frozenset({"prompt", "reference", "system_instruction"})
"""Fields that every row of a validation dataset has."""
BASELINE_FIELD = "baseline_model_response"
"""Name of a template's field for the base model's answer."""
COMPUTED_METRICS: dict[str, str] = {
    "exact_match": "exact_match",
    "bleu": "bleu",
    "rouge": "rouge",
    **{f"rouge_{n}": f"rouge{n}" for n in range(1, 10)},
    "rouge_l": "rougeL",
    "rouge_l_sum": "rougeLsum",
    "chrf": "chrf",
    "token_f1": "token_f1",
    "json_valid": "json_valid",
    "json_field_accuracy": "json_field_accuracy",
}
"""Predefined metrics that are computed: name in `metricSpecName`, and the metric."""
JUDGED_METRICS = frozenset({
    "general_quality", "text_quality", "instruction_following", "grounding", "safety", "multi_turn_general_quality",
    "multi_turn_text_quality", "final_response_match", "final_response_reference_free", "coherence", "fluency",
    "groundedness", "verbosity", "summarization_quality", "question_answering_quality",
})  # fmt: skip
"""Predefined metrics that a model judges; a name may end with a version, as in `text_quality_v1`."""
METRIC_VERSION = re.compile(r"_v[1-9]$")
PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_]*)\}(?!\})")
"""A single-brace field. Doubled braces and braces around anything but a name are literal text."""


class AggregationMetric(ProtoEnum):
    AGGREGATION_METRIC_UNSPECIFIED = "AGGREGATION_METRIC_UNSPECIFIED"
    AVERAGE = "AVERAGE"
    MODE = "MODE"
    STANDARD_DEVIATION = "STANDARD_DEVIATION"
    VARIANCE = "VARIANCE"
    MINIMUM = "MINIMUM"
    MAXIMUM = "MAXIMUM"
    MEDIAN = "MEDIAN"
    PERCENTILE_P90 = "PERCENTILE_P90"
    PERCENTILE_P95 = "PERCENTILE_P95"
    PERCENTILE_P99 = "PERCENTILE_P99"


class ComputationBasedMetricType(ProtoEnum):
    COMPUTATION_BASED_METRIC_TYPE_UNSPECIFIED = "COMPUTATION_BASED_METRIC_TYPE_UNSPECIFIED"
    EXACT_MATCH = "EXACT_MATCH"
    BLEU = "BLEU"
    ROUGE = "ROUGE"


class PairwiseChoice(ProtoEnum):
    PAIRWISE_CHOICE_UNSPECIFIED = "PAIRWISE_CHOICE_UNSPECIFIED"
    BASELINE = "BASELINE"
    CANDIDATE = "CANDIDATE"
    TIE = "TIE"


class GcsDestination(Message):
    output_uri_prefix: Text = ""


class OutputConfig(Message):
    gcs_destination: GcsDestination | None = None


class AutoraterConfig(Message):
    sampling_count: Int32 | None = None
    flip_enabled: Boolean | None = None
    autorater_model: Text = ""
    generation_config: GenerationConfig | None = None


class CustomOutputFormatConfig(Message):
    return_raw_output: Boolean | None = None


class PointwiseMetricSpec(Message):
    metric_prompt_template: Text = ""
    system_instruction: Text = ""
    custom_output_format_config: CustomOutputFormatConfig | None = None


class PairwiseMetricSpec(Message):
    metric_prompt_template: Text = ""
    candidate_response_field_name: Text = ""
    baseline_response_field_name: Text = ""
    system_instruction: Text = ""
    custom_output_format_config: CustomOutputFormatConfig | None = None


class ExactMatchSpec(Message):
    pass


class BleuSpec(Message):
    use_effective_order: Boolean | None = None


class RougeSpec(Message):
    rouge_type: Text = ""
    use_stemmer: Boolean | None = None
    split_summaries: Boolean | None = None


class PredefinedMetricSpec(Message):
    metric_spec_name: Text = ""
    metric_spec_parameters: Struct | None = None
    step_autorater_configs: dict[str, AutoraterConfig] = Field(default_factory=dict)


class ComputationBasedMetricSpec(Message):
    type: ComputationBasedMetricType | None = None
    parameters: Struct | None = None


class LLMBasedMetricSpec(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "rubrics_source": ("rubric_group_key", "rubric_generation_spec", "predefined_rubric_generation_spec")
    }

    rubric_group_key: Text = ""
    rubric_generation_spec: Struct | None = None
    predefined_rubric_generation_spec: PredefinedMetricSpec | None = None
    metric_prompt_template: Text = ""
    system_instruction: Text = ""
    judge_autorater_config: AutoraterConfig | None = None
    additional_config: Struct | None = None
    result_parser_config: Struct | None = None


class ScoreRange(Message):
    min: Double | None = None
    max: Double | None = None
    step: Double | None = None
    description: Text = ""


class MetricMetadata(Message):
    title: Text = ""
    score_range: ScoreRange | None = None
    other_metadata: Struct | None = None


class Metric(Message):
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric_spec": (
            "predefined_metric_spec",
            "computation_based_metric_spec",
            "llm_based_metric_spec",
            "custom_code_execution_spec",
            "pointwise_metric_spec",
            "pairwise_metric_spec",
            "exact_match_spec",
            "bleu_spec",
            "rouge_spec",
        )
    }

    predefined_metric_spec: PredefinedMetricSpec | None = None
    computation_based_metric_spec: ComputationBasedMetricSpec | None = None
    llm_based_metric_spec: LLMBasedMetricSpec | None = None
    custom_code_execution_spec: Struct | None = None
    pointwise_metric_spec: PointwiseMetricSpec | None = None
    pairwise_metric_spec: PairwiseMetricSpec | None = None
    exact_match_spec: ExactMatchSpec | None = None
    bleu_spec: BleuSpec | None = None
    rouge_spec: RougeSpec | None = None
    aggregation_metrics: list[AggregationMetric] = Field(default_factory=list)
    metadata: MetricMetadata | None = None

    @property
    def kind(self) -> str:
        """The name of the spec that is set, in snake_case; empty if none is."""
        return next((name for name in self.ONEOFS["metric_spec"] if getattr(self, name) is not None), "")


class EvaluationConfig(Message):
    metrics: list[Metric] = Field(default_factory=list)
    output_config: OutputConfig | None = None
    autorater_config: AutoraterConfig | None = None
    inference_generation_config: GenerationConfig | None = None


class Score(Message):
    score: Double | None = None


class PointwiseMetricResult(Message):
    score: Double | None = None
    explanation: Text = ""
    custom_output: Struct | None = None


class PairwiseMetricResult(Message):
    pairwise_choice: PairwiseChoice | None = None
    explanation: Text = ""
    custom_output: Struct | None = None


class AggregationResult(Message):
    aggregation_metric: AggregationMetric | None = None
    pointwise_metric_result: PointwiseMetricResult | None = None
    pairwise_metric_result: PairwiseMetricResult | None = None
    exact_match_metric_value: Score | None = None
    bleu_metric_value: Score | None = None
    rouge_metric_value: Score | None = None
    custom_code_execution_result: Score | None = None


class GcsSource(Message):
    uris: list[Text] = Field(default_factory=list)


class EvaluationDataset(Message):
    gcs_source: GcsSource | None = None
    bigquery_source: Struct | None = None


class AggregationOutput(Message):
    dataset: EvaluationDataset | None = None
    aggregation_results: list[AggregationResult] = Field(default_factory=list)


class OutputInfo(Message):
    gcs_output_directory: Text = ""


class EvaluateDatasetResponse(Message):
    aggregation_output: AggregationOutput | None = None
    output_info: OutputInfo | None = None


class EvaluateDatasetRun(Message):
    operation_name: Text = ""
    evaluation_run: Text = ""
    checkpoint_id: Text = ""
    evaluate_dataset_response: EvaluateDatasetResponse | None = None
    error: Struct | None = None


def rouge_type(requested: str) -> str:
    """The documented spelling of a ROUGE type; clients also send it in lower case, such as `rougelsum`."""
    return next((name for name in ROUGE_TYPES if name.lower() == requested.lower()), requested)


def predefined_name(requested: str) -> str:
    """The name of a predefined metric without its version; clients may send it in upper case."""
    return METRIC_VERSION.sub("", requested.lower())


def metric_parameters(spec: PredefinedMetricSpec | ComputationBasedMetricSpec) -> dict[str, object]:
    """The free parameters under snake_case names."""
    parameters = spec.metric_spec_parameters if isinstance(spec, PredefinedMetricSpec) else spec.parameters
    return {to_snake(name): value for name, value in (parameters or {}).items()}


def response_fields(metric: Metric) -> frozenset[str]:
    """Names of this metric's template field for the judged model's answer."""
    own = metric.pairwise_metric_spec.candidate_response_field_name if metric.pairwise_metric_spec else ""
    return RESPONSE_FIELDS | ({own} - {""})


def baseline_fields(metric: Metric) -> frozenset[str]:
    """Names of this metric's template field for the base model's answer."""
    own = metric.pairwise_metric_spec.baseline_response_field_name if metric.pairwise_metric_spec else ""
    return frozenset({BASELINE_FIELD, own} - {""})


def judge_names(config: EvaluationConfig, path: str) -> list[tuple[str, str]]:
    """(field, model) of every autorater in a config; paths begin with `path`."""
    named = [(f"{path}.autorater_config.autorater_model", config.autorater_config)]
    for index, metric in enumerate(config.metrics):
        if metric.llm_based_metric_spec:
            where = f"{path}.metrics[{index}].llm_based_metric_spec.judge_autorater_config.autorater_model"
            named.append((where, metric.llm_based_metric_spec.judge_autorater_config))
    return [(where, judge.autorater_model) for where, judge in named if judge and judge.autorater_model]


def is_judged(metric: Metric) -> bool:
    """Whether a model scores it."""
    named = metric.predefined_metric_spec
    return bool(metric_template(metric)) or (
        named is not None and predefined_name(named.metric_spec_name) in JUDGED_METRICS
    )


def metric_template(metric: Metric) -> str:
    """The user's prompt template; empty for a metric without one."""
    spec = metric.pointwise_metric_spec or metric.pairwise_metric_spec or metric.llm_based_metric_spec
    return spec.metric_prompt_template if spec else ""
