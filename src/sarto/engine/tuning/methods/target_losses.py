"""The forward pass of a packed batch, from its tokens to the loss of each of its targets; shared by all methods."""

from __future__ import annotations

from torch import Tensor

from sarto.engine.models.decoder import Adapters, Decoder
from sarto.engine.ops.segments import Segments
from sarto.engine.tuning.packing import Batch, MemoryPlan
from sarto.engine.tuning.segment_attention import SegmentAttention


def target_losses(decoder: Decoder, adapters: Adapters, batch: Batch, memory: MemoryPlan) -> tuple[Tensor, Tensor]:
    """The loss of each of the batch's targets in nats (P,), differentiable in the adapter, and the number of targets
    that rank first."""
    return decoder.token_loss(target_states(decoder, adapters, batch, memory), batch.targets)


def target_states(decoder: Decoder, adapters: Adapters, batch: Batch, memory: MemoryPlan) -> Tensor:
    """The normed hidden state from which each of the batch's targets is predicted: (P, D)."""
    segments = Segments.of(batch.grids, len(batch.tokens))
    attend = SegmentAttention(decoder.ops, decoder.config, segments, memory.keep_attention)
    hidden: Tensor = decoder(
        batch.tokens, batch.positions, attend, adapters, batch.rows, recompute=memory.recompute_layers
    )  # (R, D)
    if len(batch.picks) > len(batch.rows):
        hidden = hidden.index_select(0, batch.picks)  # (P, D)
    return hidden
