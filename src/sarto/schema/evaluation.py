"""EvaluationConfig of a tuning job, its metrics, and the results per checkpoint.

`config_faults` says at create time what is wrong with a config; `engine/evaluation` runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from sarto.errors import FieldViolation
from sarto.schema.generation import GenerationConfig
from sarto.schema.wire import Boolean, Double, Int32, Message, ProtoEnum, Struct, Text

ROUGE_TYPES = frozenset({*(f"rouge{n}" for n in range(1, 10)), "rougeL", "rougeLsum"})
RESPONSE_FIELDS = frozenset({"response", "prediction", "candidate_response"})
"""Names under which a template may ask for the tuned model's answer."""
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
    metadata: Struct | None = None

    @property
    def kind(self) -> str:
        """Which spec is set, by its snake_case name; empty when none is."""
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


def config_faults(config: EvaluationConfig, path: str) -> Iterator[FieldViolation]:
    """What is wrong with a config as far as it can be known before a run; paths begin with `path`."""
    if not config.metrics:
        yield FieldViolation(f"{path}.metrics", "At least one metric is required.")
    destination = config.output_config.gcs_destination if config.output_config else None
    prefix = destination.output_uri_prefix if destination else ""
    if not re.match(r"gs://[^/]+", prefix):
        where = f"{path}.output_config.gcs_destination.output_uri_prefix"
        yield FieldViolation(where, f'A Cloud Storage prefix is required, gs://BUCKET/FOLDER; seen: "{prefix}".')
    for index, metric in enumerate(config.metrics):
        yield from _metric_faults(metric, f"{path}.metrics[{index}]")
    judge = config.autorater_config
    if judge and judge.sampling_count is not None and not 1 <= judge.sampling_count <= 32:
        yield FieldViolation(f"{path}.autorater_config.sampling_count", "Must be from 1 to 32.")


def _metric_faults(metric: Metric, path: str) -> Iterator[FieldViolation]:
    kind = metric.kind
    if not kind:
        yield FieldViolation(path, "One metric spec must be set: " + ", ".join(metric.ONEOFS["metric_spec"]) + ".")
    elif kind == "custom_code_execution_spec":
        yield FieldViolation(f"{path}.{kind}", "Custom code is not run by this service; use a prompt template instead.")
    if metric.rouge_spec and metric.rouge_spec.rouge_type not in ROUGE_TYPES:
        yield FieldViolation(f"{path}.{kind}.rouge_type", f"Use one of {', '.join(sorted(ROUGE_TYPES))}.")
    template = ""
    if metric.pointwise_metric_spec:
        template = metric.pointwise_metric_spec.metric_prompt_template
    if metric.pairwise_metric_spec:
        template = metric.pairwise_metric_spec.metric_prompt_template
        wrong = [m for m in metric.aggregation_metrics if m is not AggregationMetric.MODE]
        if wrong:
            yield FieldViolation(
                f"{path}.aggregation_metrics", f"A pairwise metric aggregates by MODE only, not {wrong[0]}."
            )
    if metric.pointwise_metric_spec or metric.pairwise_metric_spec:
        asked = set(PLACEHOLDER.findall(template))
        allowed = RESPONSE_FIELDS | (
            {metric.pairwise_metric_spec.candidate_response_field_name} - {""} if metric.pairwise_metric_spec else set()
        )
        if not asked & allowed:
            where = f"{path}.{kind}.metric_prompt_template"
            yield FieldViolation(
                where, "The template must hold the answer to be judged: write {response} where it belongs."
            )
