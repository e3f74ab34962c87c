"""Rotary frequencies from `config.json`, in its older spelling (`rope_theta`, `rope_scaling`) and its newer one
(`rope_parameters`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sarto.errors import InvalidArgument


def rotary_parameters(raw: dict[str, Any], layer_type: str | None = None) -> dict[str, Any]:
    """The rotary parameters of `config.json`, always with `rope_theta` and `rope_type`."""
    parameters = dict(raw.get("rope_parameters") or {})
    if layer_type is not None:
        parameters = dict(parameters.get(layer_type) or {})
    if not parameters:
        parameters = {"rope_theta": raw.get("rope_theta", 10000.0), **(raw.get("rope_scaling") or {})}
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    return parameters | {"rope_theta": theta, "rope_type": kind}


def rotary_frequencies(raw: dict[str, Any], head_dim: int, layer_type: str | None = None) -> Tensor:
    """Inverse frequencies (hd / 2,) float32. Raises InvalidArgument for an unsupported scaling."""
    parameters = rotary_parameters(raw, layer_type)
    plain = plain_frequencies(parameters["rope_theta"], head_dim)
    kind = parameters["rope_type"]
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / float(parameters["factor"])
    if kind == "llama3":
        return _llama3(plain, parameters)
    if kind == "longrope" and _is_one_table(parameters, head_dim):
        return plain / torch.tensor(parameters["long_factor"], dtype=torch.float32)
    raise InvalidArgument(f"Rotary scaling {kind!r} is not supported; known: default, linear, llama3.")


def plain_frequencies(theta: float, head_dim: int) -> Tensor:
    """(hd / 2,) float32, unscaled."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def one_table(factors: list[float], context: int) -> dict[str, Any]:
    """The `rope_scaling` that divides each frequency by its factor at any length, as in transformers."""
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _is_one_table(parameters: dict[str, Any], head_dim: int) -> bool:
    factors = parameters.get("long_factor")
    is_whole = isinstance(factors, list) and len(factors) == head_dim // 2
    return is_whole and factors == parameters.get("short_factor") and parameters.get("attention_factor") == 1.0


def _llama3(plain: Tensor, parameters: dict[str, Any]) -> Tensor:
    """Frequencies with long waves stretched by the factor, short ones unchanged, and those between blended."""
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    trained = float(parameters["original_max_position_embeddings"])
    waves = trained * plain / (2 * math.pi)  # how often a wave fits into the trained context
    blend = ((waves - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * plain / factor + blend * plain
