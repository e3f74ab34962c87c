"""Attention of one step over the KV cache: decoding rows lane by lane, then prompt chunks one by one.

Query heads with a common key head are stacked, so grouped heads cost two batched products and no copies of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.serving.kv_cache import CacheShape, Lane
from sarto.engine.serving.linear_panels import attend_chunk, attend_rows, compiled_attention


@dataclass(frozen=True)
class Chunk:
    """`length` prompt tokens of the one sequence in `lane`, from position `start`."""

    lane: Lane
    start: int
    length: int


@dataclass(frozen=True)
class _LanePart:
    lane: Lane
    first: int
    positions: Tensor
    places: Tensor | None = None
    """Indices of the new keys and values, and `masks`; only without compiled attention."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _ChunkPart:
    chunk: Chunk
    first: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Only without compiled attention."""


class StepAttention:
    """Attention of one step. Rows are in this order: for each lane its slots 0 …, one token each; then each chunk's
    tokens.

    `lanes` pairs a lane with the position of each of its sequences' new token, (count,) int64."""

    def __init__(
        self,
        config: DecoderConfig,
        shape: CacheShape,
        lanes: Sequence[tuple[Lane, Tensor]],
        chunks: Sequence[Chunk],
    ) -> None:
        self._config, self._dtype = config, shape.dtype
        self._compiled = compiled_attention(config, shape)
        windows = set(config.windows)
        first = 0
        self._lanes: list[_LanePart] = []
        for lane, positions in lanes:
            if self._compiled is not None:
                self._lanes.append(_LanePart(lane, first, positions))
                first += len(positions)
                continue
            places = lane.places(torch.arange(len(positions), device=positions.device), positions)
            masks = {
                w: self._mask(positions, lane.width, w).repeat_interleave(config.kv_heads, 0)[:, None] for w in windows
            }
            self._lanes.append(_LanePart(lane, first, positions, places, masks))
            first += len(positions)
        self._chunks: list[_ChunkPart] = []
        for chunk in chunks:
            if self._compiled is not None:
                self._chunks.append(_ChunkPart(chunk, first))
                first += chunk.length
                continue
            end = chunk.start + chunk.length
            positions = torch.arange(chunk.start, end, device=chunk.lane.block.device)
            repeats = config.heads // config.kv_heads
            self._chunks.append(
                _ChunkPart(chunk, first, {w: self._mask(positions, end, w).repeat(repeats, 1) for w in windows})
            )
            first += chunk.length

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        parts = [self._decode(layer, qkv, part) for part in self._lanes]
        parts += [self._prefill(layer, qkv, part) for part in self._chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _mask(self, positions: Tensor, width: int, window: int | None) -> Tensor:
        """The term added to scores: 0 for visible keys, -inf for others; (N,) to (N, width)."""
        keys = torch.arange(width, device=positions.device)
        hidden = keys > positions[:, None]
        if window is not None:
            hidden |= keys <= positions[:, None] - window
        return torch.zeros(hidden.shape, dtype=self._dtype, device=positions.device).masked_fill_(hidden, -torch.inf)

    def _decode(self, layer: int, qkv: Tensor, part: _LanePart) -> Tensor:
        heads, kv_heads, size = self._config.heads, self._config.kv_heads, self._config.head_dim
        count = part.lane.count
        rows = qkv[part.first : part.first + count]
        if self._compiled is not None:
            out = qkv.new_empty(count, heads * size)
            attend_rows(self._compiled, self._config, layer, part.lane, part.positions, rows, out)
            return out
        assert part.places is not None
        flat, keys, values = part.lane.views()[layer]
        mask = part.masks[self._config.windows[layer]]
        flat.index_copy_(0, part.places, rows[:, heads * size :].reshape(-1, size))
        q = rows[:, : heads * size].reshape(count * kv_heads, heads // kv_heads, size)
        weights = torch.softmax(torch.bmm(q, keys).add_(mask), -1)  # (n HK, H / HK, width)
        return torch.bmm(weights, values).view(count, heads * size)

    def _prefill(self, layer: int, qkv: Tensor, part: _ChunkPart) -> Tensor:
        heads, kv_heads, size = self._config.heads, self._config.kv_heads, self._config.head_dim
        chunk, repeats = part.chunk, heads // kv_heads
        length, end = chunk.length, chunk.start + chunk.length
        rows = qkv[part.first : part.first + length]
        content = chunk.lane.block[layer, :, 0]  # (2, HK, width, hd)
        content[:, :, chunk.start : end] = rows[:, heads * size :].view(length, 2, kv_heads, size).permute(1, 2, 0, 3)
        if self._compiled is not None:
            out = qkv.new_empty(length, heads * size)
            attend_chunk(self._compiled, self._config, layer, chunk.lane, chunk.start, rows, out)
            return out
        mask = part.masks[self._config.windows[layer]]
        keys, values = content[:, :, :end].unbind(0)
        q = rows[:, : heads * size].view(length, kv_heads, repeats, size).permute(1, 2, 0, 3)
        q = q.reshape(kv_heads, repeats * length, size)
        weights = torch.softmax(torch.bmm(q, keys.mT).add_(mask), -1)  # (HK, H / HK · t, end)
        out = torch.bmm(weights, values).view(heads, length, size)
        return out.transpose(0, 1).reshape(length, heads * size)
