"""What is wrong with an evaluation config is known, by field, before a job is made."""

from __future__ import annotations

from typing import Any

from google.genai import _transformers
from google.genai import types as genai_types

from sarto.schema.evaluation import EvaluationConfig
from sarto.schema.evaluation_validation import config_faults

OUTPUT = {"gcsDestination": {"outputUriPrefix": "gs://bucket/folder"}}


def faults(config: dict[str, Any]) -> dict[str, str]:
    return {fault.field: fault.description for fault in config_faults(EvaluationConfig.read(config), "c")}


def test_metrics_and_an_output_prefix_are_required():
    assert set(faults({})) == {"c.metrics", "c.output_config.gcs_destination.output_uri_prefix"}
    assert faults({"metrics": [{"exactMatchSpec": {}}], "outputConfig": OUTPUT}) == {}


def test_sampling_counts_have_limits_wherever_they_stand():
    config = {
        "metrics": [
            {"llmBasedMetricSpec": {"metricPromptTemplate": "{response}", "judgeAutoraterConfig": {"samplingCount": 0}}}
        ],
        "outputConfig": OUTPUT,
        "autoraterConfig": {"samplingCount": 33},
    }
    assert set(faults(config)) == {
        "c.autorater_config.sampling_count",
        "c.metrics[0].llm_based_metric_spec.judge_autorater_config.sampling_count",
    }


def test_metrics_as_the_official_client_writes_them_have_no_fault():
    metrics = [
        genai_types.Metric(name="BLEU"),
        genai_types.Metric(name="rouge_l_sum"),
        genai_types.Metric(name="exact_match"),
        genai_types.Metric(name="tone", prompt_template="Judge {response} for {prompt}", return_raw_output=True),
        {"predefined_metric_spec": {"metric_spec_name": "text_quality_v1"}},
    ]
    sent = _transformers.t_metrics(metrics)
    assert faults({"metrics": sent, "output_config": OUTPUT}) == {}
