"""Writes GGUF for llama.cpp, in F16 or Q8_0, template and tokenizer inside: the shapes of
`families/gguf_architectures.py`, from which they are also read. What llama.cpp would compute in another way is refused
by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sarto.engine.exports.gguf_tokenizer import REFUSAL, tokenizer_metadata
from sarto.engine.exports.merge import merged_tensors, weight_files
from sarto.engine.families.decoder import DecoderConfig
from sarto.engine.families.gemma3 import local_rotary
from sarto.engine.families.gguf_architectures import ARCHITECTURES, ROPE_FACTORS, Architecture, is_norm
from sarto.engine.families.load import read_config
from sarto.engine.families.rotary import plain_frequencies, rotary_parameters
from sarto.engine.lora import AdapterFile
from sarto.engine.ops.quantised import Quantisation
from sarto.errors import FailedPrecondition

ALIGNMENT = 32
BLOCK = 32
F32, F16, Q8_0 = 0, 1, 8
FILE_TYPES = {F16: 1, Q8_0: 7}
Array = npt.NDArray[Any]
Stored = tuple[str, tuple[int, ...], int, bytes]
"""A tensor as it is written: name, shape, storage type, values."""


def write_gguf(
    base: Path,
    adapter: AdapterFile,
    target: Path,
    kind: int,
    name: str,
    license_name: str,
    quantisation: Quantisation | None = None,
) -> None:
    """Merged weights as one file. Raises FailedPrecondition for a shape or tokenizer this does not write."""
    config = json.loads((base / "config.json").read_text())
    architecture = _architecture(config)
    scaling = _rotary_kind(config, architecture)
    shape = read_config(base)
    numbers = _numbers(config, shape, architecture)
    metadata = {
        "general.architecture": architecture.name,
        "general.name": name,
        "general.license": license_name,
        "general.alignment": ALIGNMENT,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        f"{architecture.name}.vocab_size": shape.vocabulary,
    }
    metadata |= {f"{architecture.name}.{key}": numbers[source] for key, source in architecture.keys.items()}
    metadata |= tokenizer_metadata(base, config)
    names = {ours: stored for stored, ours in architecture.tensor_names(shape.layers).items()}
    tensors: list[Stored] = []
    if scaling != "default":
        factors = (plain_frequencies(numbers["rope_theta"], shape.head_dim) / shape.inverse_frequencies[0]).numpy()
        tensors.append((ROPE_FACTORS, factors.shape, F32, _encoded(factors, F32, ROPE_FACTORS)))
    for file in weight_files(base):
        for source, tensor in merged_tensors(base, file, adapter, quantisation):
            if source == "lm_head.weight" and shape.tied:
                continue
            if source not in names:
                raise FailedPrecondition(f"GGUF has no place for the tensor {source}. {REFUSAL}")
            values = _as_stored(source, tensor.float(), shape, architecture).numpy()
            form = F32 if values.ndim == 1 else kind
            tensors.append((names[source], values.shape, form, _encoded(values, form, names[source])))
    _write(target, metadata, tensors)


def _architecture(config: dict[str, Any]) -> Architecture:
    for architecture in ARCHITECTURES.values():
        if config["model_type"] in architecture.model_types:
            return architecture
    raise FailedPrecondition(f"GGUF is not written for bases of type {config['model_type']}. {REFUSAL}")


def _rotary_kind(config: dict[str, Any], architecture: Architecture) -> str:
    """`default`, or how the base scales rotary positions where llama.cpp has a table for it."""
    if architecture.has_windows:
        parts = [
            rotary_parameters(config, "full_attention"),
            rotary_parameters(local_rotary(config), "sliding_attention"),
        ]
    else:
        parts = [rotary_parameters(config)]
    known = ("default", "llama3", "longrope") if architecture.has_rope_factors else ("default",)
    for part in parts:
        if part["rope_type"] not in known:
            raise FailedPrecondition(
                f"GGUF is not written for {architecture.name} with rotary scaling {part['rope_type']}. {REFUSAL}"
            )
    return str(parts[0]["rope_type"])


def _numbers(config: dict[str, Any], shape: DecoderConfig, architecture: Architecture) -> dict[str, Any]:
    """What the metadata says, by its name in `config.json`."""
    numbers: dict[str, Any] = {
        "max_position_embeddings": shape.context,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.feed_forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": rotary_parameters(config)["rope_theta"],
    }
    if shape.query_scale != shape.head_dim**-0.5:
        raise FailedPrecondition(
            f"GGUF is not written for {architecture.name} with a query scale of its own. {REFUSAL}"
        )
    windows = {window for window in shape.windows if window is not None}
    if not architecture.has_windows:
        if windows:
            raise FailedPrecondition(f"GGUF is not written for {architecture.name} with sliding windows. {REFUSAL}")
        return numbers
    return numbers | {
        "rope_theta": rotary_parameters(config, "full_attention")["rope_theta"],
        "rope_local_base_freq": rotary_parameters(local_rotary(config), "sliding_attention")["rope_theta"],
        "sliding_window": next(iter(windows), shape.context),
        "sliding_window_pattern": _pattern(shape.windows),
    }


def _pattern(windows: tuple[int | None, ...]) -> int:
    """Every how many layers one sees everything."""
    every: int
    for every in (6, *range(1, len(windows) + 2)):
        if all((window is None) == ((index + 1) % every == 0) for index, window in enumerate(windows)):
            return every
    raise FailedPrecondition(f"GGUF is not written for sliding windows without a regular pattern. {REFUSAL}")


def _as_stored(source: str, tensor: Tensor, shape: DecoderConfig, architecture: Architecture) -> Tensor:
    """A float32 tensor as llama.cpp expects it: norms with their offset, and rotary pairs side by side where it turns
    them so; our layout has them half by half."""
    if is_norm(source):
        return tensor + architecture.norm_offset
    heads = {"q_proj.weight": shape.heads, "k_proj.weight": shape.kv_heads}.get(".".join(source.split(".")[-2:]))
    if heads is None or not architecture.has_paired_rotary:
        return tensor
    rows, width = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _encoded(values: Array, form: int, name: str) -> bytes:
    if form == F32:
        return values.astype(np.float32).tobytes()
    if form == F16:
        if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise FailedPrecondition(f"tensor {name} has values beyond half precision; export gguf-q8-0 instead")
        return values.astype(np.float16).tobytes()
    if values.shape[-1] % BLOCK:
        raise FailedPrecondition(f"rows of {values.shape[-1]} in {name} do not divide into blocks of {BLOCK} (Q8_0)")
    blocks = values.reshape(-1, BLOCK)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127.0).astype(np.float32)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    packed = np.empty((len(blocks), 2 + BLOCK), np.uint8)
    packed[:, :2] = scale.astype(np.float16).view(np.uint8)
    packed[:, 2:] = np.rint(blocks * inverse).astype(np.int8).view(np.uint8)
    return packed.tobytes()


def _write(target: Path, metadata: dict[str, Any], tensors: list[Stored]) -> None:
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        at = 0
        for name, shape, form, data in tensors:
            file.write(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), form, at))
            at += -(-len(data) // ALIGNMENT) * ALIGNMENT
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for _, _, _, data in tensors:
            file.write(data + b"\0" * (-len(data) % ALIGNMENT))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A metadata value with its type in front."""
    kind, data = _typed(value)
    return struct.pack("<I", kind) + data


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, _text(value)
    items: Iterable[tuple[int, bytes]] = [_signed(one) if isinstance(one, int) else _typed(one) for one in value]
    kinds = {kind for kind, _ in items}
    return 9, struct.pack("<IQ", kinds.pop(), len(value)) + b"".join(data for _, data in items)


def _signed(value: int) -> tuple[int, bytes]:
    return 5, struct.pack("<i", value)
