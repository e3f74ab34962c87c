"""Llama, SmolLM2 and Mistral: the plain shape. `common` reads the keys that every family's `config.json` shares."""

from __future__ import annotations

from typing import Any

from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.models.rotary import rotary_frequencies
from sarto.errors import InvalidArgument


def common(raw: dict[str, Any], family: str, **quirks: Any) -> DecoderConfig:
    """Read the shared keys. `quirks` are fields of DecoderConfig that the family sets."""
    heads = int(raw["num_attention_heads"])
    head_dim = int(raw.get("head_dim") or raw["hidden_size"] // heads)
    layers = int(raw["num_hidden_layers"])
    fields: dict[str, Any] = {
        "vocabulary": int(raw["vocab_size"]),
        "width": int(raw["hidden_size"]),
        "layers": layers,
        "heads": heads,
        "kv_heads": int(raw.get("num_key_value_heads") or heads),
        "head_dim": head_dim,
        "feed_forward": int(raw["intermediate_size"]),
        "context": int(raw["max_position_embeddings"]),
        "norm_eps": float(raw["rms_norm_eps"]),
        "tied": bool(raw.get("tie_word_embeddings", False)),
        "query_scale": head_dim**-0.5,
        "windows": (None,) * layers,
    }
    if "inverse_frequencies" not in quirks:
        fields["inverse_frequencies"] = (rotary_frequencies(raw, head_dim),) * layers
    return DecoderConfig(family=family, **(fields | quirks))


def config(raw: dict[str, Any]) -> DecoderConfig:
    if raw.get("hidden_act", "silu") != "silu":
        raise InvalidArgument(f"hidden_act {raw['hidden_act']!r} is not one a Llama-shaped base uses; known: silu.")
    window = raw.get("sliding_window")
    return common(raw, raw["model_type"], windows=(window,) * int(raw["num_hidden_layers"]))
