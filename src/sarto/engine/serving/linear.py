"""Products with the frozen weights and the low-rank terms of adapters: the seam, and its implementation in torch.

`ServingProducts` is the seam (linear_panels.py has the faster twin). `AdapterPool` holds all resident adapters of one
rank class, so that each row of a batch selects its own by index. `RowAdapters` is one step's selection, an argument of
the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engine.models.decoder import GROUPS, Adapters, Decoder, Group, Projection
from sarto.engine.ops.lora_rows import compiled_rows
from sarto.engine.ops.operands import whole

_pack = torch.ops.mkldnn._reorder_linear_weight
_packed_product = torch.ops.mkldnn._linear_pointwise
_packed_sum = torch.ops.mkldnn._linear_pointwise.binary
_bag = torch.ops.aten._embedding_bag_forward_only
PACK_ROWS = 8
"""Number of rows for which the packed layout is tuned: a decode batch. It does not slow prompts."""
LEAST_ROWS = 4
"""In float32 a product of fewer rows adds in another order; padding to this many keeps results independent of the rest
of the batch. In bfloat16 any number of rows gives the same bits."""


class RestorableMatrix(Protocol):
    """A matrix in a layout of serving, from which the original can be restored."""

    def plain(self) -> Tensor: ...


Matrix = TypeVar("Matrix", bound=RestorableMatrix)


class ServingProducts(Protocol):
    """x → x W^T + bias + terms for every matrix of a decoder. It removes the decoder's plain weights once it has its
    own."""

    def give_back(self, decoder: Decoder) -> None:
        """Restore the plain weights in the decoder, bit for bit; this object is unusable afterwards."""
        ...

    def layouts(self, rank: int) -> dict[Group, Layout]:
        """Layout of adapters of a rank class in a pool."""
        ...

    def arranged(self, group: Group, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """A (inputs, projections · R) and B (blocks · R, width), with the scale in B, in the layout of a pool."""
        ...

    def adapters(
        self, rows: Sequence[Choice], chunks: Sequence[tuple[int, Choice]], last_rows: Sequence[Choice]
    ) -> Adapters:
        """The adapters of a step over rows of one token, then chunks of (length, choice); `last_rows` go past the last
        attention."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) → (R, V) float32."""
        ...


class Products:
    """The seam in torch, with weights packed for this processor if that is faster."""

    def __init__(self, decoder: Decoder) -> None:
        make = product_in_torch(decoder.dtype, decoder.device)
        self.shapes = group_shapes(decoder)
        self.parts = {g: torch.tensor(shape.parts, device=decoder.device) for g, shape in self.shapes.items()}
        self.last_layer = decoder.config.layers - 1
        self._head = make(decoder.head, None)
        self._plan = lru_cache(maxsize=8)(self._planned)
        self._layers: list[dict[Group, PackedProduct | _PlainProduct]] = []
        take_weights(decoder, self._layers, make)

    def give_back(self, decoder: Decoder) -> None:
        return_weights(decoder, self._layers)

    def layouts(self, rank: int) -> dict[Group, Layout]:
        return {
            group: ((s.inputs, s.projections * rank), (len(s.parts) * rank, s.width))
            for group, s in self.shapes.items()
        }

    def arranged(self, group: Group, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, b

    def adapters(
        self, rows: Sequence[Choice], chunks: Sequence[tuple[int, Choice]], last_rows: Sequence[Choice]
    ) -> Adapters:
        parts, first = [], len(rows)
        for length, choice in chunks:
            if choice is not None:
                parts.append((first, length, *choice))
            first += length
        return RowAdapters(self, self._plan(tuple(rows)), tuple(parts), self._plan(tuple(last_rows)))

    def project(self, layer: int, group: Group, x: Tensor, terms: Tensor | None) -> Tensor:
        return self._layers[layer][group](x, terms)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden, None).float()

    def _planned(self, choices: tuple[Choice, ...]) -> tuple[BagIndices, ...]:
        """Index lists by which rows of single tokens select their adapters, one entry for each pool in use."""
        pools = {choice[0] for choice in choices if choice is not None}
        return tuple(_bags(pool, self, choices) for pool in sorted(pools, key=lambda pool: pool.rank))


