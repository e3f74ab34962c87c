"""Writes GGUF for llama.cpp, in F16 or Q8_0, with template and tokenizer: the shapes of `gguf_architectures.py`, which
the reader uses too. A model that llama.cpp would compute differently is refused by name."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sarto.engine.models.adapter_shape import AdapterFile
from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.models.gemma3 import local_rotary
from sarto.engine.models.load import read_config
from sarto.engine.models.rotary import plain_frequencies, rotary_parameters
from sarto.engine.ops.quantised import Quantisation
from sarto.engine.weights.gguf_architectures import ARCHITECTURES, ROPE_FACTORS, Architecture, is_norm
from sarto.engine.weights.gguf_tokenizer_writer import REFUSAL, tokenizer_metadata
from sarto.engine.weights.merge import merged_tensors, tensor_shapes, weight_files
from sarto.errors import FailedPrecondition, SartoError

ALIGNMENT = 32
BLOCK = 32
F32, F16, Q8_0 = 0, 1, 8
FILE_TYPES = {F16: 1, Q8_0: 7}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """A tensor in the file's table."""

    name: str
    shape: tuple[int, ...]
    form: int

    @property
    def size_bytes(self) -> int:
        """Size of the data. Raises FailedPrecondition for rows that do not divide into blocks."""
        count = math.prod(self.shape)
        if self.form == F32:
            return 4 * count
        if self.form == F16:
            return 2 * count
        if self.shape[-1] % BLOCK:
            raise FailedPrecondition(
                f"Rows of {self.shape[-1]} in {self.name} do not divide into blocks of {BLOCK} (Q8_0)."
            )
        return count // BLOCK * (2 + BLOCK)


def write_gguf(
    base: Path,
    adapter: AdapterFile | None,
    target: Path,
    kind: int,
    name: str,
    license_name: str,
    quantisation: Quantisation | None = None,
) -> None:
    """Write merged weights as one file. Raises FailedPrecondition for an unsupported shape or tokenizer."""
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
    if shape.tied:
        names.pop("lm_head.weight", None)
    factors = None
    if scaling != "default":
        factors = (plain_frequencies(numbers["rope_theta"], shape.head_dim) / shape.inverse_frequencies[0]).numpy()

    def values() -> Iterator[tuple[Entry, Array]]:
        """One tensor in memory at a time, in the order of the table."""
        if factors is not None:
            yield Entry(ROPE_FACTORS, factors.shape, F32), factors
        for file in weight_files(base):
            for source, tensor in merged_tensors(base, file, adapter, quantisation):
                if source in names:
                    stored = _as_stored(source, tensor.float(), shape, architecture).numpy()
                    yield Entry(names[source], stored.shape, F32 if stored.ndim == 1 else kind), stored

    entries = [] if factors is None else [Entry(ROPE_FACTORS, factors.shape, F32)]
    for source, size in tensor_shapes(base):
        if source in names:
            entries.append(Entry(names[source], size, F32 if len(size) == 1 else kind))
        elif source != "lm_head.weight":
            raise FailedPrecondition(f"GGUF has no tensor for {source}. {REFUSAL}")
    try:
        _write(target, metadata, entries, values())
    except SartoError:
        target.unlink(missing_ok=True)
        raise


def _architecture(config: dict[str, Any]) -> Architecture:
    for architecture in ARCHITECTURES.values():
        if config["model_type"] in architecture.model_types:
            return architecture
    raise FailedPrecondition(f"GGUF export does not support bases of type {config['model_type']}. {REFUSAL}")


def _rotary_kind(config: dict[str, Any], architecture: Architecture) -> str:
    """`default`, or the base's rotary scaling if llama.cpp has a table for it."""
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
                f"GGUF export does not support {architecture.name} with rotary scaling {part['rope_type']}. {REFUSAL}"
            )
    return str(parts[0]["rope_type"])


def _numbers(config: dict[str, Any], shape: DecoderConfig, architecture: Architecture) -> dict[str, Any]:
    """The metadata's numbers, by their names in `config.json`."""
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
            f"GGUF export does not support {architecture.name} with a query scale of its own. {REFUSAL}"
        )
    windows = {window for window in shape.windows if window is not None}
    if not architecture.has_windows:
        if windows:
            raise FailedPrecondition(
                f"GGUF export does not support {architecture.name} with sliding windows. {REFUSAL}"
            )
        return numbers
    return numbers | {
        "rope_theta": rotary_parameters(config, "full_attention")["rope_theta"],
        "rope_local_base_freq": rotary_parameters(local_rotary(config), "sliding_attention")["rope_theta"],
        "sliding_window": next(iter(windows), shape.context),
        "sliding_window_pattern": _pattern(shape.windows),
    }


def _pattern(windows: tuple[int | None, ...]) -> int:
    """Distance between layers with full attention."""
    every: int
    for every in (6, *range(1, len(windows) + 2)):
        if all((window is None) == ((index + 1) % every == 0) for index, window in enumerate(windows)):
            return every
    raise FailedPrecondition(f"GGUF export does not support sliding windows without a regular pattern. {REFUSAL}")


def _as_stored(source: str, tensor: Tensor, shape: DecoderConfig, architecture: Architecture) -> Tensor:
    """A float32 tensor in llama.cpp's layout: norms with their offset, and rotary pairs side by side for architectures
    that rotate them so. Our layout has them half by half."""
    if is_norm(source):
        return tensor + architecture.norm_offset
    heads = {"q_proj.weight": shape.heads, "k_proj.weight": shape.kv_heads}.get(".".join(source.split(".")[-2:]))
    if heads is None or not architecture.has_paired_rotary:
        return tensor
    rows, width = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def _encoded(values: Array, entry: Entry) -> bytes:
    if entry.form == F32:
        return values.astype(np.float32).tobytes()
    if entry.form == F16:
        if np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
            raise FailedPrecondition(f"Tensor {entry.name} has values beyond half precision; export gguf-q8-0 instead.")
        return values.astype(np.float16).tobytes()
    blocks = values.reshape(-1, BLOCK)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127.0).astype(np.float32)
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    packed = np.empty((len(blocks), 2 + BLOCK), np.uint8)
    packed[:, :2] = scale.astype(np.float16).view(np.uint8)
    packed[:, 2:] = np.rint(blocks * inverse).astype(np.int8).view(np.uint8)
    return packed.tobytes()


def _write(target: Path, metadata: dict[str, Any], entries: list[Entry], values: Iterator[tuple[Entry, Array]]) -> None:
    """Write the file; `values` are in the order of `entries`."""
    sizes = [entry.size_bytes for entry in entries]
    with target.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _value(value))
        at = 0
        for entry, size in zip(entries, sizes, strict=True):
            dimensions = len(entry.shape)
            file.write(_text(entry.name))
            file.write(struct.pack(f"<I{dimensions}QIQ", dimensions, *reversed(entry.shape), entry.form, at))
            at += -(-size // ALIGNMENT) * ALIGNMENT
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        for expected, (entry, tensor) in zip(entries, values, strict=True):
            assert entry == expected
            file.write(_encoded(tensor, entry))
            file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A metadata value with its type before it."""
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
