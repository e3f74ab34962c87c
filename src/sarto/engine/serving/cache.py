"""Keys and values of running sequences, in tight blocks, and of finished prompts, for those that begin alike.

On CPU a batched product over one tight block needs no copies, where pages would be gathered at every layer and step.
So sequences of about the same length share a `Lane`, a block as wide as they need, and move to a wider one as they
grow. The width follows from a sequence's own length alone: what it computes never depends on its neighbours.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor

from sarto.engine.families.decoder import DecoderConfig

PREFIX_TOKENS = 32
"""Prompts are kept and found again in pieces of this many tokens."""
SLAB_BYTES = 64 << 20
"""Pieces have their memory in slabs of about this size."""


def width_for(tokens: int) -> int:
    """Tokens a lane holds that has room for `tokens`: steps of 64 at first, then of about a quarter."""
    step = 64
    while tokens > 8 * step:
        step *= 2
    return -(-tokens // step) * step


@dataclass(frozen=True)
class CacheShape:
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> CacheShape:
        return cls(config.layers, config.kv_heads, config.head_dim, dtype, device)

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def empty(self, slots: int, width: int) -> Tensor:
        """Zeros, since masked places are multiplied by zero weights: (layers, k or v, slots, HK, width, hd).

        On CPU pages of their own, which go back to the system with the tensor: in the heap, blocks of all sizes that
        come and go would leave holes until it had grown by half. Raises MemoryError where there are none."""
        shape = (self.layers, 2, slots, self.kv_heads, width, self.head_dim)
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        size = math.prod(shape) * self.dtype.itemsize
        try:
            pages = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no memory for {size} bytes of keys and values: {error}") from None
        return torch.frombuffer(pages, dtype=self.dtype).view(shape)


class Lane:
    """A block for sequences of one width; those in it fill slots 0 … count-1 without gaps."""

    def __init__(self, shape: CacheShape, width: int, slots: int = 1) -> None:
        self.shape, self.width = shape, width
        self.block = shape.empty(slots, width)
        self.count = 0
        self._views: tuple[int, list[tuple[Tensor, Tensor, Tensor]]] = (0, [])

    def take(self, source: Tensor, tokens: int) -> int:
        """Copy keys and values (layers, 2, HK, ≥ tokens, hd) into a new slot and return its number."""
        slots = self.block.shape[2]
        if self.count == slots:
            wider = self.shape.empty(2 * slots, self.width)
            wider[:, :, :slots] = self.block
            self._replace(wider)
        self.block[:, :, self.count, :, :tokens] = source[:, :, :, :tokens]
        self.count += 1
        return self.count - 1

    def open(self) -> int:
        """An empty slot, for a sequence whose prompt is still to be computed."""
        return self.take(self.block[:, :, 0], 0)

    def drop(self, slot: int) -> int:
        """Free a slot. The last one moves into its place; returns the number that one had."""
        last = self.count - 1
        if slot != last:
            self.block[:, :, slot] = self.block[:, :, last]
        self.count = last
        if self.block.shape[2] >= 4 * max(last, 1):
            tighter = self.shape.empty(max(1, 2 * last), self.width)
            self._replace(tighter.copy_(self.block[:, :, : tighter.shape[2]]))
        return last

    def content(self, slot: int) -> Tensor:
        """Keys and values of one slot: (layers, 2, HK, width, hd), a view."""
        return self.block[:, :, slot]

    def views(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer: flat rows to write into (2 · slots · HK · width, hd), and keys (n, hd, width) and values
        (n, width, hd) of the slots in use, with n = count · HK."""
        if self._views[0] != self.count:
            n = self.count
            rows = [
                (layer.view(-1, self.shape.head_dim), layer[0, :n].flatten(0, 1).mT, layer[1, :n].flatten(0, 1))
                for layer in self.block.unbind(0)
            ]
            self._views = (n, rows)
        return self._views[1]

    def pointers(self, layer: int) -> tuple[int, int]:
        """Where a layer's keys and its values lie, each (slots, HK, width, hd)."""
        step, start = self.block.stride(1) * self.shape.dtype.itemsize, self.block.data_ptr()
        return start + 2 * layer * step, start + (2 * layer + 1) * step

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Rows of the flat view for k, then v, of each (slot, position): (N · 2 · HK,), in the order qkv has them."""
        heads, total = self.shape.kv_heads, self.block.shape[2]
        index = torch.arange(2 * heads, device=slots.device)
        block = (index // heads)[None] * total + slots[:, None]  # (N, 2 HK)
        return ((block * heads + (index % heads)[None]) * self.width + positions[:, None]).flatten()

    def _replace(self, block: Tensor) -> None:
        self.block, self._views = block, (0, [])


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens of the common beginning that a cache would keep as whole pieces."""
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return common // PREFIX_TOKENS * PREFIX_TOKENS


