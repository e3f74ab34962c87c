"""The spec of a job whatever its method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from sarto.errors import InvalidArgument
from sarto.schema.tuning_jobs import SPECS, TuningJob, spec_of, spec_row

GIVEN: dict[str, Any] = {
    "baseModel": "gemini-2.5-flash",
    "supervisedTuningSpec": {"trainingDatasetUri": "gs://b/t.jsonl", "hyperParameters": {"epochCount": "2"}},
}


def test_a_job_gives_its_spec_and_its_method() -> None:
    job = TuningJob.read(GIVEN)
    assert job.tuning_spec is job.supervised_tuning_spec
    assert job.spec_row is SPECS["supervised"]
    assert job.spec_field == "supervised_tuning_spec"
    assert job.tuning_spec is not None and job.tuning_spec.parameters.epoch_count == 2


def test_a_job_without_a_built_spec_has_none_and_names_the_first_for_messages() -> None:
    job = TuningJob.read({"baseModel": "m", "veoTuningSpec": {"trainingDatasetUri": "gs://b/t.jsonl"}})
    assert (job.tuning_spec, job.spec_row) == (None, None)
    assert job.spec_field == "supervised_tuning_spec"


def test_a_spec_goes_into_the_field_of_its_method() -> None:
    job = TuningJob.read(GIVEN)
    assert job.tuning_spec is not None
    changed = job.with_spec(job.tuning_spec.model_copy(update={"validation_dataset_uri": "gs://b/v.jsonl"}))
    assert changed.to_json()["supervisedTuningSpec"]["validationDatasetUri"] == "gs://b/v.jsonl"
    assert TuningJob(base_model="gemini-2.5-flash").with_spec(job.tuning_spec) == job


def test_the_json_of_a_job_gives_its_spec_too_and_that_of_anything_else_gives_none() -> None:
    assert spec_of(GIVEN) is GIVEN["supervisedTuningSpec"]
    assert spec_row(GIVEN) is SPECS["supervised"]
    assert (spec_of({"name": "operations/1"}), spec_row({})) == ({}, None)


def test_parameters_that_nobody_gave_are_those_of_an_empty_message() -> None:
    job = TuningJob.read({"supervisedTuningSpec": {"trainingDatasetUri": "gs://b/t.jsonl"}})
    assert job.tuning_spec is not None
    assert job.tuning_spec.hyper_parameters is None and job.tuning_spec.parameters.to_json() == {}


@pytest.mark.parametrize("spelling", [to_camel, str])
def test_a_preference_spec_is_read_in_both_spellings(spelling: Callable[[str], str]) -> None:
    parameters: dict[str, Any] = {"beta": 0.2, "epoch_count": "2", "learning_rate_multiplier": 1.5}
    spec = {
        spelling("training_dataset_uri"): "gs://b/t.jsonl",
        spelling("hyper_parameters"): {
            **{spelling(name): value for name, value in parameters.items()},
            spelling("adapter_size"): "ADAPTER_SIZE_FOUR",
        },
        spelling("export_last_checkpoint_only"): True,
    }
    job = TuningJob.read({spelling("preference_optimization_spec"): spec})
    assert job.spec_row is SPECS["preference"]
    assert job.to_json()["preferenceOptimizationSpec"] == {
        "trainingDatasetUri": "gs://b/t.jsonl",
        "hyperParameters": {
            "beta": 0.2, "epochCount": "2", "learningRateMultiplier": 1.5, "adapterSize": "ADAPTER_SIZE_FOUR",
        },
        "exportLastCheckpointOnly": True,
    }  # fmt: skip
    assert job.tuning_spec is not None
    assert (job.tuning_spec.tuning_mode, job.tuning_spec.parameters.batch_size) == (None, None)


def test_two_specs_in_one_job_are_refused_and_the_few_settings_of_one_are_named() -> None:
    beside = {"preferenceOptimizationSpec": {"hyperParameters": {"beta": 0.2}}}
    with pytest.raises(InvalidArgument) as caught:
        TuningJob.read(GIVEN | beside)
    assert "already set" in caught.value.message
    assert "preferenceOptimizationSpec.hyperParameters.beta" in caught.value.message
