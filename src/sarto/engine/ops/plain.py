"""The few operations that decide speed, in ordinary differentiable torch: their definition, and what runs wherever no
faster twin is (a GPU, a processor without the compiled file).

`Operations` is the seam; a decoder holds one set, chosen once by `engine/ops/choose.py`. Knows no model and no files.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]


class Operations(Protocol):
    name: str

    def add_norm(self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Residual stream plus delta in float32 (N, D), and its root-mean-square norm in delta's dtype (N, D)."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension, float32 inside, x's dtype outside."""
        ...

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, query_scale: float) -> Tensor:
        """Rotary positions on q and k, the attention scale on q: (N, (H + 2 HK) hd), with cos, sin (N, hd / 2)."""
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up: (N, 2 F) → (N, F)."""
        ...


class PlainOperations:
    name = "plain"

    def add_norm(self, stream: Tensor | None, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        stream = delta.float() if stream is None else stream + delta
        return stream, F.rms_norm(stream, stream.shape[-1:], weight, eps).to(delta.dtype)

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, query_scale: float) -> Tensor:
        x = qkv.unflatten(1, (heads + 2 * kv_heads, -1))  # (N, H + 2 HK, hd)
        first, second = x[:, : heads + kv_heads].float().chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        turned = torch.cat([first * c - second * s, second * c + first * s], -1)
        q, k = turned.split([heads, kv_heads], 1)
        return torch.cat([(q * query_scale).to(x.dtype), k.to(x.dtype), x[:, heads + kv_heads :]], 1).flatten(1)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up
