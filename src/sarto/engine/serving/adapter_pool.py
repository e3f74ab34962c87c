"""The adapters of one base in memory: read from PEFT folders on first use, kept while they serve, and removed by least
recent use when the pool is full. Owned by the engine's thread, except `read`, which is thread-safe."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sarto.engine.models.adapter_shape import AdapterFile
from sarto.engine.models.decoder import GROUPS, Decoder, Group
from sarto.engine.serving.linear import Adapter, AdapterPool, Choice, ServingProducts, group_shapes
from sarto.engine.weights.peft import read_adapter
from sarto.errors import InvalidArgument

RANK_CLASSES = (8, 16, 32, 64, 128, 256)
"""Ranks are rounded up to these, so that adapters of similar rank share a pool."""
FIRST_SLOTS = 4


@dataclass(frozen=True)
class AdapterKey:
    """An adapter by the digest of its bytes, and its folder."""

    digest: str
    folder: str


@dataclass
class AdapterPoolStatus:
    """Metrics of a pool."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    load_seconds: float = 0.0


class ResidentAdapters:
    """At most `limit` adapters of one base at a time."""

    def __init__(self, decoder: Decoder, products: ServingProducts, limit: int) -> None:
        self._decoder, self._products, self._limit = decoder, products, limit
        self._pools: dict[int, AdapterPool] = {}
        self._free: dict[int, list[int]] = {}
        self._resident: OrderedDict[str, tuple[AdapterPool, int]] = OrderedDict()
        self._in_use: Counter[str] = Counter()
        self._unwanted: set[str] = set()
        self.residency = AdapterPoolStatus()

    def __contains__(self, key: AdapterKey) -> bool:
        return key.digest in self._resident

    def __len__(self) -> int:
        return len(self._resident)

    @property
    def in_use(self) -> int:
        return len(self._in_use)

    def read(self, key: AdapterKey) -> Adapter:
        """Read the adapter's terms without making it resident. Raises InvalidArgument if it does not fit the base."""
        return adapter_terms(read_adapter(Path(key.folder)), self._decoder, self._products)

    def acquire(self, key: AdapterKey, staged: Adapter | None) -> Choice:
        """Pin an adapter. If it is not resident, load it (from `staged` if given). None when all slots are in use."""
        if key.digest in self._resident:
            self.residency.hits += 1
        else:
            if not self._make_room():
                return None
            began = time.perf_counter()
            adapter = staged or self.read(key)
            self._resident[key.digest] = self._allocate(adapter)
            self.residency.misses += 1
            self.residency.load_seconds += time.perf_counter() - began
        self._resident.move_to_end(key.digest)  # the order is that of last use: `_make_room` evicts from the front
        self._in_use[key.digest] += 1
        return self._resident[key.digest]

    def release(self, key: AdapterKey) -> None:
        self._in_use[key.digest] -= 1
        if not self._in_use[key.digest]:
            del self._in_use[key.digest]
            if key.digest in self._unwanted:  # `forget` was called while sequences still used it
                self._evict(key.digest)

    def forget(self, digests: frozenset[str]) -> bool:
        """Remove these adapters; those in use when they are released. Returns whether one of them was resident."""
        here = digests & self._resident.keys()
        for digest in here:
            if digest in self._in_use:
                self._unwanted.add(digest)
            else:
                self._evict(digest)
        return bool(here)

    def _evict(self, digest: str) -> None:
        pool, slot = self._resident.pop(digest)
        pool.wipe(slot)  # an adapter whose key refuses must leave memory at once, not when its slot is used again
        self._free[pool.rank].append(slot)
        self._unwanted.discard(digest)
        self.residency.evictions += 1

    def _make_room(self) -> bool:
        if len(self._resident) < self._limit:
            return True
        idle = next((digest for digest in self._resident if digest not in self._in_use), None)
        if idle is None:
            return False
        self._evict(idle)
        return True

    def _allocate(self, adapter: Adapter) -> tuple[AdapterPool, int]:
        rank = adapter.rank
        if rank not in self._pools:
            slots = min(FIRST_SLOTS, self._limit)
            layouts, layers = self._products.layouts(rank), self._decoder.config.layers
            self._pools[rank] = AdapterPool(layouts, self._decoder.embedding, layers, rank, slots)
            self._free[rank] = list(range(slots))
        pool, free = self._pools[rank], self._free[rank]
        if not free:  # doubling: memory follows the adapters in use, and each is copied a constant number of times
            grown = min(2 * pool.slots, self._limit)
            free.extend(range(pool.slots, grown))
            pool.grow(grown)
        slot = free.pop(0)
        pool.put(slot, adapter)
        return pool, slot


def adapter_terms(file: AdapterFile, decoder: Decoder, products: ServingProducts) -> Adapter:
    """PEFT's matrices as one padded pair per layer and group; projections without an adapter get zeros."""
    rank = next((size for size in RANK_CLASSES if size >= file.shape.rank), None)
    if rank is None:
        raise InvalidArgument(
            f"Adapter rank {file.shape.rank} is above {RANK_CLASSES[-1]}, the largest that is served."
        )
    left, shapes = dict(file.tensors), group_shapes(decoder)
    terms: list[dict[Group, tuple[Tensor, Tensor]]] = []
    for layer in range(decoder.config.layers):
        row: dict[Group, tuple[Tensor, Tensor]] = {}
        for group, names in GROUPS.items():
            shape = shapes[group]
            a = torch.zeros(shape.inputs, len(names), rank)
            b = torch.zeros(len(shape.parts), rank, shape.width)
            for part, name in enumerate(names):
                path = f"base_model.model.model.layers.{layer}.{name}"
                low, high = left.pop(f"{path}.lora_A.weight", None), left.pop(f"{path}.lora_B.weight", None)
                if low is None or high is None:
                    continue
                blocks = [block for block, owner in enumerate(shape.parts) if owner == part]
                if low.shape[1] != shape.inputs or high.shape[0] != len(blocks) * shape.width:
                    raise InvalidArgument(f"The adapter does not fit the base: {path} has A {tuple(low.shape)} and "
                                          f"B {tuple(high.shape)}.")  # fmt: skip
                a[:, part, : len(low)] = low.t()
                scaled = (high * file.shape.scale).t()  # (R, outputs); the scale is applied once, not at every product
                b[blocks, : len(low)] = scaled.unflatten(1, (len(blocks), -1)).transpose(0, 1)
            like = decoder.embedding
            row[group] = products.arranged(group, a.flatten(1).to(like), b.flatten(0, 1).to(like))
        terms.append(row)
    if left:  # without this check, projections that the base lacks would be ignored silently
        raise InvalidArgument(f"The adapter has tensors that the base lacks: {', '.join(sorted(left)[:5])}.")
    return Adapter(rank, terms)
