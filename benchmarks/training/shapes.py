"""Bases of known shapes with random weights, for machines that have no real ones: speed does not depend on the values.

Tokenizer and chat template are those of the small base; its tokens are the first of the larger vocabularies.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

COMMON = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 8192,
          "attention_bias": False, "torch_dtype": "bfloat16"}  # fmt: skip
LLAMA = COMMON | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0}
QWEN3 = COMMON | {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "rope_theta": 1000000.0,
    "head_dim": 128,
}


def _shape(width: int, layers: int, heads: int, kv_heads: int, feed_forward: int, vocabulary: int) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": feed_forward, "vocab_size": vocabulary}  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": LLAMA | _shape(128, 2, 4, 2, 256, 49152),
    "llama-3.2-1b": LLAMA | _shape(2048, 16, 32, 8, 8192, 128256),
    "qwen3-0.6b": QWEN3 | _shape(1024, 28, 16, 8, 3072, 151936),
    "qwen3-4b": QWEN3 | _shape(2560, 36, 32, 8, 9728, 151936),
}


def write_base(folder: Path, shape: str, words: Path) -> Path:
    """A base folder; `words` is the base whose tokenizer it gets."""
    folder.mkdir()
    config, other = SHAPES[shape], json.loads((words / "config.json").read_text())
    special = {name: other[name] for name in ("bos_token_id", "eos_token_id") if name in other}
    (folder / "config.json").write_text(json.dumps(config | special))
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        if (words / name).exists():
            shutil.copyfile(words / name, folder / name)
    save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim", width // heads)
    keys = config["num_key_value_heads"] * size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul_(0.02).bfloat16()

    found = {
        "model.embed_tokens.weight": draw(config["vocab_size"], width),
        "model.norm.weight": torch.ones(width).bfloat16(),
    }
    matrices = {
        "self_attn.q_proj": (heads * size, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, heads * size), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    norms = {"input_layernorm": width, "post_attention_layernorm": width}
    if config["model_type"] == "qwen3":
        norms |= {"self_attn.q_norm": size, "self_attn.k_norm": size}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {f"{at}{name}.weight": draw(*shape) for name, shape in matrices.items()}
        found |= {f"{at}{name}.weight": torch.ones(length).bfloat16() for name, length in norms.items()}
    return found
