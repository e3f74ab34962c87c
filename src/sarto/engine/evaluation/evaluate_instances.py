"""evaluateInstances: one metric on the instances of a request, or several metrics on one instance.

Each instance becomes a row with its answer, scored as a row of a dataset is. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sarto.conversations.json_text import read_json_text
from sarto.engine.evaluation.answers import Answer
from sarto.engine.evaluation.evaluate_dataset import Compute, compute_rows, score_rows
from sarto.engine.evaluation.generate import Generate
from sarto.engine.evaluation.metrics.judge import Judgement
from sarto.engine.evaluation.metrics.plan import PlannedMetric, judge_models, plan_metrics
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
    baseline_fields,
    response_fields,
)
from sarto.schema.evaluation import Score as ScoreValue
from sarto.schema.evaluation_requests import (
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
"""Limit over all texts of a request, which is computed while its caller waits."""
MOST_METRICS = 50
TOO_MUCH = f"More than {MOST_CHARACTERS:,} characters; use evaluateDataset for as much."
Values = dict[str, str]
Score = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""`score_metric` for a project, in a process with limits."""


@dataclass(frozen=True)
class InstancesQuery:
    """A parsed request. `single` is the input of its one metric; empty if it has a list of metrics."""

    single: str
    metrics: list[PlannedMetric]
    instances: list[Values]
    spec: Metric


@dataclass(frozen=True)
class PreparedQuery:
    """A parsed request: the judges that it needs, and the request itself as JSON."""

    query: InstancesQuery
    request: dict[str, Any]

    @property
    def judges(self) -> frozenset[str]:
        return judge_models(self.query.metrics)


class InstanceEvaluator:
    """Both halves of a call: parsing the request, and scoring. `score` computes in a process that can be killed."""

    def __init__(self, score: Score) -> None:
        self._score = score

    def read(self, request: EvaluateInstancesRequest) -> PreparedQuery:
        """Parse a request; slow for long requests. Raises as `read_query` does."""
        return PreparedQuery(read_query(request), request.to_json())

    async def scores(
        self, read: PreparedQuery, judges: Mapping[str, Generate], project: str
    ) -> EvaluateInstancesResponse:
        async def compute(metric: PlannedMetric) -> list[Judgement]:
            index = read.query.metrics.index(metric)
            scores = await self._score(project, {"request": read.request, "metric": index})
            return [Judgement(**result) for result in scores["results"]]

        return await evaluate_instances(read.query, judges, compute)


def score_metric(payload: dict[str, Any]) -> dict[str, Any]:
    """Compute one metric of a request, by its index: the score or the error of each instance."""
    query = read_query(EvaluateInstancesRequest.read(payload["request"]))
    planned = query.metrics[payload["metric"]]
    assert planned.score is not None
    rows = compute_rows(planned.score, _rows(query), _answers(query, response_fields(query.spec)))
    return {"results": [{"score": one.score, "error": one.error} for one in rows]}


def read_query(request: EvaluateInstancesRequest) -> InstancesQuery:
    """Parse a request. Raises InvalidArgument with the fields, and Unimplemented for metrics that Sarto does not
    compute."""
    refused = [name for name in (*OTHER_INPUTS, "metric_sources") if getattr(request, name)]
    if refused:
        raise Unimplemented(f"{', '.join(refused)}: not supported. Use one of {', '.join(INPUTS)}, or metrics.")
    single, spec, instances = _single(request)
    metrics = [spec] if single else request.metrics
    if not metrics:
        raise InvalidArgument.field("metrics", "Give metrics and an instance, or the input of one metric.")
    if len(metrics) > MOST_METRICS:
        raise InvalidArgument.field("metrics", f"At most {MOST_METRICS} metrics are allowed in a request.")
    if not single:
        instances = [_instance_values(request.instance or EvaluationInstance())]
    _check_size(instances, single or "instance")
    shared = frozenset.intersection(*(frozenset(values) for values in instances))
    planned = plan_metrics(metrics, request.autorater_config, row_fields=shared, path=single, are_instances=True)
    return InstancesQuery(single, planned, instances, spec)