class PrefixCache:
    """Keys and values of prompt pieces by everything that came before them, dropped by least use past `limit` bytes.

    All pieces are of one size and lie in slabs, which are kept."""

    def __init__(self, shape: CacheShape, limit: int) -> None:
        self._shape = shape
        self._most = limit // (PREFIX_TOKENS * shape.token_bytes)
        self._pieces: OrderedDict[bytes, Tensor] = OrderedDict()
        self._free: list[Tensor] = []
        self.hit_tokens = 0
        self.asked_tokens = 0

    @property
    def size_bytes(self) -> int:
        return len(self._pieces) * PREFIX_TOKENS * self._shape.token_bytes

    def find(self, adapter: str, tokens: Sequence[int]) -> list[Tensor]:
        """Pieces (layers, 2, HK, PREFIX_TOKENS, hd) that cover the longest known beginning, its last token left out:
        that one must be computed to know what follows."""
        known = self._known(adapter, tokens)
        found = [self._pieces[key] for key in known]
        self._touch(known)
        self.hit_tokens += len(found) * PREFIX_TOKENS
        self.asked_tokens += len(tokens)
        return found

    def known_tokens(self, adapter: str, tokens: Sequence[int]) -> int:
        """How much of a prompt `find` would give."""
        return len(self._known(adapter, tokens)) * PREFIX_TOKENS

    def keep(self, adapter: str, tokens: Sequence[int], content: Tensor) -> None:
        """Remember a computed prompt; `content` is (layers, 2, HK, ≥ len(tokens), hd)."""
        keys = self._keys(adapter, tokens)[: self._most]
        self._touch([key for key in keys if key in self._pieces])
        for number, key in enumerate(keys):
            if key not in self._pieces:
                start = number * PREFIX_TOKENS
                self._pieces[key] = self._place().copy_(content[:, :, :, start : start + PREFIX_TOKENS])
        self._touch(keys)

    def clear(self) -> None:
        self._free += self._pieces.values()
        self._pieces.clear()

    def _place(self) -> Tensor:
        """Room for one more piece: that of the least used one when all are taken."""
        if len(self._pieces) == self._most:
            return self._pieces.popitem(last=False)[1]
        if not self._free:
            count = max(1, SLAB_BYTES // (PREFIX_TOKENS * self._shape.token_bytes))
            self._free += self._shape.empty(min(count, self._most - len(self._pieces)), PREFIX_TOKENS).unbind(2)
        return self._free.pop()

    def _known(self, adapter: str, tokens: Sequence[int]) -> list[bytes]:
        return list(itertools.takewhile(self._pieces.__contains__, self._keys(adapter, tokens[:-1])))

    def _touch(self, keys: list[bytes]) -> None:
        """Mark as used, the beginning last: a piece is of no use without those before it."""
        for key in reversed(keys):
            self._pieces.move_to_end(key)

    @staticmethod
    def _keys(adapter: str, tokens: Sequence[int]) -> list[bytes]:
        keys, key = [], adapter.encode()
        for start in range(0, len(tokens) - PREFIX_TOKENS + 1, PREFIX_TOKENS):
            piece = b"".join(token.to_bytes(4, "little") for token in tokens[start : start + PREFIX_TOKENS])
            key = hashlib.blake2b(key + piece, digest_size=16).digest()
            keys.append(key)
        return keys
