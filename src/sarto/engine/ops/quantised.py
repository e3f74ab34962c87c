"""Frozen matrices in 8 or 4 bits: codes of the values, and a scale for each row or for each block of a row.

`int8`: the nearest of 255 even steps of the row's largest value. `nf4`: the nearest of the 16 values of NormalFloat4
(QLoRA) times the largest value of a block of 64. Rows are packed independently, so that matrices can be cut and joined
by rows. A product unpacks its matrix first, so its values are the same everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Quantisation = Literal["int8", "nf4"]
QUANTISATIONS: tuple[Quantisation, ...] = ("int8", "nf4")
BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, as QLoRA publishes them; a 4-bit code is an index."""


def pack(weight: Tensor, kind: Quantisation) -> tuple[Tensor, Tensor]:
    """Convert (N, K) to codes, int8 (N, K) or uint8 (N, K / 2 rounded up to whole blocks), and float32 scales (N,
    blocks)."""
    values = weight.float()
    if kind == "int8":
        scales = values.abs().amax(1, keepdim=True).div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
        return (values / scales).round_().to(torch.int8), scales
    blocks = F.pad(values, (0, -values.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # (N, blocks, 64)
    scales = blocks.abs().amax(2).clamp_(min=torch.finfo(torch.float32).tiny)
    table = torch.tensor(NF4, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    nearest = torch.bucketize(blocks / scales[..., None], between).flatten(1).to(torch.uint8)
    return nearest[:, ::2] << 4 | nearest[:, 1::2], scales


def unpack(codes: Tensor, scales: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """The matrix (N, columns) at its quantised values."""
    if codes.dtype == torch.int8:
        return (codes * scales).to(dtype)
    values = _pairs(codes.device).index_select(0, codes.flatten().int()).view(torch.float32).view(*scales.shape, BLOCK)
    return (values * scales[..., None]).to(dtype).flatten(1)[:, :columns]


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two values of each byte, the high four bits' first, as one number, so that one lookup gives both."""
    return torch.tensor([(high, low) for high in NF4 for low in NF4], device=device).view(torch.int64).flatten()


def rounded(weight: Tensor, kind: Quantisation) -> Tensor:
    """The matrix at the values that it has after packing."""
    return unpack(*pack(weight, kind), weight.shape[1], weight.dtype)