class _PlainProduct:
    """A product with weights as they are: x (n, inputs) and terms to add (n, outputs) or None, to (n, outputs).

    Terms are added before the sum is rounded, as in training. Added to a rounded product, they would make an adapter's
    responses many times less exact."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self._bias = weight, bias

    def __call__(self, x: Tensor, terms: Tensor | None) -> Tensor:
        if terms is None:
            return F.linear(x, self.weight, self._bias)
        return torch.addmm(terms if self._bias is None else terms + self._bias, x, self.weight.t())

    def plain(self) -> Tensor:
        return self.weight.detach()  # a module takes a parameter for one of its own


class PackedProduct:
    """The same with weights in this processor's fastest layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self._bias = _pack(weight.contiguous(), PACK_ROWS), bias
        self._least_rows = LEAST_ROWS if weight.dtype == torch.float32 else 1

    def __call__(self, x: Tensor, terms: Tensor | None) -> Tensor:
        rows = len(x)
        if rows < self._least_rows:
            padding = (0, 0, 0, self._least_rows - rows)
            x, terms = F.pad(x, padding), None if terms is None else F.pad(terms, padding)
        if terms is None:
            product: Tensor = _packed_product(x, self.weight, self._bias, "none", [], "")
        else:
            product = _packed_sum(x, terms, self.weight, self._bias, "add")
        return product[:rows]

    def plain(self) -> Tensor:
        dense: Tensor = self.weight.to_dense()
        return dense


def product_in_torch(dtype: torch.dtype, device: torch.device) -> type[PackedProduct | _PlainProduct]:
    """Packed if that is faster; oneDNN refuses bfloat16 below AVX-512."""
    fits = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return PackedProduct if device.type == "cpu" and torch.backends.mkldnn.is_available() and fits else _PlainProduct


def take_weights(
    decoder: Decoder,
    layers: list[dict[Group, Matrix]],
    make: Callable[[Tensor, Tensor | None], Matrix],
) -> None:
    """Fill `layers` with every matrix in another layout, one after the other, so that the weights are never in memory
    twice. After an error the decoder is unchanged."""
    try:
        for index in range(decoder.config.layers):
            layers.append({})
            for group in GROUPS:
                projection = decoder.layer(index).projection(group)
                layers[index][group] = make(projection.weight, projection.bias)
                projection.weight = projection.weight.new_empty(0, projection.inputs)
    except BaseException:
        return_weights(decoder, layers)
        raise


def return_weights(decoder: Decoder, layers: list[dict[Group, Matrix]]) -> None:
    """Empty `layers` and restore each matrix in its plain layout to the decoder."""
    with torch.inference_mode(False):  # they are trained through again
        for index, row in enumerate(layers):
            for group in list(row):
                decoder.layer(index).projection(group).weight = row.pop(group).plain()


