"""Load a `Decoder` from a folder of safetensors: headers are checked first, then pages are mapped.

FAMILIES lists the supported shapes, by the `model_type` of `config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sarto.contract.common import BaseWeights
from sarto.engine.models import gemma3, llama, qwen2, qwen3
from sarto.engine.models.decoder import GROUPS, Decoder, DecoderConfig, Group, Layer, Projection
from sarto.engine.ops.quantised import Quantisation
from sarto.errors import InvalidArgument

FAMILIES: dict[str, Callable[[dict[str, Any]], DecoderConfig]] = {
    "llama": llama.config,
    "mistral": llama.config,
    "qwen2": qwen2.config,
    "qwen3": qwen3.config,
    "gemma3_text": gemma3.config,
}
HEAD_NORMS = {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}
IGNORED_SUFFIX = "rotary_emb.inv_freq"
"""Suffix of tables in old checkpoints that follow from the configuration."""


def read_config(folder: Path) -> DecoderConfig:
    """Read `config.json`. Raises InvalidArgument with the known families for an unsupported model type."""
    raw = json.loads((folder / "config.json").read_text())
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise InvalidArgument(f"{folder.name}: model_type {kind!r} is not supported; known: {', '.join(FAMILIES)}.")
    return FAMILIES[kind](raw)


def load_base(base: BaseWeights, dtype: torch.dtype, device: torch.device | str = "cpu") -> Decoder:
    """Load the frozen decoder. Raises InvalidArgument with the tensor that is missing, unknown or of another shape."""
    folder = Path(base.folder)
    config = read_config(folder)
    tensors = _Tensors(folder, dtype, torch.device(device))
    embedding = tensors.take("model.embed_tokens.weight", (config.vocabulary, config.width))
    head = None if config.tied else tensors.take("lm_head.weight", (config.vocabulary, config.width))
    if config.tied:
        tensors.skip("lm_head.weight")
    norm = tensors.norm("model.norm", config.width, config.norm_offset)
    layers = [_layer(tensors, config, index, base.quantisation) for index in range(config.layers)]
    tensors.check_all_used()
    return Decoder(config, embedding, head, norm, layers).requires_grad_(False).eval()


def _layer(tensors: _Tensors, config: DecoderConfig, index: int, quantisation: Quantisation | None) -> Layer:
    at = f"model.layers.{index}."
    norms = {name: tensors.norm(at + stored, config.width, config.norm_offset) for name, stored in config.norms.items()}
    for name, stored in HEAD_NORMS.items():
        if f"{at}{stored}.weight" in tensors:
            norms[name] = tensors.norm(at + stored, config.head_dim, config.norm_offset)
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[Group, list[tuple[int, int]]] = {
        "qkv": [(q, config.width), (kv, config.width), (kv, config.width)],
        "o": [(config.width, q)],
        "gate_up": [(config.feed_forward, config.width)] * 2,
        "down": [(config.width, config.feed_forward)],
    }
    return Layer({group: _projection(tensors, at, group, shapes[group], quantisation) for group in GROUPS}, norms)


def _projection(
    tensors: _Tensors, at: str, group: Group, shapes: list[tuple[int, int]], quantisation: Quantisation | None
) -> Projection:
    names = GROUPS[group]
    parts = [tensors.take(f"{at}{name}.weight", shape) for name, shape in zip(names, shapes, strict=True)]
    bias = None
    if any(f"{at}{name}.bias" in tensors for name in names):
        bias = torch.cat(
            [tensors.take(f"{at}{name}.bias", shape[:1]) for name, shape in zip(names, shapes, strict=True)]
        )
    return Projection(names, parts, bias, quantisation)


class _Tensors:
    """All tensors of a folder by name, each taken once. The files stay mapped as long as a tensor refers to them."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device
        index = folder / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.exists():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        self.files: dict[str, Any] = {}
        for name in names:
            if Path(name).name != name or not (folder / name).exists():
                raise InvalidArgument(f"{folder.name}: the weights file {name!r} is missing.")
            file = safe_open(folder / name, "pt")
            self.files.update(dict.fromkeys(file.keys(), file))
        self.left = set(self.files)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.left:
            raise InvalidArgument(f"{self.folder.name}: the weights have no tensor {name}.")
        stored_shape = tuple(self.files[name].get_slice(name).get_shape())
        if stored_shape != shape:
            raise InvalidArgument(
                f"{self.folder.name}: tensor {name} has shape {stored_shape}; the configuration has {shape}."
            )
        self.left.discard(name)
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor.to(self.device, self.dtype)

    def norm(self, name: str, width: int, offset: float) -> Tensor:
        """Norm weights as float32, in any precision of the products."""
        return self.take(f"{name}.weight", (width,)).float() + offset

    def skip(self, name: str) -> None:
        self.left.discard(name)

    def check_all_used(self) -> None:
        unknown = sorted(name for name in self.left if not name.endswith(IGNORED_SUFFIX))
        if unknown:
            raise InvalidArgument(f"{self.folder.name}: unknown tensors: {', '.join(unknown[:5])}.")
