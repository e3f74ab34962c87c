"""Storage of the frozen matrices of a decoder: in their own dtype, or packed into fewer bits.

A call returns the matrix. A packed one is unpacked at every call and not cached, which costs a few hundredths of the
product with a few thousand rows.
"""

from __future__ import annotations

from torch import Tensor, nn

from sarto.engine.ops.quantised import Quantisation, pack, unpack


class Dense(nn.Module):
    def __init__(self, values: Tensor, room: Tensor | None = None) -> None:
        super().__init__()
        self.values = nn.Parameter(values, requires_grad=False)
        self.shape = values.shape
        self.room = room
        """A larger matrix whose first corner is `values`; the rest is for the borders of an adapter."""

    def forward(self) -> Tensor:
        return self.values


class Packed(nn.Module):
    def __init__(self, values: Tensor, kind: Quantisation) -> None:
        super().__init__()
        codes, scales = pack(values, kind)
        self.codes, self.scales = (nn.Parameter(part, requires_grad=False) for part in (codes, scales))
        self.shape, self.dtype = values.shape, values.dtype

    def forward(self) -> Tensor:
        """(N, K) in the decoder's dtype."""
        return unpack(self.codes, self.scales, self.shape[1], self.dtype)


Matrix = Dense | Packed
