"""Supervised tuning: the loss of a packed batch is the cross-entropy of its supervised tokens.

Used by the loop and by the validation pass. Knows no optimiser and no files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sarto.engine.data.batches import Batch
from sarto.engine.families.decoder import Adapters, Decoder, DecoderConfig
from sarto.engine.ops.plain import Operations
from sarto.engine.ops.segments import Segments


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is cut to fit into memory; the gradients are the same whatever it says."""

    token_budget: int
    """Most packed rows of a batch; a step is as many batches as it takes."""
    keep_attention: bool = True
    """Attention weights are kept for the backward pass instead of computed again."""
    recompute_layers: bool = False
    """Only one tensor a layer is kept; the rest is computed again."""


class SegmentAttention:
    """Attention inside the sequences of one batch."""

    def __init__(self, ops: Operations, config: DecoderConfig, segments: Segments, keep: bool) -> None:
        self.ops, self.config, self.segments, self.keep = ops, config, segments, keep

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        config = self.config
        return self.ops.attend(qkv, self.segments, config.head_shape, config.windows[layer], self.keep)


def batch_loss(decoder: Decoder, adapters: Adapters, batch: Batch, memory: MemoryPlan) -> tuple[Tensor, Tensor]:
    """Summed loss in nats over the batch's targets, differentiable in the adapter, and how many targets rank first."""
    segments = Segments.of(batch.grids, len(batch.tokens))
    attend = SegmentAttention(decoder.ops, decoder.config, segments, memory.keep_attention)
    hidden = decoder(
        batch.tokens, batch.positions, attend, adapters, batch.rows, recompute=memory.recompute_layers
    )  # (R, D)
    if len(batch.picks) > len(batch.rows):
        hidden = hidden.index_select(0, batch.picks)  # (P, D)
    return decoder.ops.token_loss(hidden, decoder.head, batch.targets)
