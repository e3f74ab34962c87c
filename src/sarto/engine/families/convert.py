"""Turns downloaded weights into the one layout the engine reads: a folder with `config.json`, `model.safetensors`,
`tokenizer.json`, `chat_template.jinja`, `generation_config.json` and, written last, the digest file.

Knows no network. `cli/weights.py` downloads and calls it, once per base; the folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sarto.catalog import DIGEST_FILE
from sarto.engine.families.gguf import Floats, GgufFile, open_gguf
from sarto.engine.families.gguf_architectures import (
    ARCHITECTURES,
    ROPE_FACTORS,
    Architecture,
    is_norm,
    read_numbers,
)
from sarto.engine.families.gguf_tokenizers import read_tokenizer
from sarto.engine.families.rotary import one_table
from sarto.errors import InvalidArgument

HUB_FILES = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")


def convert_gguf(source: Path, folder: Path) -> str:
    """A GGUF file of a known architecture and kind of tokenizer; returns the digest. Dequantises once, to bfloat16."""

    def fill(partial: Path) -> None:
        with open_gguf(source) as file:
            name = file.metadata.get("general.architecture")
            if name not in ARCHITECTURES:
                raise InvalidArgument(f"{source.name}: architecture {name!r} is not one of {', '.join(ARCHITECTURES)}")
            config = _config(ARCHITECTURES[name], file)
            read_tokenizer(file.metadata).save(str(partial / "tokenizer.json"))
            (partial / "chat_template.jinja").write_text(str(file.metadata["tokenizer.chat_template"]))
            (partial / "config.json").write_text(json.dumps(config, indent=2))
            generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": [config["eos_token_id"]]}
            (partial / "generation_config.json").write_text(json.dumps(generation, indent=2))
            tensors = _tensors(ARCHITECTURES[name], file, config)
            save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})

    return _whole(folder, fill)


def convert_hub(source: Path, folder: Path) -> str:
    """A snapshot of a hub repository: safetensors are kept as they are, the chat template gets a file of its own."""

    def fill(partial: Path) -> None:
        tensors = sorted(source.glob("model*.safetensors"))
        if not tensors:
            raise InvalidArgument(f"{source.name} has no safetensors weights; other formats are not read")
        for path in [*tensors, *source.glob("model.safetensors.index.json"), *(source / name for name in HUB_FILES)]:
            if path.exists():
                shutil.copyfile(path, partial / path.name)
        template = partial / "chat_template.jinja"
        settings = source / "tokenizer_config.json"
        if not template.exists() and settings.exists():
            found = json.loads(settings.read_text()).get("chat_template")
            if isinstance(found, str):
                template.write_text(found)
        for needed in ("config.json", "tokenizer.json", "chat_template.jinja"):
            if not (partial / needed).exists():
                raise InvalidArgument(
                    f"{source.name} has no {needed}; only instruction-tuned bases with a chat template work"
                )

    return _whole(folder, fill)


def _whole(folder: Path, fill: Callable[[Path], None]) -> str:
    """Fill a folder beside the target, name it by its content, move it into place."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        digest = folder_digest(partial)
        (partial / DIGEST_FILE).write_text(digest)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def folder_digest(folder: Path) -> str:
    """sha256 over names and contents of every file, in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == DIGEST_FILE:
            continue
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _config(architecture: Architecture, file: GgufFile) -> dict[str, Any]:
    metadata = file.metadata
    numbers = read_numbers(architecture, metadata)
    config = numbers | {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_types[0],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "bfloat16",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    if architecture.has_windows:
        config["query_pre_attn_scalar"] = numbers["head_dim"]
    if architecture.has_rope_factors and ROPE_FACTORS in file.tensors:
        config["rope_scaling"] = one_table(file.tensor(ROPE_FACTORS).tolist(), numbers["max_position_embeddings"])
    return config | architecture.constants


def _tensors(architecture: Architecture, file: GgufFile, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """By our names. Raises InvalidArgument for a tensor that is missing and for one we would leave out."""
    layers = config["num_hidden_layers"]
    if layers > len(file.tensors):
        raise InvalidArgument(f"GGUF file has {len(file.tensors)} tensors for {layers} layers; it is broken")
    names = architecture.tensor_names(layers)
    if config["tie_word_embeddings"]:
        del names["output.weight"]
    passed = {ROPE_FACTORS} if architecture.has_rope_factors else set()
    unknown = sorted(set(file.tensors) - set(names) - passed)
    if unknown:
        raise InvalidArgument(f"GGUF tensors that {architecture.name} does not have here: {', '.join(unknown[:5])}")
    found: dict[str, torch.Tensor] = {}
    for stored, name in names.items():
        weight = file.tensor(stored)
        if is_norm(name):
            weight = weight - np.float32(architecture.norm_offset)
        if architecture.has_paired_rotary and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            weight = _halves(weight, config["num_attention_heads" if is_query else "num_key_value_heads"])
        found[name] = torch.from_numpy(np.ascontiguousarray(weight)).bfloat16()
    return found


def _halves(weight: Floats, heads: int) -> Floats:
    """GGUF stores rotary pairs side by side, our layout (and the hub's) half by half: put each head's rows back."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
