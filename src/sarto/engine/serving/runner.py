"""One base in memory with its adapters and caches, and the forward pass over whatever runs on it at the moment.

Lives on the engine's thread. The scheduler says which sequences take part in a step; this turns them into rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from sarto.engine.families.decoder import Adapters, Decoder
from sarto.engine.families.load import load_base
from sarto.engine.ops.choose import choose_operations
from sarto.engine.serving.adapters import ResidentAdapters
from sarto.engine.serving.attention import Chunk, StepAttention
from sarto.engine.serving.cache import CacheShape, Lane, PrefixCache, width_for
from sarto.engine.serving.panels import choose_products
from sarto.engine.serving.products import Choice, bytes_of_adapter
from sarto.schema.runs import BaseWeights

TYPICAL_RANK = 16
"""What memory for adapters is shared out by; larger ones take more."""


def can_be_lent(decoder: Decoder, base: BaseWeights, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether serving can work on training's own decoder: whole, here, and with the values it multiplies."""
    is_plain = base.quantisation is None and not decoder.is_sharded
    return is_plain and (decoder.dtype, decoder.device) == (dtype, device)


@dataclass(eq=False)
class Row:
    """One running sequence as the runner sees it: its tokens so far, its adapter, and where its cache lies."""

    tokens: list[int]
    """Prompt and what was generated; the last one is not yet in the cache while decoding."""
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
    """Base weights, packed; pools of adapters; lanes of keys and values."""

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
        """`int8`: the weights alone; all else is in `dtype`. At most `adapter_limit` adapters are resident, and fewer
        where they would fill more than `adapter_bytes`. `lent`: a decoder of this base that nobody else uses until
        `give_back`; its weights are not loaded again, and not in int8, from which there is no way back."""
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
        """Nothing of these adapters stays in memory longer than the sequences that use them."""
        if self.adapters.forget(digests):
            self.prefixes.clear()

    def give_back(self) -> None:
        """The lent decoder as it was; this ends with it."""
        self.products.give_back(self.decoder)

    def open(self, tokens: list[int], adapter: str) -> tuple[Lane, int]:
        """A lane of its own for a prompt, and how many of its tokens were known already."""
        lane = Lane(self.shape, width_for(len(tokens)))
        content = lane.content(lane.open())
        pieces = self.prefixes.find(adapter, tokens)
        known = 0
        for piece in pieces:
            content[:, :, :, known : known + piece.shape[3]] = piece
            known += piece.shape[3]
        return lane, known

    def join(self, row: Row, prompt: Lane) -> None:
        """Begin decoding: the row's computed prompt is copied from the lane it was computed in."""
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
        """All decoding rows in the order in which `step` answers them."""
        return [row for _, members in self._lanes.values() for row in members]

    @torch.inference_mode()
    def step(self, chunks: Rows[PromptChunk]) -> Tensor:
        """One token for every decoding row and the chunks' tokens for their prompts: logits (R, V) float32, of `rows()`
        as they are after this call, then of each chunk that ends its prompt."""
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
            self.config, self.shape.dtype, lanes, [Chunk(chunk.lane, chunk.start, chunk.length) for chunk in chunks]
        )
        hidden = self.decoder(torch.tensor(tokens, device=device), positions, attention, adapters, ends)
        wanted = len(rows) + sum(chunk.is_last for chunk in chunks)
        return self.products.logits(hidden)[:wanted]

    def _adapters(self, rows: list[Row], chunks: Rows[PromptChunk]) -> tuple[Tensor, Adapters]:
        """The rows that go on to the logits (one stands in when there are none), and everyone's adapters."""
        choices = [row.choice for row in rows]
        wanted, ends = list(choices), list(range(len(rows)))
        parts, first = [], len(rows)
        for chunk in chunks:
            parts.append((chunk.length, chunk.choice))
            first += chunk.length
            if chunk.is_last:
                wanted.append(chunk.choice)
                ends.append(first - 1)
        if not ends:
            wanted, ends = [None], [0]
        return torch.tensor(ends, device=self.shape.device), self.products.adapters(choices, parts, wanted)

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
