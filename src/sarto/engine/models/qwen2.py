"""Qwen2.5: Llama's shape with biases on q, k and v (from the weights) and sliding windows if the configuration enables
them."""

from __future__ import annotations

from typing import Any

from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.models.llama import common


def windows(raw: dict[str, Any]) -> tuple[int | None, ...]:
    """The window of each layer: layers from `max_window_layers` on have one, if the configuration enables that."""
    layers = int(raw["num_hidden_layers"])
    if not raw.get("use_sliding_window"):
        return (None,) * layers
    kinds = raw.get("layer_types") or [
        "full_attention" if index < int(raw["max_window_layers"]) else "sliding_attention" for index in range(layers)
    ]
    return tuple(int(raw["sliding_window"]) if kind == "sliding_attention" else None for kind in kinds)


def config(raw: dict[str, Any]) -> DecoderConfig:
    return common(raw, "qwen2", windows=windows(raw))
