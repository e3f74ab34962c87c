"""Qwen3: Llama's shape with each head of q and k normed before it is rotated (the weights hold the norms)."""

from __future__ import annotations

from typing import Any

from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.models.llama import common
from sarto.engine.models.qwen2 import windows


def config(raw: dict[str, Any]) -> DecoderConfig:
    return common(raw, "qwen3", windows=windows(raw))
