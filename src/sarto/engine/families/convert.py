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
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sarto.catalog import DIGEST_FILE
from sarto.engine.families.gguf import Floats, GgufFile, open_gguf
from sarto.errors import InvalidArgument

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3
HUB_FILES = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")


def convert_gguf(source: Path, folder: Path) -> str:
    """A Llama-shaped GGUF file with a byte-level BPE tokenizer; returns the digest. Dequantises once, to bfloat16."""

    def fill(partial: Path) -> None:
        with open_gguf(source) as file:
            if file.metadata.get("general.architecture") != "llama":
                raise InvalidArgument(
                    f"{source.name}: architecture {file.metadata.get('general.architecture')!r} is not llama"
                )
            config = _config(file.metadata, "output.weight" not in file.tensors)
            _tokenizer(file.metadata).save(str(partial / "tokenizer.json"))
            (partial / "chat_template.jinja").write_text(str(file.metadata["tokenizer.chat_template"]))
            (partial / "config.json").write_text(json.dumps(config, indent=2))
            generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": [config["eos_token_id"]]}
            (partial / "generation_config.json").write_text(json.dumps(generation, indent=2))
            save_file(_tensors(file, config), partial / "model.safetensors", metadata={"format": "pt"})

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


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    def of(key: str) -> Any:
        return metadata[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of("embedding_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("embedding_length") // of("attention.head_count"),
        "intermediate_size": of("feed_forward_length"),
        "max_position_embeddings": of("context_length"),
        "rope_theta": of("rope.freq_base"),
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE. The `smollm` pre-tokenizer splits digits one by one before the GPT-2 pattern."""
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in ("smollm", "gpt-2"):
        raise InvalidArgument(f"tokenizer {kind!r}/{split!r} is not one Sarto converts from GGUF")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in metadata.get("tokenizer.ggml.merges", []))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]) if split == "smollm" else words
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    specials = [t for t, token_kind in zip(tokens, kinds, strict=True) if token_kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer


def _tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {
        "model.embed_tokens.weight": file.tensor("token_embd.weight"),
        "model.norm.weight": file.tensor("output_norm.weight"),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = file.tensor("output.weight")
    for layer in range(config["num_hidden_layers"]):
        for short, name in LAYER_TENSORS.items():
            weight = file.tensor(f"blk.{layer}.{short}.weight")
            if short in ("attn_q", "attn_k"):
                heads = config["num_attention_heads" if short == "attn_q" else "num_key_value_heads"]
                weight = _halves(weight, heads)
            found[f"model.layers.{layer}.{name}.weight"] = weight
    return {name: torch.from_numpy(np.ascontiguousarray(value)).bfloat16() for name, value in found.items()}


def _halves(weight: Floats, heads: int) -> Floats:
    """GGUF stores rotary pairs side by side, our layout (and the hub's) half by half: put each head's rows back."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
