"""The attention pattern of a packed batch: sequences as grids of row numbers, and index lists derived from them.

Knows no model. Built per batch, shared by all layers and by every set of operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

QUERY_BLOCK = 96
"""Queries are computed in blocks of about this size, so that most of the upper triangle is skipped."""
SKIP_STEP = 16
"""`Grid.skip` is a multiple of this, so that products of different steps have few different shapes."""


@dataclass(frozen=True)
class Grid:
    """`count` sequences of `length` cells, from cell `at` on."""

    at: int
    count: int
    length: int
    skip: int = 0
    """Queries that each sequence begins with and an earlier grid computes: their rows have a result there."""

    @property
    def cells(self) -> slice:
        return slice(self.at, self.at + self.count * self.length)


@dataclass(frozen=True)
class Block:
    """Queries [first, last) of every sequence of a grid, which see keys [low, last)."""

    first: int
    last: int
    low: int


@dataclass(frozen=True)
class Segments:
    grids: tuple[Grid, ...]
    source: Tensor
    """(C,) int64: the row in each cell. Padding cells have row 0, and their results are not used."""
    first: Tensor
    """(T,) int64: the cell of each row's first use, from which its result is taken (all its uses have the same
    result)."""
    starts: Tensor
    """(T + 1,) int64: the uses of row t are uses[starts[t]:starts[t + 1]]; their gradients add up."""
    uses: Tensor
    """(U,) int64: cells by row. A use before a grid's `skip` is of key and value only."""
    shared: bool
    """Whether a row is used by several sequences."""

    @classmethod
    def of(cls, grids: tuple[Tensor, ...], rows: int) -> Segments:
        source = torch.cat([grid.flatten() for grid in grids])
        used = source.ge(0).nonzero().flatten()
        uses = used[source[used].argsort(stable=True)]
        counts = source[used].bincount(minlength=rows)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        source, first = source.clamp(min=0), uses[starts[:-1]]
        shapes, at = [], 0
        for grid in grids:
            known = first[source[at : at + grid.numel()]].view(grid.shape).lt(at)  # a result of an earlier grid
            skip = int(known.cumprod(1).sum(1).min()) if at else 0
            count, length = grid.shape
            shapes.append(Grid(at, count, length, skip // SKIP_STEP * SKIP_STEP))
            at += grid.numel()
        return cls(tuple(shapes), source, first, starts, uses, len(uses) > rows)


def blocks(length: int, window: int | None, skip: int = 0) -> Iterator[Block]:
    """Blocks of one sequence; together they cover every pair of a causal (and sliding) attention whose query is not
    among the first `skip`."""
    count = max(1, round((length - skip) / QUERY_BLOCK)) if length > skip else 0
    for index in range(count):
        first, last = (skip + (length - skip) * part // count for part in (index, index + 1))
        yield Block(first, last, 0 if window is None else max(0, first - window + 1))


def seen(block: Block, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) of a block: true where the query sees the key."""
    query = torch.arange(block.first, block.last, device=device)[:, None]
    key = torch.arange(block.low, block.last, device=device)[None]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
