"""Evaluation as clients meet it: results on the job, files in the bucket, the standard report, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.judge_server import KEY

from .conftest import PARENT, Dataset, ended
from .service import Service, upload

JUDGED = "Question {prompt} {literal}} wanted {reference}: {response} or {baseline_model_response}"


def body(dataset: Dataset, config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    spec = {
        "trainingDatasetUri": dataset.training,
        "validationDatasetUri": dataset.validation,
        "hyperParameters": {"epochCount": 2},
        "evaluationConfig": config,
    }
    return {"baseModel": "gemini-2.0-flash-001", "supervisedTuningSpec": spec} | fields


def config(*metrics: dict[str, Any], prefix: str = "gs://tuning-data/evaluations", **fields: Any) -> dict[str, Any]:
    return {
        "metrics": list(metrics),
        "outputConfig": {"gcsDestination": {"outputUriPrefix": prefix}},
    } | fields


@pytest.fixture(scope="module")
def evaluated(http: httpx.Client, dataset: Dataset) -> dict[str, Any]:
    """A job with a computed and a judged metric, one of them in snake_case, whose best checkpoint is the default."""
    asked = config(
        {"exactMatchSpec": {}, "aggregationMetrics": ["AVERAGE", "MODE", "PERCENTILE_P90"]},
        {"rouge_spec": {"rouge_type": "rougeL"}, "aggregation_metrics": ["MEDIAN"]},
        {"pairwiseMetricSpec": {"metricPromptTemplate": JUDGED.replace("{literal}}", "{{literal}}")},
         "aggregationMetrics": ["MODE"]},
        autoraterConfig={
            "samplingCount": 2, "autoraterModel": "publishers/google/models/gemini-2.5-flash",
            "generationConfig": {"maxOutputTokens": 32},
        },
    )  # fmt: skip
    labels = {"sarto-default-checkpoint": "best"}
    made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body(dataset, asked, labels=labels))
    assert made.status_code == 200, made.text
    return ended(http, made.json()["name"])


def test_every_checkpoint_has_its_run_and_its_files(http: httpx.Client, evaluated: dict[str, Any]) -> None:
    runs = evaluated["evaluateDatasetRuns"]
    assert [run["checkpointId"] for run in runs] == ["1", "2"]
    for run in runs:
        assert "error" not in run
        response = run["evaluateDatasetResponse"]
        results = response["aggregationOutput"]["aggregationResults"]
        assert [each["aggregationMetric"] for each in results] == [
            "AVERAGE",
            "MODE",
            "PERCENTILE_P90",
            "MEDIAN",
            "MODE",
        ]
        assert results[4]["pairwiseMetricResult"]["pairwiseChoice"] in ("BASELINE", "CANDIDATE", "TIE")
        bucket, _, prefix = response["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://").partition("/")
        listed = http.get(f"/storage/v1/b/{bucket}/o", params={"prefix": f"{prefix}/"}).json()["items"]
        names = [item["name"].rpartition("/")[2] for item in listed]
        assert names == ["aggregation_results.json", "row_results.jsonl"]


def test_the_standard_report_is_there_without_any_config(http: httpx.Client, tuned: dict[str, Any]) -> None:
    assert "evaluateDatasetRuns" not in tuned
    report = http.get(f"/v1/{tuned['name']}/evaluation").json()
    assert [system["name"] for system in report["systems"]] == ["base", "checkpoint 1", "checkpoint 2"]
    assert report["systems"][0]["validationLoss"] > report["systems"][2]["validationLoss"]
    assert report["best"]["rule"]
    page = http.get(f"/v1/{tuned['name']}/evaluation", params={"alt": "html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    events = http.get(f"/v1/{tuned['name']}/events").json()["events"]
    [stored] = [event["message"] for event in events if event["message"].startswith("The evaluation report is at")]
    bucket, _, name = stored.removesuffix(".").partition("gs://")[2].partition("/")
    assert http.get(f"/storage/v1/b/{bucket}/o/{name.replace('/', '%2F')}").status_code == 200


def test_the_best_checkpoint_is_the_default_where_the_label_asks(http: httpx.Client, evaluated: dict[str, Any]) -> None:
    best = http.get(f"/v1/{evaluated['name']}/evaluation").json()["best"]["name"].removeprefix("checkpoint ")
    endpoints = {each["checkpointId"]: each["endpoint"] for each in evaluated["tunedModel"]["checkpoints"]}
    assert evaluated["tunedModel"]["endpoint"] == endpoints[best]


def test_the_official_clients_read_the_results(service: Service, evaluated: dict[str, Any]) -> None:
    from google import genai
    from google.genai.types import HttpOptions

    client = genai.Client(
        vertexai=True, project="demo", location="us-central1", credentials=service.credentials(),
        http_options=HttpOptions(base_url=service.address),
    )  # fmt: skip
    job = client.tunings.get(name=evaluated["name"])
    assert job.evaluate_dataset_runs is not None
    first = job.evaluate_dataset_runs[0]
    assert first.checkpoint_id == "1"
    assert first.evaluate_dataset_response is not None
    output = first.evaluate_dataset_response.aggregation_output
    assert output is not None
    assert output.aggregation_results is not None
    assert len(output.aggregation_results) == 5


@pytest.mark.filterwarnings("ignore")
def test_the_typed_client_reads_the_results(service: Service, evaluated: dict[str, Any]) -> None:
    from google.cloud.aiplatform_v1beta1.services.gen_ai_tuning_service import GenAiTuningServiceClient

    typed = GenAiTuningServiceClient(
        credentials=service.credentials(), transport="rest", client_options={"api_endpoint": service.address}
    )
    runs = typed.get_tuning_job(name=evaluated["name"]).evaluate_dataset_runs
    assert [run.checkpoint_id for run in runs] == ["1", "2"]
    results = runs[0].evaluate_dataset_response.aggregation_output.aggregation_results
    assert [result.aggregation_metric.name for result in results] == [
        "AVERAGE", "MODE", "PERCENTILE_P90", "MEDIAN", "MODE",
    ]  # fmt: skip
    assert results[4].pairwise_metric_result.pairwise_choice.name in ("BASELINE", "CANDIDATE", "TIE")


def test_scores_of_each_checkpoint_are_time_series_of_the_experiment(
    http: httpx.Client, evaluated: dict[str, Any]
) -> None:
    report = http.get(f"/v1/{evaluated['name']}/evaluation").json()
    wanted = {f"/eval_{name}" for name in report["metrics"]}
    store = evaluated["experiment"].partition("/contexts/")[0]
    query = f'schema_title="system.ExperimentRun" AND parent_contexts:"{evaluated["experiment"]}"'
    [run] = http.get(f"/v1/{store}/contexts", params={"filter": query}).json()["contexts"]
    artifact = http.get(f"/v1/{store}/artifacts/{run['name'].rpartition('/')[2]}-tb-run").json()
    series = http.get(f"/v1/{artifact['metadata']['resourceName']}/timeSeries").json()
    names = {each["displayName"] for each in series["tensorboardTimeSeries"]}
    assert wanted and wanted <= names


TEMPLATE = "metric_prompt_template"
POINTWISE = {"pointwiseMetricSpec": {"metricPromptTemplate": "Rate {response}"}}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (config(), "metrics"),
        (config({"predefinedMetricSpec": {"metricSpecName": "vibes"}}), "metrics[0].predefined_metric_spec"),
        (config({"pointwiseMetricSpec": {"metricPromptTemplate": "Rate {mood} of {response}"}}), TEMPLATE),
        (config({"pointwiseMetricSpec": {"metricPromptTemplate": "Rate it"}}), TEMPLATE),
        (config(POINTWISE, autoraterConfig={"autoraterModel": "publishers/google/models/gpt"}), "autorater_model"),
        (config(POINTWISE, autoraterConfig={"autoraterModel": f"{PARENT}/endpoints/4711"}), "autorater_model"),
        (config(POINTWISE, autoraterConfig={"autoraterModel": "outside/unfair"}), "autorater_model"),
        (config(POINTWISE, autoraterConfig={"samplingCount": 33}), "sampling_count"),
        (config(POINTWISE, prefix="gs://no-such-bucket-here/x"), "output_uri_prefix"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_create_by_its_field(
    http: httpx.Client, dataset: Dataset, asked: dict[str, Any], field: str
) -> None:
    refused = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=body(dataset, asked))
    assert refused.status_code == 400
    violations = refused.json()["error"]["details"][0]["fieldViolations"]
    assert any(field in violation["field"] for violation in violations), violations


def test_an_evaluation_without_validation_data_is_refused(http: httpx.Client, dataset: Dataset) -> None:
    asked = body(dataset, config({"exactMatchSpec": {}}))
    del asked["supervisedTuningSpec"]["validationDatasetUri"]
    refused = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=asked)
    assert refused.status_code == 400
    assert "validation_dataset_uri" in refused.text


def test_a_bucket_that_goes_away_meanwhile_costs_the_evaluation_not_the_job(
    http: httpx.Client, dataset: Dataset
) -> None:
    upload(http, "short-lived", "x", b"x")
    asked = body(dataset, config({"exactMatchSpec": {}}, prefix="gs://short-lived/out"))
    made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=asked).json()
    http.delete("/storage/v1/b/short-lived/o/x").raise_for_status()
    http.delete("/storage/v1/b/short-lived").raise_for_status()
    job = ended(http, made["name"])
    assert all("short-lived" in run["error"]["message"] for run in job["evaluateDatasetRuns"])


def test_judges_elsewhere_score_and_one_that_is_away_costs_its_metric_alone(
    service: Service, http: httpx.Client, dataset: Dataset
) -> None:
    def metric(judge: str) -> dict[str, Any]:
        spec = {
            "metricPromptTemplate": "Rate {response} from 1 to 5",
            "judgeAutoraterConfig": {"autoraterModel": judge, "samplingCount": 2},
        }
        limits = {"scoreRange": {"min": 1, "max": 5, "step": 1}}
        return {"llmBasedMetricSpec": spec, "aggregationMetrics": ["AVERAGE"], "metadata": limits}

    names = ["outside/fair", "outside/fair-gemini", "outside/away", "outside/wordy"]
    asked = body(dataset, config(*map(metric, names)))
    asked["supervisedTuningSpec"]["hyperParameters"] = {"epochCount": 1}
    made = http.post(f"/v1beta1/{PARENT}/tuningJobs", json=asked)
    assert made.status_code == 200, made.text
    job = ended(http, made.json()["name"])
    [run] = job["evaluateDatasetRuns"]
    assert "llm_based_3: no row could be scored" in run["error"]["message"]
    assert "outside/away could not be reached" in run["error"]["message"]
    results = run["evaluateDatasetResponse"]["aggregationOutput"]["aggregationResults"]
    scores = [result["pointwiseMetricResult"]["score"] for result in results]
    assert len(scores) == 2 and scores[0] == scores[1] and 1 <= scores[0] <= 5
    directory = run["evaluateDatasetResponse"]["outputInfo"]["gcsOutputDirectory"].removeprefix("gs://")
    bucket, _, prefix = directory.partition("/")
    name = f"{prefix}/aggregation_results.json".replace("/", "%2F")
    metrics = http.get(f"/storage/v1/b/{bucket}/o/{name}", params={"alt": "media"}).json()["metrics"]
    assert [(each["judge"], each["scored"]) for each in metrics] == list(zip(names, (4, 4, 0, 0), strict=True))
    left = [*(service.home / "runs").rglob("*.json*"), *(service.home / "runs").rglob("log.txt")]
    assert left and not any(KEY.encode() in path.read_bytes() for path in left)
