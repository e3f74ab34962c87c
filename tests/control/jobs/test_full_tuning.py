"""Full tuning in control: what is refused at create, and a checkpoint that is a base of its own, on both databases."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sarto.control.context import Control
from sarto.control.models import registry, resolution
from sarto.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from sarto.names import parse_resource
from tests.control.homes import create, member, read, wait_for_end
from tests.control.jobs.test_data_versions import Supervise

OPEN = "huggingfacetb/smollm2@smollm2-135m-instruct"
SHAPE = {
    "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
}  # fmt: skip


def full(control: Control, **fields: object) -> str:
    spec = {"tuningMode": "TUNING_MODE_FULL", **fields.pop("spec", {})}  # type: ignore[dict-item]
    return str(create(control, **({"baseModel": OPEN, "outputUri": "gs://data/out", "spec": spec} | fields)))  # type: ignore[arg-type]


def with_shape(control: Control) -> None:
    folder = control.catalog.models_folder / "smollm2-135m-instruct"
    (folder / "config.json").write_text(json.dumps(SHAPE))


def test_a_full_checkpoint_is_a_base_and_goes_with_its_model(any_control: Control, supervise: Supervise) -> None:
    supervise(any_control)
    job = wait_for_end(any_control, parse_resource(full(any_control), "tuningJobs"))
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    model = parse_resource(job["tunedModel"]["model"], "models", versioned=True)
    assert registry.get(any_control, member(any_control), model)["metadata"]["tuningMode"] == "TUNING_MODE_FULL"
    found = resolution.tuned(any_control, member(any_control), str(model))
    assert found.weights.startswith("full-") and not found.adapter_folder and not found.adapter_digest
    base = any_control.base(found.weights)
    assert base.is_custom and base.digest == found.weights and Path(base.folder).is_dir()
    assert resolution.announced_adapters(any_control, "smollm2-135m-instruct") == []
    registry.delete(any_control, member(any_control), replace(model, version=""))
    assert not Path(base.folder).exists()
    with pytest.raises(FailedPrecondition, match="was deleted"):
        any_control.base(found.weights)
    with pytest.raises(NotFound):
        resolution.tuned(any_control, member(any_control), str(model))


def test_an_adapter_on_a_full_model_is_refused_by_name(control: Control, supervise: Supervise) -> None:
    supervise(control)
    job = wait_for_end(control, parse_resource(full(control), "tuningJobs"))
    source = {"preTunedModel": {"tunedModelName": job["tunedModel"]["model"]}, "outputUri": "gs://data/out"}
    with pytest.raises(Unimplemented, match="use TUNING_MODE_FULL"):
        create(control, **source)
    found = resolution.tuned(control, member(control), job["tunedModel"]["model"])
    folder = Path(control.base(found.weights).folder)
    (folder / "config.json").write_text(json.dumps(SHAPE))  # the stand-in writes no model
    again = wait_for_end(control, create(control, spec={"tuningMode": "TUNING_MODE_FULL"}, **source))
    assert again["state"] == "JOB_STATE_SUCCEEDED", again


def test_memory_and_disk_are_checked_at_create_with_the_numbers(control: Control) -> None:
    with_shape(control)
    small = replace(control, limits=replace(control.limits, run_memory_bytes=2_000_000_000))
    with pytest.raises(FailedPrecondition, match=r"Full tuning of .* needs at least 3\.\d GB of memory"):
        full(small)
    tight = replace(control, limits=replace(control.limits, reserve_bytes=1 << 50))
    with pytest.raises(FailedPrecondition, match=r"writes about 7\.5 GB: two resume points, .* 0\.5 GB .* free"):
        full(tight)
    assert read(control, parse_resource(full(control), "tuningJobs"))["state"] == "JOB_STATE_PENDING"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spec": {"hyperParameters": {"adapterSize": 4}}}, "has no adapter"),
        ({"baseModel": "gemini-2.0-flash-001", "outputUri": ""}, "for open models"),
        ({"outputUri": ""}, "outputUri is required"),
        ({"labels": {"sarto-quantisation": "nf4"}}, "leave the label out"),
    ],
)
def test_what_does_not_fit_full_tuning_is_refused_with_its_field(
    control: Control, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        full(control, **fields)


def test_several_devices_and_models_with_adapters_are_refused_by_name(control: Control, supervise: Supervise) -> None:
    many = replace(control, limits=replace(control.limits, devices=2))
    with pytest.raises(Unimplemented, match="several devices"):
        full(many)
    supervise(control)
    job = wait_for_end(control, create(control, baseModel=OPEN, outputUri="gs://data/adapter"))
    source = {"preTunedModel": {"tunedModelName": job["tunedModel"]["model"]}}
    with pytest.raises(Unimplemented, match="model with an adapter"):
        create(control, outputUri="gs://data/out", spec={"tuningMode": "TUNING_MODE_FULL"}, **source)
    assert read(control, parse_resource(job["name"], "tuningJobs"))["state"] == "JOB_STATE_SUCCEEDED"
