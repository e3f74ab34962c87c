"""Convert the API's metric specs into executable metrics: a computed metric is a function, a judged one a JudgeMetric.

Refuses unsupported metrics, with every fault by its field. Of rows it knows only the names of their fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sarto.engine.evaluation.metrics.computed import METRICS, Score, bleu
from sarto.engine.evaluation.metrics.judge import SAMPLES, JudgeMetric, ScoreScale
from sarto.engine.evaluation.metrics.judge_criteria import (
    HIGH,
    LOW,
    SYSTEM_INSTRUCTION,
    WITH_REFERENCE,
    criterion_template,
)
from sarto.engine.evaluation.metrics.rouge import rouge
from sarto.errors import FieldViolation, InvalidArgument
from sarto.schema.evaluation import (
    COMPUTED_METRICS,
    ROW_FIELDS,
    AggregationMetric,
    AutoraterConfig,
    LLMBasedMetricSpec,
    Metric,
    baseline_fields,
    metric_parameters,
    metric_template,
    predefined_name,
    response_fields,
    rouge_type,
)
from sarto.schema.evaluation_validation import metric_faults
from sarto.schema.generation import GenerationConfig

DEFAULT_AGGREGATIONS = (AggregationMetric.AVERAGE, AggregationMetric.STANDARD_DEVIATION)
WITHOUT_REFERENCE = frozenset({"json_valid"})
RESULT_FIELDS = {"exact_match": "exact_match_metric_value", "bleu": "bleu_metric_value", "rouge": "rouge_metric_value"}
JUDGED_RESULT = "pointwise_metric_result"


@dataclass(frozen=True)
class PlannedMetric:
    """`key` names the metric in files and is unique in a plan; `result_field` is its place in an AggregationResult.
    Exactly one of `score` and `judge` is set."""

    key: str
    title: str
    result_field: str
    aggregations: tuple[AggregationMetric, ...]
    needs_reference: bool = False
    score: Score | None = None
    judge: JudgeMetric | None = None


def plan_metrics(
    metrics: Sequence[Metric],
    autorater: AutoraterConfig | None = None,
    *,
    row_fields: frozenset[str] = ROW_FIELDS,
    path: str = "evaluation_config",
    are_instances: bool = False,
) -> list[PlannedMetric]:
    """The metrics of a config. Raises InvalidArgument with every fault at once. `row_fields` are the fields of every
    row. A template for instances may lack the answer: it is filled with the fields of each instance."""
    if not metrics:
        raise InvalidArgument.field(f"{path}.metrics", "At least one metric is required.")
    faults: list[FieldViolation] = []
    for index, metric in enumerate(metrics):
        faults += metric_faults(metric, f"{path}.metrics[{index}]".lstrip("."), row_fields, not are_instances)
    if faults:
        raise InvalidArgument.of(faults)
    planned = [_plan(metric, autorater or AutoraterConfig()) for metric in metrics]
    for index, item in enumerate(planned):
        if item.needs_reference and "reference" not in row_fields:
            faults.append(
                FieldViolation(f"{path}.metrics[{index}]".lstrip("."), "Some rows have no reference to compare with.")
            )
    if faults:
        raise InvalidArgument.of(faults)
    return _with_unique_keys(planned)


def judge_models(planned: Sequence[PlannedMetric]) -> frozenset[str]:
    """Names of the judges in the config's spelling; "" is the service's default."""
    return frozenset(item.judge.model for item in planned if item.judge)


def _plan(metric: Metric, autorater: AutoraterConfig) -> PlannedMetric:
    """One metric whose faults were already checked."""
    kind = metric.kind
    if kind == "predefined_metric_spec" and metric.predefined_metric_spec:
        name, predefined = (
            predefined_name(metric.predefined_metric_spec.metric_spec_name),
            metric.predefined_metric_spec,
        )
        if name in COMPUTED_METRICS:
            return _computed(metric, COMPUTED_METRICS[name], metric_parameters(predefined))
        return _criterion(metric, name, str(metric_parameters(predefined).get("guidelines", "")), autorater)
    if kind == "computation_based_metric_spec" and metric.computation_based_metric_spec:
        spec = metric.computation_based_metric_spec
        return _computed(metric, str(spec.type).lower(), metric_parameters(spec))
    if metric.bleu_spec:
        return _computed(metric, "bleu", metric.bleu_spec.model_dump(exclude_none=True))
    if metric.rouge_spec:
        return _computed(metric, "rouge", metric.rouge_spec.model_dump(exclude_none=True))
    if metric.exact_match_spec:
        return _computed(metric, "exact_match", {})
    return _templated(metric, autorater)


def _computed(metric: Metric, name: str, parameters: dict[str, Any]) -> PlannedMetric:
    key, score = name, METRICS.get(name)
    if name.startswith("rouge"):
        key = rouge_type(str(parameters.pop("rouge_type", "rougeL" if name == "rouge" else name)))
        score = partial(rouge, rouge_type=key, **parameters)
    elif name == "bleu":
        score = partial(bleu, **parameters)
    field = RESULT_FIELDS["rouge" if name.startswith("rouge") else name] if _has_field(name) else JUDGED_RESULT
    return PlannedMetric(
        key,
        _title(metric, key),
        field,
        _aggregations(metric),
        needs_reference=name not in WITHOUT_REFERENCE,
        score=score,
    )


def _has_field(name: str) -> bool:
    return name in RESULT_FIELDS or name.startswith("rouge")


def _criterion(metric: Metric, name: str, guidelines: str, autorater: AutoraterConfig) -> PlannedMetric:
    template, scale = criterion_template(name, guidelines), ScoreScale(LOW, HIGH, 1)
    judge = JudgeMetric(name, template, system_instruction=SYSTEM_INSTRUCTION, scale=scale, **_settings(autorater))
    needs = name in WITH_REFERENCE
    return PlannedMetric(name, _title(metric, name), JUDGED_RESULT, _aggregations(metric), needs, judge=judge)


def _templated(metric: Metric, autorater: AutoraterConfig) -> PlannedMetric:
    """A pointwise, pairwise or model-based spec, with the user's template."""
    spec = metric.pointwise_metric_spec or metric.pairwise_metric_spec or metric.llm_based_metric_spec
    assert spec is not None
    output = None if isinstance(spec, LLMBasedMetricSpec) else spec.custom_output_format_config
    if isinstance(spec, LLMBasedMetricSpec):
        autorater = spec.judge_autorater_config or autorater
    is_pairwise = metric.pairwise_metric_spec is not None
    key = metric.kind.removesuffix("_metric_spec")
    judge = JudgeMetric(
        key,
        metric_template(metric),
        is_pairwise,
        spec.system_instruction,
        response_fields(metric),
        baseline_fields(metric),
        _scale(metric),
        bool(output and output.return_raw_output),
        **_settings(autorater),
    )
    aggregations = (AggregationMetric.MODE,) if is_pairwise else _aggregations(metric)
    field = "pairwise_metric_result" if is_pairwise else JUDGED_RESULT
    return PlannedMetric(key, _title(metric, key), field, aggregations, judge=judge)


