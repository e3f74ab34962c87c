"""Gemma 3 text: scaled embeddings, norm weights around zero, norms on both sides of each block, and tanh-GELU. Sliding
layers between the full ones have a rotary base of their own."""

from __future__ import annotations

from typing import Any

from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.models.llama import common
from sarto.engine.models.rotary import rotary_frequencies
from sarto.errors import InvalidArgument

NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}


def config(raw: dict[str, Any]) -> DecoderConfig:
    for unknown in ("final_logit_softcapping", "attn_logit_softcapping"):
        if raw.get(unknown):
            raise InvalidArgument(f"Gemma 3 with {unknown} is not supported by Sarto.")
    layers, head_dim = int(raw["num_hidden_layers"]), int(raw["head_dim"])
    every = int(raw.get("sliding_window_pattern", 6))
    kinds = raw.get("layer_types") or [
        "full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(layers)
    ]
    full = rotary_frequencies(raw, head_dim, "full_attention")
    sliding = rotary_frequencies(local_rotary(raw), head_dim, "sliding_attention")
    return common(
        raw,
        "gemma3",
        activation="gelu_tanh",
        tied=bool(raw.get("tie_word_embeddings", True)),
        query_scale=float(raw["query_pre_attn_scalar"]) ** -0.5,
        embedding_scale=float(raw["hidden_size"]) ** 0.5,
        norm_offset=1.0,
        norms=NORMS,
        inverse_frequencies=tuple(full if kind == "full_attention" else sliding for kind in kinds),
        windows=tuple(None if kind == "full_attention" else int(raw["sliding_window"]) for kind in kinds),
    )


def local_rotary(raw: dict[str, Any]) -> dict[str, Any]:
    """The rotary configuration of sliding layers."""
    return {"rope_theta": raw.get("rope_local_base_freq", 10000.0), "rope_parameters": raw.get("rope_parameters")}
