"""A tiny random base model in the layout of a converted one: 2 layers, width 32, a byte-level tokenizer.

`make_tiny_base(folder, family)` writes config.json, model.safetensors, tokenizer.json, chat_template.jinja,
generation_config.json and the digest file. Families differ in their config and tensors as their real ones do; their
tokenizers do where one of tiny_tokenizers.py is given.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from sarto.catalog import DIGEST_FILE
from sarto.contract.common import BaseWeights
from sarto.engine.models.decoder import Group, Projection

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IDS = ["pad", "bos", "eos"]
"""What each of them is to `config.json`."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 32, 2, 4, 2, 8, 64


def make_tokenizer() -> Tokenizer:
    """Every byte is a token (ids 0-255); the specials follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


def tiny_config(family: str) -> dict[str, Any]:
    vocabulary = 256 + len(SPECIALS)
    config: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FEED_FORWARD,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 257,
        "eos_token_id": 258,
        "pad_token_id": 256,
    }
    extra: dict[str, dict[str, Any]] = {
        "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
        "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
        "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False},
        "gemma3": {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": HEAD_DIM,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_local_base_freq": 10000.0,
            "rope_theta": 1000000.0,
        },
    }
    return config | extra[family]


def tensors(
    family: str, seed: int, vocabulary: int = 256 + len(SPECIALS), head_dim: int = HEAD_DIM
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.08) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).bfloat16()

    def norm(width: int = WIDTH) -> torch.Tensor:
        around = 0.0 if family == "gemma3" else 1.0
        return (around + 0.1 * torch.randn(width, generator=generator)).bfloat16()

    found = {"model.embed_tokens.weight": draw(vocabulary, WIDTH, scale=0.5), "model.norm.weight": norm()}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        found[at + "input_layernorm.weight"] = norm()
        found[at + "post_attention_layernorm.weight"] = norm()
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            found[at + f"self_attn.{name}_proj.weight"] = draw(rows * head_dim, WIDTH, scale=0.2)
            if family == "qwen2":
                found[at + f"self_attn.{name}_proj.bias"] = draw(rows * head_dim)
        found[at + "self_attn.o_proj.weight"] = draw(WIDTH, HEADS * head_dim, scale=0.2)
        found[at + "mlp.gate_proj.weight"] = draw(FEED_FORWARD, WIDTH, scale=0.2)
        found[at + "mlp.up_proj.weight"] = draw(FEED_FORWARD, WIDTH, scale=0.2)
        found[at + "mlp.down_proj.weight"] = draw(WIDTH, FEED_FORWARD, scale=0.2)
        if family in ("qwen3", "gemma3"):
            found[at + "self_attn.q_norm.weight"] = norm(head_dim)
            found[at + "self_attn.k_norm.weight"] = norm(head_dim)
        if family == "gemma3":
            found[at + "pre_feedforward_layernorm.weight"] = norm()
            found[at + "post_feedforward_layernorm.weight"] = norm()
    return found


def make_tiny_base(
    folder: Path, family: str = "llama", seed: int = 0, tokenizer: Tokenizer | None = None, **changes: Any
) -> BaseWeights:
    """`changes` are entries of `config.json`."""
    tokenizer = tokenizer or make_tokenizer()
    ids = {f"{name}_token_id": tokenizer.token_to_id(text) for name, text in zip(IDS, SPECIALS, strict=True)}
    vocabulary = tokenizer.get_vocab_size()
    config = tiny_config(family) | ids | {"vocab_size": vocabulary} | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    ends = {"eos_token_id": [ids["eos_token_id"]], "bos_token_id": ids["bos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = tensors(family, seed, vocabulary, config["head_dim"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / DIGEST_FILE).write_text(digest)
    return BaseWeights(name=f"tiny-{family}", folder=str(folder), digest=digest)


class NoAdapters:
    """The projections of the base alone."""

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        return F.linear(x, projection.weight, projection.bias)
