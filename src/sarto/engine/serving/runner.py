"""One base in memory with its adapters and caches, and the forward pass over all its running sequences.

Owned by the engine's thread. The scheduler selects the sequences of a step; the runner converts them into rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.contract.common import BaseWeights
from sarto.engine.models.decoder import Adapters, Decoder
from sarto.engine.models.load import load_base
from sarto.engine.ops.select import choose_operations
from sarto.engine.serving.adapter_pool import ResidentAdapters
from sarto.engine.serving.attention import Chunk, StepAttention
from sarto.engine.serving.kv_cache import CacheShape, Lane, PrefixCache, width_for
from sarto.engine.serving.linear import Choice, bytes_of_adapter
from sarto.engine.serving.linear_panels import choose_products

TYPICAL_RANK = 16
"""Rank by which memory for adapters is divided; larger ones take more."""


def can_be_lent(decoder: Decoder, base: BaseWeights, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether serving can use training's decoder: whole, on this device, and with the values that serving
    multiplies."""
    is_plain = base.quantisation is None and not decoder.is_sharded
    return is_plain and (decoder.dtype, decoder.device) == (dtype, device)


@dataclass(eq=False)
class Row:
    """One running sequence: its tokens, its adapter, and its position in the cache."""

    tokens: list[int]
    """Prompt and generated tokens; the last one is not yet in the cache while decoding."""
    choice: Choice
    lane: Lane | None = None
    slot: int = 0


@dataclass(frozen=True)
class PromptChunk:
    """Tokens start … start + length - 1 of a prompt whose earlier ones are in `lane`, its own."""

    lane: Lane
    tokens: list[int]
    start: int
    length: int
    choice: Choice

    @property
    def is_last(self) -> bool:
        return self.start + self.length == len(self.tokens)


class Runner:
    """Base weights in the layout of serving; pools of adapters; lanes of keys and values."""

    def __init__(
        self,
        base: BaseWeights,
        dtype: torch.dtype,
        device: torch.device,
        *,
        adapter_limit: int,
        prefix_bytes: int,
        adapter_bytes: int | None = None,
        int8: bool = False,
        lent: Decoder | None = None,
    ) -> None:
        """`int8` applies to the weights only; everything else is in `dtype`. At most `adapter_limit` adapters are
        resident, and fewer if they would exceed `adapter_bytes`. `lent` is a decoder of this base that nothing else
        uses until `give_back`. Its weights are not loaded again, and not converted to int8, which cannot be undone."""
        assert lent is None or not int8
        with torch.inference_mode():
            self.decoder = lent or load_base(base, dtype, device)
            if lent is None:
                self.decoder.ops = choose_operations(device)
            self.config = self.decoder.config
            if adapter_bytes is not None:
                fitting = adapter_bytes // bytes_of_adapter(self.decoder, TYPICAL_RANK)
                adapter_limit = max(1, min(adapter_limit, fitting))
            self.products = choose_products(self.decoder, int8=int8)
            self.adapters = ResidentAdapters(self.decoder, self.products, adapter_limit)
        self.shape = CacheShape.of(self.config, dtype, device)
        self.prefixes = PrefixCache(self.shape, prefix_bytes)
        self._lanes: dict[int, tuple[Lane, list[Row]]] = {}

    def forget(self, digests: frozenset[str]) -> None:
        """Remove these adapters, at the latest when the sequences that use them end."""
        if self.adapters.forget(digests):
            self.prefixes.clear()

    def give_back(self) -> None:
        """Restore the lent decoder; this runner is unusable afterwards."""
        self.products.give_back(self.decoder)

    def open(self, tokens: list[int], name: str) -> tuple[Lane, int]:
        """A lane of its own for a prompt, and the number of its tokens that were cached under the name."""
        lane = Lane(self.shape, width_for(len(tokens)))
        content = lane.content(lane.open())
        pieces = self.prefixes.find(name, tokens)
        known = 0
        for piece in pieces:
            content[:, :, :, known : known + piece.shape[3]] = piece
            known += piece.shape[3]
        return lane, known

    def join(self, row: Row, prompt: Lane) -> None:
        """Start decoding: the row's computed prompt is copied from its lane."""
        self._enter(row, prompt.content(0), len(row.tokens) - 1)

    def leave(self, row: Row) -> None:
        """Free the row's cache."""
        assert row.lane is not None
        lane, members = self._lanes[row.lane.width]
        members[row.slot] = members[-1]
        members[row.slot].slot = row.slot
        members.pop()
        lane.drop(row.slot)
        row.lane = None
        if not members:
            del self._lanes[lane.width]

    def rows(self) -> list[Row]:
        """All decoding rows in the order of `step`'s logits."""
        return [row for _, members in self._lanes.values() for row in members]

    @torch.inference_mode()
    def step(self, chunks: Rows[PromptChunk]) -> Tensor:
        """One token for every decoding row and the chunks' tokens for their prompts. Returns logits (R, V) float32, of
        `rows()` in their order after this call, then of each chunk that ends its prompt."""
        self._widen()
        device, rows = self.shape.device, self.rows()
        lanes = [
            (lane, torch.tensor([len(row.tokens) - 1 for row in members], device=device))
            for lane, members in self._lanes.values()
        ]
        tokens = [row.tokens[-1] for row in rows]
        for chunk in chunks:
            tokens += chunk.tokens[chunk.start : chunk.start + chunk.length]
        ranges = [torch.arange(chunk.start, chunk.start + chunk.length, device=device) for chunk in chunks]
        positions = torch.cat([positions for _, positions in lanes] + ranges)
        ends, adapters = self._adapters(rows, chunks)
        attention = StepAttention(
            self.config, self.shape, lanes, [Chunk(chunk.lane, chunk.start, chunk.length) for chunk in chunks]
        )
        hidden = self.decoder(torch.tensor(tokens, device=device), positions, attention, adapters, ends)
        output_count = len(rows) + sum(chunk.is_last for chunk in chunks)
        return self.products.logits(hidden)[:output_count]

    def _adapters(self, rows: list[Row], chunks: Rows[PromptChunk]) -> tuple[Tensor, Adapters]:
        """The rows that continue to the logits (a placeholder if there are none), and the adapters of all rows."""
        choices = [row.choice for row in rows]
        last_choices, ends = list(choices), list(range(len(rows)))
        parts, first = [], len(rows)
        for chunk in chunks:
            parts.append((chunk.length, chunk.choice))
            first += chunk.length
            if chunk.is_last:
                last_choices.append(chunk.choice)
                ends.append(first - 1)
        if not ends:
            last_choices, ends = [None], [0]
        return torch.tensor(ends, device=self.shape.device), self.products.adapters(choices, parts, last_choices)

    def _widen(self) -> None:
        """Move rows whose lane is full to a wider one."""
        for row in self.rows():
            assert row.lane is not None
            tokens = len(row.tokens)
            if tokens > row.lane.width:
                content = row.lane.content(row.slot).clone()
                self.leave(row)
                self._enter(row, content, tokens - 1)

    def _enter(self, row: Row, content: Tensor, tokens: int) -> None:
        width = width_for(tokens + 1)
        if width not in self._lanes:
            self._lanes[width] = (Lane(self.shape, width), [])
        lane, members = self._lanes[width]
        row.slot = lane.take(content, tokens)
        row.lane = lane
        members.append(row)
