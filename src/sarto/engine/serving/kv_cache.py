"""KV cache: keys and values of running sequences in dense blocks, and of finished prompts for prompts with the same
prefix.

On CPU a batched product over one dense block needs no copies, while pages would be gathered at every layer and step. So
sequences of similar length share a `Lane`, a block as wide as they need, and move to a wider one as they grow. The
width depends only on a sequence's own length. Whether a response depends on other requests is decided by the products
and the attention: `linear_panels.py` guarantees that it does not, torch gives no guarantee.
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

from sarto.engine.models.decoder import DecoderConfig

PREFIX_TOKENS = 32
"""Prompts are cached in pieces of this many tokens."""
SLAB_BYTES = 64 << 20
"""Pieces are stored in slabs of about this size."""


def width_for(tokens: int) -> int:
    """The width of a lane with space for `tokens`: steps of 64 at first, then of about a quarter."""
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
        """Zeros, since masked positions are multiplied by zero weights: (layers, k or v, slots, HK, width, hd).

        On CPU they have their own memory mapping, which is returned to the system with the tensor. In the heap, blocks
        of changing sizes would cause fragmentation, by which the heap grew by half. Raises MemoryError."""
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
    """A block for sequences of one width, which fill slots 0 … count-1 without gaps. All other values are zeros: masked
    positions are multiplied by zero weights, and NaN of a former sequence must not reach another."""

    def __init__(self, shape: CacheShape, width: int, slots: int = 1) -> None:
        self.shape, self.width = shape, width
        self.block = shape.empty(slots, width)
        self.count = 0
        self._views: tuple[int, list[tuple[Tensor, Tensor, Tensor]]] = (0, [])

    def take(self, source: Tensor, tokens: int) -> int:
        """Copy keys and values (layers, 2, HK, ≥ tokens, hd) into a new slot and return its number."""
        slots = self.block.shape[2]
        if self.count == slots:  # doubling: each sequence is copied a constant number of times
            wider = self.shape.empty(2 * slots, self.width)
            wider[:, :, :slots] = self.block
            self._replace(wider)
        self.block[:, :, self.count, :, :tokens] = source[:, :, :, :tokens]
        self.count += 1
        return self.count - 1

    def open(self) -> int:
        """Reserve an empty slot for a sequence whose prompt is still to be computed."""
        return self.take(self.block[:, :, 0], 0)

    def drop(self, slot: int) -> int:
        """Free a slot. The last slot moves into it; returns the former number of that slot."""
        last = self.count - 1
        if slot != last:  # without gaps, one batched product covers all slots in use
            self.block[:, :, slot] = self.block[:, :, last]
        self.block[:, :, last] = 0
        self.count = last
        # Shrinks at a quarter, grows at the whole: sequences that join and leave in turn cause no copy each time.
        if self.block.shape[2] >= 4 * max(last, 1):
            tighter = self.shape.empty(max(1, 2 * last), self.width)
            self._replace(tighter.copy_(self.block[:, :, : tighter.shape[2]]))
        return last

    def content(self, slot: int) -> Tensor:
        """Keys and values of one slot: (layers, 2, HK, width, hd), a view."""
        return self.block[:, :, slot]

    def views(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer: flat rows to write into (2 · slots · HK · width, hd); and keys (n, hd, width) and values (n,
        width, hd) of the slots in use, with n = count · HK."""
        if self._views[0] != self.count:  # every layer needs them at every step
            n = self.count
            rows = [
                (layer.view(-1, self.shape.head_dim), layer[0, :n].flatten(0, 1).mT, layer[1, :n].flatten(0, 1))
                for layer in self.block.unbind(0)
            ]
            self._views = (n, rows)
        return self._views[1]

    def pointers(self, layer: int) -> tuple[int, int]:
        """Addresses of a layer's keys and values, each (slots, HK, width, hd)."""
        step, start = self.block.stride(1) * self.shape.dtype.itemsize, self.block.data_ptr()
        return start + 2 * layer * step, start + (2 * layer + 1) * step

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Rows of the flat view for k, then v, of each (slot, position): (N · 2 · HK,), in the order of qkv."""
        heads, total = self.shape.kv_heads, self.block.shape[2]
        index = torch.arange(2 * heads, device=slots.device)
        block = (index // heads)[None] * total + slots[:, None]  # (N, 2 HK)
        return ((block * heads + (index % heads)[None]) * self.width + positions[:, None]).flatten()

    def _replace(self, block: Tensor) -> None:
        self.block, self._views = block, (0, [])


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens of the common prefix that a cache would keep as whole pieces."""
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return common // PREFIX_TOKENS * PREFIX_TOKENS


