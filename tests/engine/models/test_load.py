"""Base weights are checked before they are used; a fault is named by its tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sarto.contract.common import BaseWeights
from sarto.engine.models.load import load_base, read_config
from sarto.errors import InvalidArgument
from tests.tiny import make_tiny_base


def change(base: BaseWeights, **tensors: torch.Tensor | None) -> None:
    path = Path(base.folder) / "model.safetensors"
    stored = load_file(path)
    for name, tensor in tensors.items():
        stored.pop(name.replace("__", "."), None)
        if tensor is not None:
            stored[name.replace("__", ".")] = tensor
    save_file(stored, path)


def test_shards_give_the_same_decoder(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    whole = load_base(base, torch.float32)
    folder = Path(base.folder)
    stored = load_file(folder / "model.safetensors")
    names = sorted(stored)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: stored[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    again = load_base(base, torch.float32)
    for (name, left), (_, right) in zip(whole.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(left, right), name


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    path = Path(base.folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(InvalidArgument, match=r"no tensor lm_head\.weight"):
        load_base(base, torch.float32)
    change(base, lm_head__weight=torch.ones(259, 32))
    assert load_base(base, torch.float32).head.sum() == 259 * 32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model__norm__weight": None}, r"no tensor model\.norm\.weight"),
        ({"model__norm__weight": torch.ones(7)}, r"model\.norm\.weight has shape \(7,\).*\(32,\)"),
        ({"model__layers__0__extra__weight": torch.ones(1)}, r"unknown tensors: model\.layers\.0\.extra\.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    base = make_tiny_base(tmp_path / "base")
    change(base, **tensors)
    with pytest.raises(InvalidArgument, match=message):
        load_base(base, torch.float32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, r"model_type 'mamba'.*llama, mistral"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r"Rotary scaling 'yarn'"),
        ({"hidden_act": "relu"}, r"hidden_act 'relu'"),
    ],
)
def test_shapes_we_do_not_compute_are_refused_by_name(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    base = make_tiny_base(tmp_path / "base")
    path = Path(base.folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(InvalidArgument, match=message):
        read_config(Path(base.folder))
