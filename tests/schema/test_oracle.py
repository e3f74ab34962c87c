"""Any job the official types can express is read and comes back equal; every message of ours parses with them."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud import aiplatform_v1, aiplatform_v1beta1
from google.genai import types as genai_types
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarto.schema import evaluation, generation, tuning_jobs
from sarto.schema.wire import Message
from tests.schema.protos import fill

PAIRS: list[tuple[type[Message], str]] = [
    (tuning_jobs.TuningJob, "TuningJob"),
    (evaluation.EvaluationConfig, "EvaluationConfig"),
    (evaluation.EvaluateDatasetRun, "EvaluateDatasetRun"),
    (generation.GenerateContentRequest, "GenerateContentRequest"),
    (generation.CountTokensRequest, "CountTokensRequest"),
]
FREE = frozenset({"google.protobuf.Any", "google.rpc.Status.details"})


@pytest.mark.parametrize(("ours", "name"), PAIRS, ids=[name for _, name in PAIRS])
@pytest.mark.parametrize("version", [aiplatform_v1, aiplatform_v1beta1], ids=["v1", "v1beta1"])
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_the_proto_types_express_comes_back_equal(
    ours: type[Message], name: str, version: Any, data: st.DataObject
):
    proto = getattr(version.types, name).pb()
    original = data.draw(fill(proto(), 4, FREE))
    for snake in (False, True):
        for numbers in (False, True):
            sent = json_format.MessageToDict(
                original, preserving_proto_field_name=snake, use_integers_for_enums=numbers
            )
            answer = ours.read(sent, "message").to_json()
            back = json_format.ParseDict(answer, proto())
            assert normal(back) == normal(original)


def normal(message: Any) -> dict[str, Any]:
    """JSON without what means absent: unset enums, empty maps and empty free objects."""
    return strip(json_format.MessageToDict(message))


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: strip(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in ({}, [], "", None) and not str(v).endswith("_UNSPECIFIED")}
    if isinstance(value, list):
        return [strip(v) for v in value]
    return value


def test_every_field_of_the_sdks_job_is_one_of_ours():
    ours = set(tuning_jobs.TuningJob.model_fields)
    theirs = set(genai_types.TuningJob.model_fields) - {"sdk_http_response"}
    assert theirs <= ours


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tuning_jobs.SupervisedTuningSpec, genai_types.SupervisedTuningSpec),
        (tuning_jobs.SupervisedHyperParameters, genai_types.SupervisedHyperParameters),
        (tuning_jobs.SupervisedTuningDataStats, genai_types.SupervisedTuningDataStats),
        (tuning_jobs.TunedModel, genai_types.TunedModel),
        (tuning_jobs.TunedModelCheckpoint, genai_types.TunedModelCheckpoint),
        (tuning_jobs.TuningJobMetadata, genai_types.TuningJobMetadata),
        (evaluation.EvaluationConfig, genai_types.EvaluationConfig),
        (evaluation.AutoraterConfig, genai_types.AutoraterConfig),
        (generation.Content, genai_types.Content),
        (generation.Part, genai_types.Part),
        (generation.FunctionDeclaration, genai_types.FunctionDeclaration),
    ],
)
def test_every_field_of_the_sdks_messages_is_read(ours: type[Message], theirs: Any):
    local = {"sdk_http_response", "automatic_function_calling_history", "parsed"}
    missing = set(theirs.model_fields) - set(ours.model_fields) - local
    assert not missing
