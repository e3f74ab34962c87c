"""Converts downloaded weights to the layout of the engine: a folder with `config.json`, `model.safetensors`,
`tokenizer.json`, `chat_template.jinja`, `generation_config.json` and, written last, the digest file.

Knows no network. A folder without the digest file is no base.
"""

from __future__ import annotations

import contextlib
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
from sarto.engine.models.rotary import one_table
from sarto.engine.weights.gguf_architectures import ARCHITECTURES, ROPE_FACTORS, Architecture, is_norm, read_numbers
from sarto.engine.weights.gguf_reader import Floats, GgufFile, open_gguf
from sarto.engine.weights.gguf_tokenizer_reader import read_tokenizer
from sarto.errors import InvalidArgument

HUB_FILES = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")


def convert_gguf(source: Path, folder: Path) -> str:
    """Convert a GGUF file of a supported architecture and tokenizer; returns the digest. Dequantises once, to
    bfloat16."""

    def fill(partial: Path) -> None:
        with open_gguf(source) as file:
            name = file.metadata.get("general.architecture")
            if name not in ARCHITECTURES:
                raise InvalidArgument(f"{source.name}: architecture {name!r} is not one of {', '.join(ARCHITECTURES)}.")
            config = _config(ARCHITECTURES[name], file)
            read_tokenizer(file.metadata).save(str(partial / "tokenizer.json"))
            (partial / "chat_template.jinja").write_text(str(file.metadata["tokenizer.chat_template"]))
            (partial / "config.json").write_text(json.dumps(config, indent=2))
            generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": [config["eos_token_id"]]}
            (partial / "generation_config.json").write_text(json.dumps(generation, indent=2))
            tensors = _tensors(ARCHITECTURES[name], file, config)
            save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})

    return _whole(folder, fill)


def is_converted(folder: Path) -> bool:
    """Whether the folder holds a whole base."""
    return (folder / DIGEST_FILE).exists()


def convert_hub(source: Path, folder: Path) -> str:
    """Convert a snapshot of a hub repository: safetensors are unchanged, the chat template gets a file of its own."""

    def fill(partial: Path) -> None:
        tensors = sorted(source.glob("model*.safetensors"))
        if not tensors:
            raise InvalidArgument(f"{source.name} has no safetensors weights; other formats are not supported.")
        for path in [*tensors, *source.glob("model.safetensors.index.json"), *(source / name for name in HUB_FILES)]:
            if path.exists():
                shutil.copyfile(path, partial / path.name)
        template = partial / "chat_template.jinja"
        settings = source / "tokenizer_config.json"
        if not template.exists() and settings.exists():
            chat_template = json.loads(settings.read_text()).get("chat_template")
            if isinstance(chat_template, str):
                template.write_text(chat_template)
        for needed in ("config.json", "tokenizer.json", "chat_template.jinja"):
            if not (partial / needed).exists():
                raise InvalidArgument(
                    f"{source.name} has no {needed}; only instruction-tuned bases with a chat template work."
                )

    return _whole(folder, fill)


def _whole(folder: Path, fill: Callable[[Path], None]) -> str:
    """Fill a folder inside the target, then move its files up; the digest, without which there is no base, comes last.

    Only the target is written, so that a run may have write access to the target alone. Two concurrent conversions
    replace each other's files by the same bytes."""
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        digest = folder_digest(partial)
        (folder / DIGEST_FILE).unlink(missing_ok=True)
        names = {path.name for path in partial.iterdir()}
        for path in folder.iterdir():
            if path.is_file() and path.name not in names:
                path.unlink()
        for name in names:
            (partial / name).replace(folder / name)
        written = partial / DIGEST_FILE
        written.write_text(digest)
        written.replace(folder / DIGEST_FILE)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # only one without files can be removed
            folder.rmdir()
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
    """Tensors by our names. Raises InvalidArgument for a missing tensor and for an unknown one."""
    layers = config["num_hidden_layers"]
    if layers > len(file.tensors):
        raise InvalidArgument(f"GGUF file has {len(file.tensors)} tensors for {layers} layers; it is broken.")
    names = architecture.tensor_names(layers)
    if config["tie_word_embeddings"]:
        del names["output.weight"]
    passed = {ROPE_FACTORS} if architecture.has_rope_factors else set()
    unknown = sorted(set(file.tensors) - set(names) - passed)
    if unknown:
        raise InvalidArgument(f"GGUF tensors that {architecture.name} does not have here: {', '.join(unknown[:5])}.")
    tensors: dict[str, torch.Tensor] = {}
    for stored, name in names.items():
        weight = file.tensor(stored)
        if is_norm(name):
            weight = weight - np.float32(architecture.norm_offset)
        if architecture.has_paired_rotary and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            weight = _halves(weight, config["num_attention_heads" if is_query else "num_key_value_heads"])
        tensors[name] = torch.from_numpy(np.ascontiguousarray(weight)).bfloat16()
    return tensors


def _halves(weight: Floats, heads: int) -> Floats:
    """Reorder each head's rows: GGUF stores rotary pairs side by side, our layout (and the hub's) half by half."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
