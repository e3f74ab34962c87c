"""Attention of training, inside each packed sequence only."""

from __future__ import annotations

import torch
from torch import Tensor

from sarto.engine.models.decoder import Decoder, DecoderConfig
from sarto.engine.ops.reference import Operations
from sarto.engine.ops.segments import Segments


class SegmentAttention:
    """Attention inside the sequences of one batch."""

    def __init__(self, ops: Operations, config: DecoderConfig, segments: Segments, keep: bool) -> None:
        self.ops, self.config, self.segments, self.keep = ops, config, segments, keep

    @classmethod
    def alone(cls, decoder: Decoder, count: int) -> SegmentAttention:
        """Attention of one sequence of `count` tokens, without values for a backward pass."""
        grid = torch.arange(count, device=decoder.device)[None]
        return cls(decoder.ops, decoder.config, Segments.of((grid,), count), keep=False)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        config = self.config
        return self.ops.attend(qkv, self.segments, config.head_shape, config.windows[layer], self.keep)