@dataclass(frozen=True)
class GroupShape:
    """One group of projections cut into `blocks` of equal width, so that grouped heads need no ragged products."""

    inputs: int
    width: int
    parts: tuple[int, ...]
    """The projection of each block in the group."""

    @classmethod
    def of(cls, projection: Projection) -> GroupShape:
        width = math.gcd(*projection.cuts)
        parts = tuple(part for part, cut in enumerate(projection.cuts) for _ in range(cut // width))
        return cls(projection.inputs, width, parts)

    @property
    def projections(self) -> int:
        return max(self.parts) + 1


def group_shapes(decoder: Decoder) -> dict[Group, GroupShape]:
    return {group: GroupShape.of(decoder.layer(0).projection(group)) for group in GROUPS}


def bytes_of_adapter(decoder: Decoder, rank: int) -> int:
    """Memory of one resident adapter on all projections."""
    shapes = group_shapes(decoder).values()
    numbers = sum((s.inputs * s.projections + len(s.parts) * s.width) * rank for s in shapes)
    return numbers * decoder.config.layers * decoder.dtype.itemsize


@dataclass(frozen=True)
class Adapter:
    """A and B of one adapter, per layer and group, padded to its rank class in the layout of a pool."""

    rank: int
    terms: list[dict[Group, tuple[Tensor, Tensor]]]


Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shapes of one adapter's A and B in a pool."""


class AdapterPool:
    """Slots for adapters of one rank class; all their A of a group are in one tensor, all their B in another."""

    def __init__(self, layouts: dict[Group, Layout], like: Tensor, layers: int, rank: int, slots: int) -> None:
        self.rank, self.slots = rank, slots
        self._terms: list[dict[Group, tuple[Tensor, Tensor]]] = [
            {group: (like.new_zeros(slots, *a), like.new_zeros(slots, *b)) for group, (a, b) in layouts.items()}
            for _ in range(layers)
        ]

    def put(self, slot: int, adapter: Adapter) -> None:
        for pool, terms in zip(self._terms, adapter.terms, strict=True):
            for group, (a, b) in terms.items():
                pool[group][0][slot] = a
                pool[group][1][slot] = b

    def wipe(self, slot: int) -> None:
        for row in self._terms:
            for a, b in row.values():
                a[slot].zero_()
                b[slot].zero_()

    def grow(self, slots: int) -> None:
        for row in self._terms:
            for group, (a, b) in row.items():
                row[group] = (_longer(a, slots), _longer(b, slots))
        self.slots = slots

    def matrices(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        return self._terms[layer][group]


def _longer(tensor: Tensor, slots: int) -> Tensor:
    longer = tensor.new_zeros((slots, *tensor.shape[1:]))
    longer[: len(tensor)] = tensor
    return longer


Choice = tuple[AdapterPool, int] | None
"""Pool and slot of a row's adapter; None is the base."""


@dataclass(frozen=True)
class BagIndices:
    """Index lists of the rows that use one pool, per group: weights of A, then of B, with the offsets of each row."""

    pool: AdapterPool
    slots: Tensor
    """Slot of each row's adapter, -1 if it is not in this pool: (n,) int32."""
    rows: Tensor | None
    """Rows with an adapter of this pool; None for all rows."""
    lists: dict[Group, tuple[Tensor, Tensor, Tensor, Tensor]]
    """Empty with the compiled twin, which uses `slots`."""


def _bags(pool: AdapterPool, products: Products, choices: tuple[Choice, ...]) -> BagIndices:
    device = products.parts["o"].device
    indices = [choice[1] if choice is not None and choice[0] is pool else -1 for choice in choices]
    all_slots = torch.tensor(indices, dtype=torch.int32, device=device)
    if device.type == "cpu" and compiled_rows() is not None:
        return BagIndices(pool, all_slots, None, {})
    mine = torch.nonzero(all_slots >= 0)[:, 0]
    slots, lists = all_slots[mine].long(), {}
    for group, shape in products.shapes.items():
        blocks = slots[:, None] * len(shape.parts) + torch.arange(len(shape.parts), device=device)
        lists[group] = (*_ranges(slots, shape.inputs), *_ranges(blocks.flatten(), pool.rank))
    return BagIndices(pool, all_slots, None if len(mine) == len(choices) else mine, lists)


def _ranges(numbers: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The `length` rows of each numbered range, in order; and the start of each range and the end of the last one."""
    indices = (numbers[:, None] * length + torch.arange(length, device=numbers.device)).flatten().int()
    return indices, torch.arange(len(numbers) + 1, dtype=torch.int32, device=numbers.device) * length


@dataclass(frozen=True)
class RowAdapters:
    """Adapters of one step: `rows` for single tokens, then `chunks` of prompt tokens (first row, length, pool, slot);
    `last_rows` for the rows that go past the last attention."""

    products: Products
    rows: tuple[BagIndices, ...]
    chunks: tuple[tuple[int, int, AdapterPool, int], ...]
    last_rows: tuple[BagIndices, ...]

    def project(self, layer: int, group: Group, x: Tensor, projection: Projection) -> Tensor:
        is_last = layer == self.products.last_layer and group != "qkv"
        rows, chunks = (self.last_rows, ()) if is_last else (self.rows, self.chunks)
        if not rows and not chunks:
            return self.products.project(layer, group, x, None)
        terms = x.new_zeros(len(x), sum(projection.cuts))
        parts = self.products.parts[group]
        for bags in rows:
            _add_rows(bags, parts, layer, group, x, terms)
        for first, length, pool, slot in chunks:
            _add_chunk(pool, slot, parts, layer, group, x[first : first + length], terms[first : first + length])
        return self.products.project(layer, group, x, terms)


def _add_rows(bags: BagIndices, parts: Tensor, layer: int, group: Group, x: Tensor, y: Tensor) -> None:
    """y += B A x, row by row. An embedding bag sums rows of a pool with given weights: gather and multiply in one
    kernel."""
    (a, b), rank, compiled = bags.pool.matrices(layer, group), bags.pool.rank, compiled_rows()
    if not bags.lists and compiled is not None:
        compiled.lora(x, bags.slots, parts, a, b, rank, y)
        return
    indices_a, offsets_a, indices_b, offsets_b = bags.lists[group]
    count = len(offsets_a) - 1
    mine = x[:count] if bags.rows is None else x[bags.rows]
    h = _bag(a.flatten(0, 1), indices_a, offsets_a, False, 0, False, mine.reshape(-1), True)[0]
    if len(parts) > 1:
        h = h.view(count, -1, rank)[:, parts]  # (n, blocks, R)
    z = _bag(b.flatten(0, 1), indices_b, offsets_b, False, 0, False, h.reshape(-1), True)[0].view(count, -1)
    if bags.rows is None:
        y[:count].add_(z)
    else:
        y.index_add_(0, bags.rows, z)


def _add_chunk(pool: AdapterPool, slot: int, parts: Tensor, layer: int, group: Group, x: Tensor, y: Tensor) -> None:
    """y += B A x for tokens with a common adapter."""
    a, b = pool.matrices(layer, group)
    h = torch.mm(x, a[slot]).view(len(x), -1, pool.rank)[:, parts]  # (t, blocks, R)
    z = torch.bmm(whole(h.transpose(0, 1)), b[slot].view(len(parts), pool.rank, -1))  # (blocks, t, width)
    y.view(len(x), len(parts), -1).add_(z.transpose(0, 1))
