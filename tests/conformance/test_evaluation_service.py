"""evaluateDataset and evaluateInstances as the official clients call them, and as `curl` does."""

from __future__ import annotations

import json
import warnings
from typing import Any

import httpx
import pytest

from .conftest import PARENT, Dataset
from .conftest import ended as job_ended
from .service import Service, upload, wait_for

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = [
    {"prompt": "Capital of France?", "reference": "Paris", "response": "Paris", "mood": "calm"},
    {"prompt": "Capital of Peru?", "reference": "Lima", "response": "Quito", "mood": "calm"},
    {"prompt": "Capital of Fiji?", "reference": "Suva", "response": "Suva", "mood": "calm"},
]


@pytest.fixture(scope="module")
def client(service: Service) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vertexai
        from google.genai.types import HttpOptions
    return vertexai.Client(
        project="demo", location="us-central1", credentials=service.credentials(),
        http_options=HttpOptions(base_url=service.address),
    )  # fmt: skip


@pytest.fixture(scope="module")
def answered(http: httpx.Client) -> str:
    """A file of rows with their answers, one of them not a row."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS) + '{"prompt": "no answer"}\n'
    return upload(http, "tuning-data", "answered.jsonl", lines.encode())


def ended(http: httpx.Client, name: str) -> dict[str, Any]:
    def read() -> dict[str, Any] | None:
        found: dict[str, Any] = http.get(f"/v1/{name}").json()
        return found if found.get("done") else None

    operation: dict[str, Any] = wait_for(read)
    return operation


def body(dataset: str, *metrics: dict[str, Any], **fields: Any) -> dict[str, Any]:
    output = {"gcsDestination": {"outputUriPrefix": "gs://tuning-data/evaluations"}}
    return {"dataset": {"gcsSource": {"uris": [dataset]}}, "metrics": list(metrics), "outputConfig": output} | fields


def stored(http: httpx.Client, directory: str, name: str) -> str:
    bucket, _, prefix = directory.removeprefix("gs://").partition("/")
    path = f"{prefix}/{name}".replace("/", "%2F")
    return http.get(f"/storage/v1/b/{bucket}/o/{path}", params={"alt": "media"}).raise_for_status().text


def test_instances_are_scored_for_the_vertexai_client(client: Any) -> None:
    pairs = [{"prediction": "Paris", "reference": "Paris"}, {"prediction": "Quito", "reference": "Lima"}]
    exact = client.evals.evaluate_instances(
        metric_config={"exact_match_input": {"metric_spec": {}, "instances": pairs}}
    )
    assert [value.score for value in exact.exact_match_results.exact_match_metric_values] == [1.0, 0.0]
    text = [{"prediction": "the cat sat on the mat", "reference": "the cat is on the mat"}]
    rouge = {"metric_spec": {"rouge_type": "rouge1"}, "instances": text}
    found = client.evals.evaluate_instances(metric_config={"rouge_input": rouge})
    assert found.rouge_results.rouge_metric_values[0].score == pytest.approx(5 / 6)
    same = [{"prediction": "a b c d", "reference": "a b c d"}]
    bleu = client.evals.evaluate_instances(metric_config={"bleu_input": {"metric_spec": {}, "instances": same}})
    assert bleu.bleu_results.bleu_metric_values[0].score == pytest.approx(1.0)


def test_the_client_evaluates_a_table_with_computed_and_judged_metrics(client: Any) -> None:
    import pandas
    from vertexai._genai import types

    judged = types.LLMMetric(
        name="tone", prompt_template="Rate from 1 to 5: {response}", judge_model="outside/fair-gemini"
    )
    metrics = [types.Metric(name="exact_match"), judged, types.Metric(name="text_quality_v1")]
    table = pandas.DataFrame(ROWS)[["prompt", "reference", "response"]]
    result = client.evals.evaluate(dataset=types.EvaluationDataset(eval_dataset_df=table), metrics=metrics)
    summary = {metric.metric_name: metric for metric in result.summary_metrics}
    assert summary["exact_match"].mean_score == pytest.approx(2 / 3)
    assert summary["tone"].num_cases_valid == 3 and 1 <= summary["tone"].mean_score <= 5
    assert summary["text_quality_v1"].num_cases_valid == 3


def test_the_typed_client_scores_instances_and_a_dataset(service: Service, answered: str) -> None:
    from google.cloud.aiplatform_v1beta1 import types
    from google.cloud.aiplatform_v1beta1.services.evaluation_service import EvaluationServiceClient

    typed = EvaluationServiceClient(
        credentials=service.credentials(), transport="rest", client_options={"api_endpoint": service.address}
    )
    instance = types.PairwiseMetricInstance(json_instance=json.dumps({"a": "one", "baseline_model_response": "two"}))
    spec = types.PairwiseMetricSpec(
        metric_prompt_template="{a} or {baseline_model_response}?", candidate_response_field_name="a"
    )
    pair = types.PairwiseMetricInput(metric_spec=spec, instance=instance)
    request = types.EvaluateInstancesRequest(location=PARENT, pairwise_metric_input=pair)
    choice = typed.evaluate_instances(request).pairwise_metric_result.pairwise_choice
    assert choice.name in ("BASELINE", "CANDIDATE", "TIE")
    output = types.OutputConfig(gcs_destination={"output_uri_prefix": "gs://tuning-data/typed"})
    metric = types.Metric(exact_match_spec={}, aggregation_metrics=[1])
    asked = types.EvaluateDatasetRequest(
        location=PARENT, dataset={"gcs_source": {"uris": [answered]}}, metrics=[metric], output_config=output
    )
    response = typed.evaluate_dataset(asked).result(timeout=60)
    assert response.aggregation_output.aggregation_results[0].exact_match_metric_value.score == pytest.approx(2 / 3)


def test_the_older_sdk_evaluates_a_table(service: Service) -> None:
    import pandas
    import vertexai
    from vertexai.evaluation import EvalTask, PointwiseMetric

    vertexai.init(
        project="demo", location="us-central1", credentials=service.credentials(), api_endpoint=service.address,
        api_transport="rest",
    )  # fmt: skip
    tone = PointwiseMetric(metric="tone", metric_prompt_template="Rate {response} from 1 to 5")
    table = pandas.DataFrame(ROWS)[["prompt", "reference", "response"]]
    found = EvalTask(dataset=table, metrics=["exact_match", "rouge_l_sum", tone]).evaluate()
    assert found.summary_metrics["exact_match/mean"] == pytest.approx(2 / 3)
    assert found.summary_metrics["rouge_l_sum/mean"] == pytest.approx(2 / 3)
    assert 1 <= found.summary_metrics["tone/mean"] <= 5


def test_a_dataset_is_evaluated_for_the_vertexai_client(client: Any, http: httpx.Client, answered: str) -> None:
    from google.genai.types import GcsSource
    from vertexai._genai import types

    begun = client.evals.batch_evaluate(
        dataset=types.EvaluationDataset(gcs_source=GcsSource(uris=[answered])),
        metrics=[types.Metric(name="exact_match"), types.Metric(name="rouge_1")],
        dest="gs://tuning-data/batch",
    )
    operation = ended(http, begun.name)
    results = operation["response"]["aggregationOutput"]["aggregationResults"]
    assert results[0]["exactMatchMetricValue"]["score"] == pytest.approx(2 / 3)
    assert results[2]["rougeMetricValue"]["score"] == pytest.approx(2 / 3)
    assert (operation["metadata"]["rows"], operation["metadata"]["rowsLeftOut"]) == (3, 1)
    directory = operation["response"]["outputInfo"]["gcsOutputDirectory"]
    lines = stored(http, directory, "row_results.jsonl").splitlines()
    assert [json.loads(line)["results"]["exact_match"]["score"] for line in lines] == [1.0, 0.0, 1.0]
    assert "line 4" in stored(http, directory, "report/report.html")


def test_several_models_answer_a_file_and_stand_in_one_table(
    http: httpx.Client, dataset: Dataset, tuned: dict[str, Any]
) -> None:
    models = ["gemini-2.0-flash-001", tuned["tunedModel"]["model"], tuned["tunedModel"]["checkpoints"][0]["endpoint"]]
    template = "{prompt}: {response} or {baseline_model_response}, for a {mood} reader"
    metrics = [
        {"exactMatchSpec": {}, "aggregationMetrics": ["AVERAGE"]},
        {"pairwiseMetricSpec": {"metricPromptTemplate": template.partition(",")[0]}},
    ]
    judge = {"autoraterModel": models[0], "samplingCount": 1, "generationConfig": {"maxOutputTokens": 32}}
    asked = body(dataset.validation, *metrics, models=models, autoraterConfig=judge)
    begun = http.post(f"/v1/{PARENT}:evaluateDataset", json=asked)
    assert begun.status_code == 200, begun.text
    operation = ended(http, begun.json()["name"])
    results = operation["metadata"]["modelResults"]
    assert list(results) == models
    counts = [
        len(run["evaluateDatasetResponse"]["aggregationOutput"]["aggregationResults"]) for run in results.values()
    ]
    assert counts == [1, 2, 2]
    directory = operation["response"]["outputInfo"]["gcsOutputDirectory"]
    report = json.loads(stored(http, directory, "report/report.json"))
    assert [system["name"] for system in report["systems"]] == models
    assert report["baseline"] == models[0] and len(report["comparisons"]) == 4
    assert len(stored(http, directory, "model-2/row_results.jsonl").splitlines()) == 4
    assert stored(http, directory, "report/report.html").startswith("<!doctype html>")


POINTWISE = {"pointwiseMetricSpec": {"metricPromptTemplate": "Rate {response} for a {mood} reader"}}


def test_templates_ask_for_the_fields_that_rows_have(http: httpx.Client, answered: str) -> None:
    begun = http.post(f"/v1/{PARENT}:evaluateDataset", json=body(answered, POINTWISE)).json()
    results = ended(http, begun["name"])["response"]["aggregationOutput"]["aggregationResults"]
    assert 1 <= results[0]["pointwiseMetricResult"]["score"] <= 5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metrics": []}, "metrics"),
        ({"metrics": [{"pointwiseMetricSpec": {"metricPromptTemplate": "{response} {weather}"}}]}, "weather"),
        ({"metrics": [{"predefinedMetricSpec": {"metricSpecName": "vibes"}}]}, "metrics[0].predefined_metric_spec"),
        ({"metrics": [POINTWISE], "autoraterConfig": {"autoraterModel": "nobody"}}, "autorater_config.autorater_model"),
        ({"models": ["endpoints/1"]}, "models[0]"),
        ({"dataset": {"gcsSource": {"uris": ["gs://tuning-data/nothing.jsonl"]}}}, "dataset.gcs_source.uris[0]"),
        ({"dataset": {"bigquerySource": {"inputUri": "bq://x"}}}, "dataset.bigquery_source"),
        ({"outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://no-such-bucket/x"}}}, "output_uri_prefix"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_its_field(
    http: httpx.Client, answered: str, change: dict[str, Any], field: str
) -> None:
    refused = http.post(f"/v1beta1/{PARENT}:evaluateDataset", json=body(answered, {"exactMatchSpec": {}}) | change)
    assert refused.status_code == 400, refused.text
    assert field in refused.text


def test_rows_without_answers_end_as_the_operations_error(http: httpx.Client, dataset: Dataset) -> None:
    begun = http.post(f"/v1/{PARENT}:evaluateDataset", json=body(dataset.validation, {"exactMatchSpec": {}})).json()
    assert "no row that can be evaluated" in ended(http, begun["name"])["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({}, 400, "metrics"),
        ({"fluencyInput": {"metricSpec": {}}}, 400, "fluency_input"),
        ({"pointwiseMetricInput": {"metricSpec": {}, "instance": {"jsonInstance": "{"}}}, 400, "json_instance"),
        ({"exactMatchInput": {"instances": []}}, 400, "exact_match_input"),
        ({"bleuInput": {"instances": [{"prediction": "a" * 300_000}]}}, 400, "evaluateDataset"),
    ],
)
def test_instances_that_cannot_be_scored_are_refused_by_name(
    http: httpx.Client, asked: dict[str, Any], code: int, words: str
) -> None:
    refused = http.post(f"/v1/{PARENT}:evaluateInstances", json=asked)
    assert refused.status_code == code and words in refused.text


LESSONS = {
    "aa": "yes",
    "bee": "no",
    "sea": "maybe",
    "day": "never",
    "eel": "soon",
    "fog": "later",
    "gnu": "once",
    "hut": "twice",
}
SPOILT = {3: "no", 6: "yes"}
"""By line, what the second model is taught in place of the right answer."""


def taught(http: httpx.Client, name: str, answers: list[str]) -> str:
    """A model that knows its lesson by heart."""
    rows = [
        {"contents": [{"role": "user", "parts": [{"text": word}]}, {"role": "model", "parts": [{"text": answer}]}]}
        for word, answer in zip(LESSONS, answers, strict=True)
    ]
    uri = upload(http, "tuning-data", f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    spec = {
        "trainingDatasetUri": uri, "exportLastCheckpointOnly": True,
        "hyperParameters": {"epochCount": 60, "adapterSize": "ADAPTER_SIZE_EIGHT"},
    }  # fmt: skip
    job = {"baseModel": "gemini-2.0-flash-001", "tunedModelDisplayName": name, "supervisedTuningSpec": spec}
    made = http.post(f"/v1/{PARENT}/tuningJobs", json=job).json()
    return str(job_ended(http, made["name"])["tunedModel"]["model"])


@pytest.mark.slow
def test_rows_that_were_spoilt_are_found_and_listed(http: httpx.Client) -> None:
    right = list(LESSONS.values())
    spoilt = [SPOILT.get(line, answer) for line, answer in enumerate(right, 1)]
    models = [taught(http, "sound", right), taught(http, "spoilt", spoilt)]
    lines = [json.dumps({"prompt": word, "reference": answer}) + "\n" for word, answer in LESSONS.items()]
    dataset = upload(http, "tuning-data", "lesson.jsonl", "".join(lines).encode())
    begun = http.post(f"/v1/{PARENT}:evaluateDataset", json=body(dataset, models=models)).json()
    directory = ended(http, begun["name"])["response"]["outputInfo"]["gcsOutputDirectory"]
    report = json.loads(stored(http, directory, "report/report.json"))
    assert [system["metrics"][1]["mean"] for system in report["systems"]] == [1.0, 0.75]
    assert sorted(row["line"] for row in report["worseRows"]) == list(SPOILT)
    assert {row["line"]: row["after"] for row in report["worseRows"]} == SPOILT
    assert "2 rows are worse with" in stored(http, directory, "report/report.html")
