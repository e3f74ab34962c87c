"""Names of a base's numbers and tensors in each GGUF architecture: one table, for `gguf_writer.py` and `convert.py`.
Knows no bytes and no tokenizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sarto.errors import InvalidArgument

KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
}
"""GGUF's key, after the architecture's name and a dot → its name in `config.json`."""
FRACTIONS = ("rms_norm_eps", "rope_theta", "rope_local_base_freq")
"""Keys whose numbers are not whole."""
WINDOW_KEYS = {
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "rope.freq_base_swa": "rope_local_base_freq",
}
TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
BIASES = {f"attn_{name}.bias": f"self_attn.{name}_proj.bias" for name in "qkv"}
HEAD_NORMS = {f"attn_{name}_norm.weight": f"self_attn.{name}_norm.weight" for name in "qk"}
GEMMA_NORMS = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
"""Divisor of each rotary frequency, (hd / 2,); only if an architecture `has_rope_factors`."""


@dataclass(frozen=True)
class Architecture:
    """llama.cpp's storage and computation of one shape."""

    name: str
    class_name: str
    """Its entry in `config.json` under `architectures`."""
    model_types: tuple[str, ...]
    """Values of `model_type` with this shape; a file is read as the first."""
    keys: dict[str, str] = field(default_factory=lambda: KEYS)
    tensors: dict[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    """Tensors of a layer: GGUF's name, after `blk.N.` → ours, after `model.layers.N.`."""
    has_paired_rotary: bool = False
    """Whether rows of q and k that rotate together are side by side; else half a head apart, as in our layout."""
    has_rope_factors: bool = False
    norm_offset: float = 0.0
    """Added to our norm weights."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Defaults of keys that a file may lack."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Further entries of this shape's `config.json`."""

    @property
    def has_windows(self) -> bool:
        """Whether layers with a window and a rotary base of their own are between layers with full attention."""
        return "sliding_window" in self.keys.values()

    def tensor_names(self, layers: int) -> dict[str, str]:
        """GGUF's name of every tensor → ours."""
        return TOP_TENSORS | {
            f"blk.{layer}.{short}": f"model.layers.{layer}.{name}"
            for layer in range(layers)
            for short, name in self.tensors.items()
        }


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture(
            "llama",
            "LlamaForCausalLM",
            ("llama", "mistral"),
            has_paired_rotary=True,
            has_rope_factors=True,
            constants={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        ),
        Architecture(
            "qwen2",
            "Qwen2ForCausalLM",
            ("qwen2",),
            tensors=LAYER_TENSORS | BIASES,
            constants={"hidden_act": "silu", "use_sliding_window": False},
        ),
        Architecture(
            "qwen3",
            "Qwen3ForCausalLM",
            ("qwen3",),
            tensors=LAYER_TENSORS | HEAD_NORMS,
            constants={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
        ),
        Architecture(
            "gemma3",
            "Gemma3ForCausalLM",
            ("gemma3_text",),
            keys=KEYS | WINDOW_KEYS,
            tensors=LAYER_TENSORS | HEAD_NORMS | GEMMA_NORMS,
            norm_offset=1.0,
            defaults={"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0},
            constants={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False},
        ),
    )
}


def is_norm(name: str) -> bool:
    """Whether our tensor of this name is the weight of a norm."""
    return name.endswith("norm.weight")


def read_numbers(architecture: Architecture, metadata: dict[str, Any]) -> dict[str, Any]:
    """A file's numbers by their names in `config.json`. Raises InvalidArgument with the key that is missing, no number,
    or of an unsupported shape."""
    numbers: dict[str, Any] = {}
    for key, name in architecture.keys.items():
        value = metadata.get(f"{architecture.name}.{key}")
        if value is None:
            continue
        kind = float if name in FRACTIONS else int
        if type(value) is not kind:
            raise InvalidArgument(f"GGUF metadata {architecture.name}.{key} is not one number of type {kind.__name__}.")
        value = float(f"{value:.6g}") if kind is float else value  # as it was before it became float32
        if numbers.setdefault(name, value) != value:
            raise InvalidArgument(f"GGUF metadata {architecture.name}.{key} differs from {name} {numbers[name]}.")
    scaling = metadata.get(f"{architecture.name}.rope.scaling.type", "none")
    for refused, is_there in {
        f"rope.scaling.type {scaling!r}": scaling != "none",
        "final_logit_softcapping": f"{architecture.name}.final_logit_softcapping" in metadata,
    }.items():
        if is_there:
            raise InvalidArgument(f"GGUF metadata has {architecture.name}.{refused}, which Sarto does not support.")
    numbers = architecture.defaults | numbers
    if "num_attention_heads" in numbers and "hidden_size" in numbers:
        numbers.setdefault("num_key_value_heads", numbers["num_attention_heads"])
        numbers.setdefault("head_dim", numbers["hidden_size"] // max(1, numbers["num_attention_heads"]))
    for key, name in architecture.keys.items():
        if name not in numbers:
            raise InvalidArgument(f"GGUF metadata has no {architecture.name}.{key}.")
    return numbers