def _settings(autorater: AutoraterConfig) -> dict[str, Any]:
    return {
        "model": autorater.autorater_model,
        "samples": autorater.sampling_count or SAMPLES,
        "flips": autorater.flip_enabled is not False,
        "config": autorater.generation_config or GenerationConfig(),
    }


def _scale(metric: Metric) -> ScoreScale:
    limits = metric.metadata.score_range if metric.metadata else None
    if limits is None or limits.min is None or limits.max is None:
        return ScoreScale()
    return ScoreScale(limits.min, limits.max, limits.step)


def _title(metric: Metric, key: str) -> str:
    return (metric.metadata.title if metric.metadata else "") or key


def _aggregations(metric: Metric) -> tuple[AggregationMetric, ...]:
    aggregations = [item for item in metric.aggregation_metrics if not item.is_unspecified]
    return tuple(dict.fromkeys(aggregations)) or DEFAULT_AGGREGATIONS


def _with_unique_keys(planned: Sequence[PlannedMetric]) -> list[PlannedMetric]:
    """Rename a second metric of the same key to `key_2`, and so on."""
    seen: Counter[str] = Counter()
    unique = []
    for item in planned:
        seen[item.key] += 1
        number = seen[item.key]
        unique.append(item if number == 1 else replace(item, key=f"{item.key}_{number}"))
    return unique
