"""Checks of an EvaluationConfig that are possible before a run; control applies them at create, and the run again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sarto.errors import FieldViolation
from sarto.schema.evaluation import (
    BASELINE_FIELD,
    COMPUTED_METRICS,
    JUDGED_METRICS,
    PLACEHOLDER,
    ROUGE_TYPES,
    ROW_FIELDS,
    AggregationMetric,
    AutoraterConfig,
    ComputationBasedMetricSpec,
    EvaluationConfig,
    LLMBasedMetricSpec,
    Metric,
    PredefinedMetricSpec,
    baseline_fields,
    metric_parameters,
    metric_template,
    predefined_name,
    response_fields,
    rouge_type,
)

MOST_TEMPLATE = 100_000
"""Most characters of a template, which is filled for every row."""


def config_faults(
    config: EvaluationConfig, path: str, row_fields: frozenset[str] = ROW_FIELDS
) -> Iterator[FieldViolation]:
    """Every fault of a config; paths begin with `path`. `row_fields` are the fields that each row has."""
    if not config.metrics:
        yield FieldViolation(f"{path}.metrics", "At least one metric is required.")
    destination = config.output_config.gcs_destination if config.output_config else None
    prefix = destination.output_uri_prefix if destination else ""
    if not re.match(r"gs://[^/]+", prefix):
        where = f"{path}.output_config.gcs_destination.output_uri_prefix"
        yield FieldViolation(where, f'A Cloud Storage prefix is required, gs://BUCKET/FOLDER; seen: "{prefix}".')
    for index, metric in enumerate(config.metrics):
        yield from metric_faults(metric, f"{path}.metrics[{index}]", row_fields)
    yield from _judge_faults(config.autorater_config, f"{path}.autorater_config")


def _judge_faults(judge: AutoraterConfig | None, where: str) -> Iterator[FieldViolation]:
    if judge and judge.sampling_count is not None and not 1 <= judge.sampling_count <= 32:
        yield FieldViolation(f"{where}.sampling_count", "Must be from 1 to 32.")


def _range_faults(metric: Metric, where: str) -> Iterator[FieldViolation]:
    scores = metric.metadata.score_range if metric.metadata else None
    if scores is None:
        return
    if scores.min is None or scores.max is None or not scores.min < scores.max:
        yield FieldViolation(where, "Give min and max, and min below max.")
    elif scores.step is not None and not 0 < scores.step <= scores.max - scores.min:
        yield FieldViolation(f"{where}.step", "Must be above 0 and not above the width of the range.")


def metric_faults(
    metric: Metric, path: str, row_fields: frozenset[str] = ROW_FIELDS, needs_answer: bool = True
) -> Iterator[FieldViolation]:
    """Every fault of one metric; paths begin with `path`. A pointwise template needs an answer if `needs_answer`."""
    kind = metric.kind
    where = f"{path}.{kind}"
    if not kind:
        yield FieldViolation(path, "One metric spec must be set: " + ", ".join(metric.ONEOFS["metric_spec"]) + ".")
    elif kind == "custom_code_execution_spec":
        yield FieldViolation(where, "Custom code is not supported by this service; use a prompt template instead.")
    if metric.rouge_spec and rouge_type(metric.rouge_spec.rouge_type) not in ROUGE_TYPES:
        yield FieldViolation(f"{where}.rouge_type", f"Use one of {', '.join(sorted(ROUGE_TYPES))}.")
    if metric.predefined_metric_spec:
        yield from _predefined_faults(metric.predefined_metric_spec, where)
    if metric.computation_based_metric_spec:
        yield from _computed_faults(metric.computation_based_metric_spec, where)
    yield from _range_faults(metric, f"{path}.metadata.score_range")
    if metric.llm_based_metric_spec:
        yield from _judge_faults(metric.llm_based_metric_spec.judge_autorater_config, f"{where}.judge_autorater_config")
        yield from _rubric_faults(metric.llm_based_metric_spec, where)
    if metric.pairwise_metric_spec:
        wrong = [m for m in metric.aggregation_metrics if m is not AggregationMetric.MODE]
        if wrong:
            yield FieldViolation(
                f"{path}.aggregation_metrics", f"A pairwise metric aggregates by MODE only, not {wrong[0]}."
            )
    if metric.pointwise_metric_spec or metric.pairwise_metric_spec or metric.llm_based_metric_spec:
        must_judge = needs_answer or metric.pairwise_metric_spec is not None
        yield from _template_faults(metric, f"{where}.metric_prompt_template", row_fields, must_judge)


def _template_faults(
    metric: Metric, where: str, row_fields: frozenset[str], needs_answer: bool
) -> Iterator[FieldViolation]:
    """Faults of a template: a missing field for the judged answer (a pairwise one: for both), or a field that rows do
    not have."""
    template = metric_template(metric)
    if len(template) > MOST_TEMPLATE:
        yield FieldViolation(where, f"A template has at most {MOST_TEMPLATE:,} characters; this has {len(template):,}.")
        return
    placeholders = set(PLACEHOLDER.findall(template))
    own, baseline = response_fields(metric), baseline_fields(metric)
    if needs_answer and not placeholders & own:
        yield FieldViolation(where, "The template must contain the answer to be judged: write {response} there.")
    if metric.pairwise_metric_spec and not placeholders & baseline:
        name = min(baseline, key=lambda field: field == BASELINE_FIELD)
        yield FieldViolation(where, f"The template must contain the answer to compare with: write {{{name}}} there.")
    known = own | baseline | row_fields
    for name in sorted(placeholders - known):
        yield FieldViolation(where, f'No row has the field "{name}"; there are {", ".join(sorted(known))}.')


def _predefined_faults(spec: PredefinedMetricSpec, where: str) -> Iterator[FieldViolation]:
    name = predefined_name(spec.metric_spec_name)
    known = {*COMPUTED_METRICS, *JUDGED_METRICS}
    if name not in known:
        seen = f'Unknown metric "{spec.metric_spec_name}"; use one of {", ".join(sorted(known))}.'
        yield FieldViolation(f"{where}.metric_spec_name", seen)
        return
    if spec.step_autorater_configs:
        yield FieldViolation(f"{where}.step_autorater_configs", "Metrics have one step here; use autorater_config.")
    allowed = {"guidelines"} if name in JUDGED_METRICS else _parameters_of(COMPUTED_METRICS[name])
    yield from _parameter_faults(metric_parameters(spec), allowed, f"{where}.metric_spec_parameters")


def _computed_faults(spec: ComputationBasedMetricSpec, where: str) -> Iterator[FieldViolation]:
    if spec.type is None or spec.type.is_unspecified:
        yield FieldViolation(f"{where}.type", "Use one of EXACT_MATCH, BLEU, ROUGE.")
        return
    yield from _parameter_faults(metric_parameters(spec), _parameters_of(spec.type.lower()), f"{where}.parameters")


def _parameters_of(metric: str) -> set[str]:
    if metric == "bleu":
        return {"use_effective_order"}
    if metric.startswith("rouge"):
        return {"use_stemmer", "split_summaries"} | ({"rouge_type"} if metric == "rouge" else set())
    return set()


def _parameter_faults(parameters: dict[str, object], allowed: set[str], where: str) -> Iterator[FieldViolation]:
    for name, value in parameters.items():
        if name not in allowed:
            there = f"there are {', '.join(sorted(allowed))}" if allowed else "this metric has none"
            yield FieldViolation(f"{where}.{name}", f"Unknown parameter; {there}.")
        elif name == "rouge_type" and (not isinstance(value, str) or rouge_type(value) not in ROUGE_TYPES):
            yield FieldViolation(f"{where}.{name}", f"Use one of {', '.join(sorted(ROUGE_TYPES))}.")
        elif name == "guidelines" and not isinstance(value, str):
            yield FieldViolation(f"{where}.{name}", "Must be text.")
        elif name not in ("rouge_type", "guidelines") and not isinstance(value, bool):
            yield FieldViolation(f"{where}.{name}", "Must be true or false.")


def _rubric_faults(spec: LLMBasedMetricSpec, where: str) -> Iterator[FieldViolation]:
    rubrics = (spec.rubric_group_key, spec.rubric_generation_spec, spec.predefined_rubric_generation_spec)
    for name, value in zip(spec.ONEOFS["rubrics_source"], rubrics, strict=True):
        if value:
            yield FieldViolation(
                f"{where}.{name}", "Generated rubrics are not supported; write them into the template."
            )
    if spec.result_parser_config:
        yield FieldViolation(f"{where}.result_parser_config", "Custom code is not supported by this service.")
    if spec.additional_config:
        yield FieldViolation(f"{where}.additional_config", "Additional settings are not supported.")