async def evaluate_instances(
    query: InstancesQuery, judges: Mapping[str, Generate], compute: Compute | None = None
) -> EvaluateInstancesResponse:
    """Score a request with `judges` by the names of `judge_models`. Each metric of a list has its score or error. The
    error of a single metric is raised."""
    rows = _rows(query)
    answers = _answers(query, response_fields(query.spec))
    baseline = _answers(query, baseline_fields(query.spec))
    scored = [await score_rows(metric, rows, answers, baseline, judges, compute=compute) for metric in query.metrics]
    if not query.single:
        return EvaluateInstancesResponse(metric_results=[_result(metric.results[0]) for metric in scored])
    for judged in scored[0].results:
        if judged.error:
            raise from_status(judged.error)
    return _response(query.single, scored[0].results)


def _rows(query: InstancesQuery) -> list[EvaluationRow]:
    return [
        EvaluationRow(number, GenerateContentRequest(), "", values.get("reference"), values)
        for number, values in enumerate(query.instances, 1)
    ]


def _single(request: EvaluateInstancesRequest) -> tuple[str, Metric, list[Values]]:
    """The name, metric and instances of a request in the older form; an empty name if there is none."""
    if exact := request.exact_match_input:
        spec = Metric(exact_match_spec=exact.metric_spec or ExactMatchSpec())
        return "exact_match_input", spec, _texts(exact.instances)
    if bleu := request.bleu_input:
        return "bleu_input", Metric(bleu_spec=bleu.metric_spec or BleuSpec()), _texts(bleu.instances)
    if rouge := request.rouge_input:
        return "rouge_input", Metric(rouge_spec=rouge.metric_spec or RougeSpec()), _texts(rouge.instances)
    if point := request.pointwise_metric_input:
        name = "pointwise_metric_input"
        spec = Metric(pointwise_metric_spec=point.metric_spec or PointwiseMetricSpec())
        return name, spec, [_judged_values(point.instance, name)]
    if pair := request.pairwise_metric_input:
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
        return {key: _contents_text(content.contents) for key, content in contents.items()}
    if len(instance.json_instance) > MOST_CHARACTERS:
        raise InvalidArgument.field(f"{where}.json_instance", TOO_MUCH)
    try:
        values = read_json_text(instance.json_instance.encode())
    except ValueError as error:
        raise InvalidArgument.field(f"{where}.json_instance", f"This is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise InvalidArgument.field(f"{where}.json_instance", "A JSON object is needed: the fields of the template.")
    return {key: value if isinstance(value, str) else json_text(value) for key, value in values.items()}


def _instance_values(instance: EvaluationInstance) -> Values:
    """The texts of an instance. `agentEvalData` is ignored: the vertexai client repeats the response in it."""
    if instance.rubric_groups or (instance.response is None and (instance.agent_data or instance.agent_eval_data)):
        raise Unimplemented("instance: rubric groups and runs of agents are not supported; give a response.")
    values = {"prompt": instance.prompt, "response": instance.response, "reference": instance.reference}
    values |= instance.other_data.map_instance if instance.other_data else {}
    return {name: _data_text(data) for name, data in values.items() if data is not None}


def _data_text(data: InstanceData) -> str:
    return _contents_text(data.contents.contents) if data.contents else data.text or ""


def _contents_text(contents: Sequence[Content]) -> str:
    return "\n".join(reply_text(content) for content in contents)


def _check_size(instances: Sequence[Values], where: str) -> None:
    if not 1 <= len(instances) <= MOST_INSTANCES:
        raise InvalidArgument.field(where, f"From 1 to {MOST_INSTANCES} instances can be scored at once.")
    if sum(len(text) for values in instances for text in values.values()) > MOST_CHARACTERS:
        raise InvalidArgument.field(where, TOO_MUCH)


def _answers(query: InstancesQuery, names: frozenset[str]) -> list[Answer]:
    """The text of each instance under one of these names; a missing text is an empty answer."""
    texts = [next((values[name] for name in sorted(names) if name in values), "") for values in query.instances]
    return [Answer(number, text) for number, text in enumerate(texts, 1)]


def _result(judged: Judgement) -> MetricResult:
    if judged.error:
        return MetricResult(error=judged.error)
    return MetricResult(score=judged.score, explanation=judged.explanation or str(judged.choice or ""))


def _response(single: str, results: Sequence[Judgement]) -> EvaluateInstancesResponse:
    first, scores = results[0], [ScoreValue(score=judged.score) for judged in results]
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
