"""evaluateInstances: one metric on instances that stand in the request, or several metrics on one of them.

Each becomes a row with its answer, scored as a row of a dataset is. Knows no HTTP; `app` hands it to the doors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.asking import Generate
from sarto.engine.evaluation.evaluate import score_rows
from sarto.engine.evaluation.judge import Judgement
from sarto.engine.evaluation.plan import PlannedMetric, judge_models, plan_metrics
from sarto.engine.evaluation.rows import EvaluationRow, json_text, reply_text
from sarto.errors import InvalidArgument, Unimplemented, from_status
from sarto.schema.evaluation import (
    BleuSpec,
    ExactMatchSpec,
    Metric,
    PairwiseMetricResult,
    PairwiseMetricSpec,
    PointwiseMetricResult,
    PointwiseMetricSpec,
    RougeSpec,
    Score,
    baseline_fields,
    response_fields,
)
from sarto.schema.evaluation_service import (
    INPUTS,
    OTHER_INPUTS,
    BleuResults,
    EvaluateInstancesRequest,
    EvaluateInstancesResponse,
    EvaluationInstance,
    ExactMatchResults,
    InstanceData,
    JudgedInstance,
    MetricResult,
    RougeResults,
    TextInstance,
)
from sarto.schema.generation import Content, GenerateContentRequest

MOST_INSTANCES = 1000
MOST_CHARACTERS = 200_000
"""Of all texts of a request together, since it is computed while its caller waits."""
Values = dict[str, str]


@dataclass(frozen=True)
class Asked:
    """What a request comes to. `single` is the input of its one metric; empty where it has a list of metrics."""

    single: str
    metrics: list[PlannedMetric]
    instances: list[Values]
    spec: Metric


class InstanceEvaluator:
    """Both halves of a call: who must judge, and the scores."""

    def judges(self, asked: EvaluateInstancesRequest) -> frozenset[str]:
        """Raises as `read_asked` does."""
        return judge_models(read_asked(asked).metrics)

    async def scores(
        self, asked: EvaluateInstancesRequest, judges: Mapping[str, Generate]
    ) -> EvaluateInstancesResponse:
        return await evaluate_instances(read_asked(asked), judges)


def read_asked(asked: EvaluateInstancesRequest) -> Asked:
    """Raises InvalidArgument with the fields, and Unimplemented for metrics that are not computed here."""
    refused = [name for name in (*OTHER_INPUTS, "metric_sources") if getattr(asked, name)]
    if refused:
        raise Unimplemented(f"{', '.join(refused)}: not computed here. Use one of {', '.join(INPUTS)}, or metrics.")
    single, spec, instances = _single(asked)
    metrics = [spec] if single else asked.metrics
    if not metrics:
        raise InvalidArgument.field("metrics", "Give metrics and an instance, or the input of one metric.")
    if not single:
        instances = [_instance_values(asked.instance or EvaluationInstance())]
    _check_size(instances, single or "instance")
    shared = frozenset.intersection(*(frozenset(values) for values in instances))
    planned = plan_metrics(metrics, asked.autorater_config, row_fields=shared, path=single, are_instances=True)
    return Asked(single, planned, instances, spec)


async def evaluate_instances(asked: Asked, judges: Mapping[str, Generate]) -> EvaluateInstancesResponse:
    """`judges` by the names of `judge_models`. Of a list each metric has its score or error; raises what kept a single
    metric from its score."""
    rows = [EvaluationRow(number, GenerateContentRequest(), "", values.get("reference"), values)
            for number, values in enumerate(asked.instances, 1)]  # fmt: skip
    answers = _answers(asked, response_fields(asked.spec))
    baseline = _answers(asked, baseline_fields(asked.spec))
    scored = [await score_rows(metric, rows, answers, baseline, judges) for metric in asked.metrics]
    if not asked.single:
        return EvaluateInstancesResponse(metric_results=[_result(metric.results[0]) for metric in scored])
    for judged in scored[0].results:
        if judged.error:
            raise from_status(judged.error)
    return _response(asked.single, scored[0].results)


def _single(asked: EvaluateInstancesRequest) -> tuple[str, Metric, list[Values]]:
    """The name, metric and instances of a request in the older form; no name where there is none."""
    if exact := asked.exact_match_input:
        spec = Metric(exact_match_spec=exact.metric_spec or ExactMatchSpec())
        return "exact_match_input", spec, _texts(exact.instances)
    if bleu := asked.bleu_input:
        return "bleu_input", Metric(bleu_spec=bleu.metric_spec or BleuSpec()), _texts(bleu.instances)
    if rouge := asked.rouge_input:
        return "rouge_input", Metric(rouge_spec=rouge.metric_spec or RougeSpec()), _texts(rouge.instances)
    if point := asked.pointwise_metric_input:
        name = "pointwise_metric_input"
        spec = Metric(pointwise_metric_spec=point.metric_spec or PointwiseMetricSpec())
        return name, spec, [_judged_values(point.instance, name)]
    if pair := asked.pairwise_metric_input:
        name = "pairwise_metric_input"
        spec = Metric(pairwise_metric_spec=pair.metric_spec or PairwiseMetricSpec())
        return name, spec, [_judged_values(pair.instance, name)]
    return "", Metric(), []


def _texts(instances: Sequence[TextInstance]) -> list[Values]:
    return [{"response": one.prediction, "reference": one.reference} for one in instances]


def _judged_values(instance: JudgedInstance | None, name: str) -> Values:
    where = f"{name}.instance"
    if instance is None or not (instance.json_instance or instance.content_map_instance):
        raise InvalidArgument.field(where, "Give json_instance or content_map_instance.")
    if instance.content_map_instance:
        contents = instance.content_map_instance.values
        return {key: _contents_text(found.contents) for key, found in contents.items()}
    try:
        values = orjson.loads(instance.json_instance)
    except ValueError as error:
        raise InvalidArgument.field(f"{where}.json_instance", f"This is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InvalidArgument.field(f"{where}.json_instance", "A JSON object is needed: the fields of the template.")
    return {key: value if isinstance(value, str) else json_text(value) for key, value in values.items()}


def _instance_values(instance: EvaluationInstance) -> Values:
    """What an agent did is not read: beside a response, the vertexai client says the same there once more."""
    if instance.rubric_groups or (instance.response is None and (instance.agent_data or instance.agent_eval_data)):
        raise Unimplemented("instance: rubric groups and runs of agents are not scored here; give a response.")
    given = {"prompt": instance.prompt, "response": instance.response, "reference": instance.reference}
    given |= instance.other_data.map_instance if instance.other_data else {}
    return {name: _data_text(data) for name, data in given.items() if data is not None}


def _data_text(data: InstanceData) -> str:
    return _contents_text(data.contents.contents) if data.contents else data.text or ""


def _contents_text(contents: Sequence[Content]) -> str:
    return "\n".join(reply_text(content) for content in contents)


def _check_size(instances: Sequence[Values], where: str) -> None:
    if not 1 <= len(instances) <= MOST_INSTANCES:
        raise InvalidArgument.field(where, f"From 1 to {MOST_INSTANCES} instances can be scored at once.")
    if sum(len(text) for values in instances for text in values.values()) > MOST_CHARACTERS:
        words = f"More than {MOST_CHARACTERS:,} characters; use evaluateDataset for as much."
        raise InvalidArgument.field(where, words)


def _answers(asked: Asked, names: frozenset[str]) -> list[Answer]:
    """What each instance has under one of the names; nothing is an empty answer."""
    found = [next((values[name] for name in sorted(names) if name in values), "") for values in asked.instances]
    return [Answer(number, text) for number, text in enumerate(found, 1)]


def _result(judged: Judgement) -> MetricResult:
    if judged.error:
        return MetricResult(error=judged.error)
    return MetricResult(score=judged.score, explanation=judged.explanation or str(judged.choice or ""))


def _response(single: str, results: Sequence[Judgement]) -> EvaluateInstancesResponse:
    first, scores = results[0], [Score(score=judged.score) for judged in results]
    raw = {"rawOutputs": {"rawOutput": list(first.raw)}} if first.raw else None
    if single == "exact_match_input":
        return EvaluateInstancesResponse(exact_match_results=ExactMatchResults(exact_match_metric_values=scores))
    if single == "bleu_input":
        return EvaluateInstancesResponse(bleu_results=BleuResults(bleu_metric_values=scores))
    if single == "rouge_input":
        return EvaluateInstancesResponse(rouge_results=RougeResults(rouge_metric_values=scores))
    if single == "pointwise_metric_input":
        point = PointwiseMetricResult(score=first.score, explanation=first.explanation, custom_output=raw)
        return EvaluateInstancesResponse(pointwise_metric_result=point)
    pair = PairwiseMetricResult(pairwise_choice=first.choice, explanation=first.explanation, custom_output=raw)
    return EvaluateInstancesResponse(pairwise_metric_result=pair)