class PrefixCache:
    """Keys and values of prompt pieces by their whole prefix, removed by least recent use above `limit` bytes. Pieces
    are stored under a name: the adapter that computed them, and the tenant of the prompt.

    All pieces have one size and are in slabs, which are kept."""

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

    def find(self, name: str, tokens: Sequence[int]) -> list[Tensor]:
        """Pieces (layers, 2, HK, PREFIX_TOKENS, hd) of the longest cached prefix, without the last token: that token
        must be computed for the next one."""
        known = self._known(name, tokens)
        pieces = [self._pieces[key] for key in known]
        self._touch(known)
        self.hit_tokens += len(pieces) * PREFIX_TOKENS
        self.asked_tokens += len(tokens)
        return pieces

    def known_tokens(self, name: str, tokens: Sequence[int]) -> int:
        """Number of prompt tokens that `find` would return."""
        return len(self._known(name, tokens)) * PREFIX_TOKENS

    def keep(self, name: str, tokens: Sequence[int], content: Tensor) -> None:
        """Cache a computed prompt; `content` is (layers, 2, HK, ≥ len(tokens), hd)."""
        keys = self._keys(name, tokens)[: self._most]  # a longer prompt would evict its own first pieces
        # Marked first, so that `_allocate` does not evict them to store the pieces after them.
        self._touch([key for key in keys if key in self._pieces])
        for number, key in enumerate(keys):
            if key not in self._pieces:
                start = number * PREFIX_TOKENS
                self._pieces[key] = self._allocate().copy_(content[:, :, :, start : start + PREFIX_TOKENS])
        self._touch(keys)

    def clear(self) -> None:
        self._free += self._pieces.values()
        self._pieces.clear()

    def _allocate(self) -> Tensor:
        """A place for one more piece; if none is free, that of the least recently used one."""
        if len(self._pieces) == self._most:
            return self._pieces.popitem(last=False)[1]
        if not self._free:
            count = max(1, SLAB_BYTES // (PREFIX_TOKENS * self._shape.token_bytes))
            self._free += self._shape.empty(min(count, self._most - len(self._pieces)), PREFIX_TOKENS).unbind(2)
        return self._free.pop()

    def _known(self, name: str, tokens: Sequence[int]) -> list[bytes]:
        return list(itertools.takewhile(self._pieces.__contains__, self._keys(name, tokens[:-1])))

    def _touch(self, keys: list[bytes]) -> None:
        """Mark as used, the start of the prompt last: a piece is useless without those before it."""
        for key in reversed(keys):
            self._pieces.move_to_end(key)

    @staticmethod
    def _keys(name: str, tokens: Sequence[int]) -> list[bytes]:
        # Each key hashes the one before: keys and values of a token depend on all tokens before it.
        keys, key = [], name.encode()
        for start in range(0, len(tokens) - PREFIX_TOKENS + 1, PREFIX_TOKENS):
            piece = b"".join(token.to_bytes(4, "little") for token in tokens[start : start + PREFIX_TOKENS])
            key = hashlib.blake2b(key + piece, digest_size=16).digest()
            keys.append(key)
        return keys
