"""Writes GGUF for llama.cpp: Llama-shaped models with a byte-level BPE tokenizer, in F16 or Q8_0, template and
tokenizer inside. The counterpart of what `families/gguf.py` reads; other shapes are refused by name.
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

from sarto.engine.exports.merge import merged_tensors, weight_files
from sarto.engine.families.convert import LAYER_TENSORS
from sarto.engine.lora import AdapterFile
from sarto.engine.ops.quantised import Quantisation
from sarto.errors import FailedPrecondition

ALIGNMENT = 32
BLOCK = 32
F32, F16, Q8_0 = 0, 1, 8
FILE_TYPES = {F16: 1, Q8_0: 7}
NORMAL, CONTROL, UNUSED = 1, 3, 5
TOP_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
REFUSAL = "Export it as merged-safetensors and use llama.cpp's own converter."
Array = npt.NDArray[Any]


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
    metadata = model_metadata(config, name, license_name, kind) | tokenizer_metadata(base, config)
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = []
    for file in weight_files(base):
        for source, tensor in merged_tensors(base, file, adapter, quantisation):
            if source == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            stored = _stored_name(source)
            values = _paired(source, tensor, config).float().numpy()
            form = F32 if values.ndim == 1 else kind
            tensors.append((stored, values.shape, form, _encoded(values, form, stored)))
    _write(target, metadata, tensors)


def model_metadata(config: dict[str, Any], name: str, license_name: str, kind: int) -> dict[str, Any]:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    scaling = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if config["model_type"] not in ("llama", "mistral") or config.get("sliding_window"):
        raise FailedPrecondition(f"GGUF is not written for bases of type {config['model_type']}. {REFUSAL}")
    if config.get("rope_scaling") or scaling != "default" or config.get("head_dim", width // heads) * heads != width:
        raise FailedPrecondition(f"GGUF is not written for bases with scaled rotary positions or odd heads. {REFUSAL}")
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.license": license_name,
        "general.alignment": ALIGNMENT,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": width,
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.rope.dimension_count": width // heads,
        "llama.rope.freq_base": float(
            config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        ),
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.vocab_size": config["vocab_size"],
    }


def tokenizer_metadata(base: Path, config: dict[str, Any]) -> dict[str, Any]:
    found = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[int, tuple[str, int]] = {number: (text, NORMAL) for text, number in found["model"]["vocab"].items()}
    ids |= {row["id"]: (row["content"], CONTROL if row["special"] else NORMAL) for row in found["added_tokens"]}
    rows = [ids.get(number, (f"[unused{number}]", UNUSED)) for number in range(config["vocab_size"])]
    generation: dict[str, Any] = {}
    if (base / "generation_config.json").exists():
        generation = json.loads((base / "generation_config.json").read_text())
    end = generation.get("eos_token_id", config.get("eos_token_id"))
    merges = found["model"]["merges"]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(found),
        "tokenizer.ggml.tokens": [text for text, _ in rows],
        "tokenizer.ggml.token_type": [kind for _, kind in rows],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": end[0] if isinstance(end, list) else end,
        "tokenizer.ggml.bos_token_id": config.get("bos_token_id"),
        "tokenizer.ggml.padding_token_id": config.get("pad_token_id"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": (base / "chat_template.jinja").read_text(encoding="utf-8"),
    }
    return {key: value for key, value in metadata.items() if value is not None and value != []}


def _pre_tokenizer(found: dict[str, Any]) -> str:
    """llama.cpp's name for how text is split before the merges."""
    if found["model"]["type"] != "BPE" or found["model"].get("byte_fallback"):
        raise FailedPrecondition(f"GGUF is written for byte-level BPE tokenizers only. {REFUSAL}")
    steps = found["pre_tokenizer"]
    kinds = [step["type"] for step in steps.get("pretokenizers", [steps])]
    if kinds == ["Digits", "ByteLevel"]:
        return "smollm"
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    raise FailedPrecondition(f"GGUF is not written for a tokenizer that splits by {', '.join(kinds)}. {REFUSAL}")


def _stored_name(source: str) -> str:
    if source in TOP_TENSORS:
        return TOP_TENSORS[source]
    _, _, layer, rest = source.split(".", 3)
    for short, name in LAYER_TENSORS.items():
        if rest == f"{name}.weight":
            return f"blk.{layer}.{short}.weight"
    raise FailedPrecondition(f"GGUF has no place for the tensor {source}. {REFUSAL}")


def _paired(source: str, tensor: Tensor, config: dict[str, Any]) -> Tensor:
    """Rotary pairs side by side, as GGUF stores q and k; our layout has them half by half."""
    names = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    key = names.get(".".join(source.split(".")[-2:]))
    if key is None:
        return tensor
    heads = config.get(key) or config["num_attention_heads"]
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


def _write(target: Path, metadata: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> None:
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
