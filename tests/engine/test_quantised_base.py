"""A base in 8 or 4 bits: it is tuned, resumed, served, evaluated and merged at the values its codes say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sarto.contract.common import BaseWeights, EvaluationPlan
from sarto.engine.host_memory import ShortOfMemory
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.load import load_base, read_config
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.ops.quantised import QUANTISATIONS, Quantisation, rounded
from sarto.engine.tuning.placement import base_bytes, place
from sarto.engine.weights.merge import merged_tensors
from sarto.engine.weights.peft import read_adapter, write_adapter
from tests.engine.programs.test_tune import finish, kill_after, make_spec, progress, steps
from tests.tiny import make_tiny_base

KINDS = pytest.mark.parametrize("kind", QUANTISATIONS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def quantised(base: BaseWeights, kind: Quantisation) -> BaseWeights:
    return base.model_copy(update={"quantisation": kind, "digest": f"{base.digest}-{kind}"})


@KINDS
def test_matrices_of_the_layers_are_packed_and_nothing_else(tiny: BaseWeights, kind: Quantisation) -> None:
    stored = load_file(Path(tiny.folder) / "model.safetensors")
    decoder = load_base(quantised(tiny, kind), torch.float32)
    expected = rounded(stored["model.layers.1.self_attn.o_proj.weight"].float(), kind)
    assert torch.equal(decoder.layer(1).o.weight, expected)
    assert torch.equal(decoder.embedding, stored["model.embed_tokens.weight"].float())
    held = sum(part.numel() * part.element_size() for part in decoder.layer(0).qkv.matrix.parameters())
    assert held < 0.3 * 4 * decoder.layer(0).qkv.weight.numel()
    LoraAdapter(decoder, AdapterShape(4, 8.0))
    assert decoder.layer(0).qkv.matrix.shape == decoder.layer(0).qkv.weight.shape


@KINDS
def test_a_run_on_a_quantised_base_learns_and_is_served_as_it_was_trained(
    tiny: BaseWeights, tmp_path: Path, kind: Quantisation
) -> None:
    plain = make_spec(tiny, tmp_path / "plain")
    spec = make_spec(quantised(tiny, kind), tmp_path / "job", evaluation=EvaluationPlan())
    finish(plain)
    result = finish(spec)
    assert result.error is None and result.parameters is not None
    assert f"the whole base in {kind}" in result.parameters.details["base_placement"]
    assert all(record.certificate is not None and record.certificate.passed for record in result.checkpoints)
    assert result.has_report
    losses, expected = (np.array([loss for _, loss, _ in steps(each)]) for each in (spec, plain))
    assert losses[-1] < losses[0]
    assert 1e-4 < abs(losses[0] - expected[0]) < 0.1 * expected[0]  # another base, but not by much


@pytest.mark.slow
def test_a_killed_run_on_a_quantised_base_ends_like_one_never_killed(tiny: BaseWeights, tmp_path: Path) -> None:
    base = quantised(tiny, "nf4")
    whole = make_spec(base, tmp_path / "whole")
    finish(whole)
    kill_after(make_spec(base, tmp_path / "killed"), 7)
    last = make_spec(base, tmp_path / "killed", 2)
    finish(last)
    assert any("resumed after step" in line.message for line in progress(last))
    assert steps(last) == steps(whole)


@KINDS
def test_a_merge_adds_the_adapter_to_the_values_it_was_trained_on(
    tiny: BaseWeights, tmp_path: Path, kind: Quantisation
) -> None:
    made = LoraAdapter(load_base(tiny, torch.float32), AdapterShape(4, 8.0, ("o_proj",)))
    made.values.normal_(generator=torch.Generator().manual_seed(0))
    write_adapter(made, tmp_path, "tiny")
    adapter = read_adapter(tmp_path)
    folder = Path(tiny.folder)
    stored = load_file(folder / "model.safetensors")
    merged = dict(merged_tensors(folder, "model.safetensors", adapter, kind))
    name = "model.layers.0.self_attn.o_proj"
    low, high = (adapter.tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = rounded(stored[f"{name}.weight"], kind).float() + adapter.shape.scale * high @ low
    torch.testing.assert_close(merged[f"{name}.weight"], expected)
    other = "model.layers.0.mlp.up_proj.weight"  # has no adapter, and is in codes all the same
    assert torch.equal(merged[other], rounded(stored[other], kind))
    assert torch.equal(merged["model.norm.weight"], stored["model.norm.weight"])


def test_a_base_is_held_whole_or_in_parts_by_what_is_free_and_a_refusal_names_what_would_fit(
    tiny: BaseWeights,
) -> None:
    config = read_config(Path(tiny.folder))
    whole, in_four = base_bytes(config, torch.float32, None), base_bytes(config, torch.float32, "nf4")
    given = {"ranks": 1, "always_shard": False}
    assert not place(config, torch.float32, None, whole, **given).is_sharded  # type: ignore[arg-type]
    big = config.__class__(**{**config.__dict__, "layers": 400})
    whole, in_four = base_bytes(big, torch.float32, None), base_bytes(big, torch.float32, "nf4")
    assert in_four < base_bytes(big, torch.float32, "int8") < whole / 2
    parts = base_bytes(big, torch.float32, None, 2)
    assert place(big, torch.float32, None, parts, ranks=2, always_shard=False).is_sharded
    with pytest.raises(ShortOfMemory, match="needs about") as refused:
        place(big, torch.float32, None, parts, ranks=1, always_shard=False)
    assert [(each.kind, each.value) for each in refused.value.remedies][-2:] == [
        ("quantisation", "nf4"),
        ("devices", "2"),
    ]
    assert refused.value.remedies[-1].needed_bytes == parts
    with pytest.raises(ShortOfMemory) as refused:
        place(big, torch.float32, None, 1 << 10, ranks=1, always_shard=False)
    assert [each.kind for each in refused.value.remedies] == ["smaller_base"]
