"""An adapter added into base weights, file by file: at most one file of the base is in memory. Knows no formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sarto.engine.models.adapter_shape import ALL_TARGETS, AdapterFile
from sarto.engine.ops.quantised import Quantisation, rounded
from sarto.errors import InvalidArgument

INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[str]:
    """Names of a base's weight files, in order."""
    index = folder / INDEX
    if not index.exists():
        return ["model.safetensors"]
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def tensor_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors of a base, in the order in which `merged_tensors` gives them."""
    for file in weight_files(folder):
        with safe_open(folder / file, "pt") as opened:
            for name in list(opened.keys()):
                yield name, tuple(opened.get_slice(name).get_shape())


def merged_tensors(
    folder: Path, file: str, adapter: AdapterFile | None, quantisation: Quantisation | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file: those with an adapter as float32 W + (alpha / rank) B A, the others unchanged. A
    quantised base has its quantised values, on which the adapter was trained."""
    with safe_open(folder / file, "pt") as opened:
        names: list[str] = list(opened.keys())
        for name in names:
            tensor: Tensor = opened.get_tensor(name)
            if quantisation and name.removesuffix(".weight").split(".")[-1] in ALL_TARGETS and tensor.ndim == 2:
                tensor = rounded(tensor, quantisation)
            path = f"base_model.model.{name.removesuffix('.weight')}"
            terms = adapter.tensors if adapter is not None else {}
            low, high = terms.get(f"{path}.lora_A.weight"), terms.get(f"{path}.lora_B.weight")
            if adapter is not None and low is not None and high is not None:
                if (high.shape[0], low.shape[1]) != tuple(tensor.shape):
                    raise InvalidArgument(f"The adapter does not fit the base: {name}.")
                tensor = torch.addmm(tensor.float(), high, low, alpha=adapter.shape.scale)
            yield name, tensor
