"""Packing: the examples of one optimiser step become packed batches, for every device alike.

Tokens after the last supervised one are dropped, equal prefixes are computed once, and whole examples are packed to a
token budget. Attention stays inside each example, and logits are computed for supervised positions only. A batch has no
padding; grids (in which attention finds its rows) have a little, so that products can be stacked. Knows no model and no
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GRID_WASTE = 1.15
"""A grid may have this many times the cells of its sequences before it is split by length."""
LEAST_KNOWN = 128
"""Cells whose queries other sequences compute, below which a grid of their own saves nothing."""
GRID_STEP = 16
"""Grid lengths are multiples of this, so that products of different steps have few different shapes."""


class TokenizedRows(Protocol):
    """Tokenised rows by number; `line` is the row's line in the user's file, `reference` a number that the method keeps
    with the row: the log-probability of its supervised tokens under the initial model, or its place in the values of a
    teacher; 0 where the method does not use it."""

    def __len__(self) -> int: ...
    def tokens(self, index: int) -> npt.NDArray[np.uint32]: ...
    def loss_mask(self, index: int) -> npt.NDArray[np.bool_]: ...
    def line(self, index: int) -> int: ...
    def reference(self, index: int) -> float: ...


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is divided to fit into memory; the gradients do not depend on it."""

    token_budget: int
    """Most packed rows of a batch; a step has as many batches as it needs."""
    keep_attention: bool = True
    """Whether attention weights are kept for the backward pass, or computed again."""
    recompute_layers: bool = False
    """Whether only one tensor per layer is kept and the rest computed again."""


@dataclass(frozen=True)
class TokenizedExample:
    """One example in packing; `line` names it in messages."""

    tokens: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]
    line: int
    reference: float = 0.0
    values: npt.NDArray[np.float64] | None = None
    """A number for each supervised token, of a method that needs them."""


@dataclass(frozen=True)
class Batch:
    """Packed rows: T tokens, of which R have logits for P targets (a shared row may have several)."""

    tokens: Tensor
    """(T,) int64"""
    positions: Tensor
    """(T,) int64: the position of each row in its sequence."""
    grids: tuple[Tensor, ...]
    """Each (B, L) int64: the rows of B sequences in order, -1 after their ends."""
    rows: Tensor
    """(R,) int64, ascending: rows whose next token is supervised."""
    picks: Tensor
    """(P,) int64 into `rows`, one for each target."""
    targets: Tensor
    """(P,) int64: those of each packed row, one row after the other."""
    counts: tuple[int, ...]
    """Targets of each of N packed rows."""
    order: Tensor
    """(N,) int64: the packed rows in the order in which they were given, so that those of one example follow each
    other."""
    numbers: tuple[int, ...]
    """Of the N rows in that order: their places among the rows that were planned."""
    references: Tensor
    """(N,) float64, in that order."""
    values: Tensor
    """(P,) float64: those of the rows, one for each target; 0 for rows without values."""
    lines: tuple[int, ...]
    rendered_tokens: int
    """Tokens of the examples as rendered: dropped tails and shared prefixes count every time."""

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        names = ("tokens", "positions", "rows", "picks", "targets", "order", "references", "values")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, grids=tuple(g.to(device) for g in self.grids))


def take(examples: TokenizedRows, indices: Iterable[int]) -> list[TokenizedExample]:
    return [
        TokenizedExample(examples.tokens(i), examples.loss_mask(i), examples.line(i), examples.reference(i))
        for i in indices
    ]


def rows_of(examples: Iterable[int], per_example: int) -> list[int]:
    """The row numbers of these examples, each of which has `per_example` consecutive rows."""
    return [int(example) * per_example + part for example in examples for part in range(per_example)]


def whole(rows: Iterable[TokenizedExample], per_example: int) -> Iterator[list[TokenizedExample]]:
    """Consecutive rows, grouped by example."""
    left = iter(rows)
    while example := list(islice(left, per_example)):
        yield example


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the examples in one epoch; a pure function, so that a resumed run needs no generator state."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def plan(
    rows: Sequence[TokenizedExample], token_budget: int, *, per_example: int = 1, share_prefixes: bool = True
) -> list[Batch]:
    """Batches of at most `token_budget` tokens each (a longer example is a batch of its own), of whole examples.

    The sum of their gradients is the gradient of the step, for any division. Rows without supervised tokens are
    excluded."""
    used = list(_learning(rows, per_example))
    used.sort(key=lambda example: example[0].key)
    return [_pack(part, share_prefixes) for part in _cut(used, token_budget, share_prefixes)]


def _learning(rows: Iterable[TokenizedExample], per_example: int) -> Iterator[list[_Row]]:
    """The rows with supervised tokens of each example; examples without such rows are excluded."""
    for first, example in enumerate(whole(rows, per_example)):
        learning = [_Row.of(row, first * per_example + at) for at, row in enumerate(example) if row.loss_mask[1:].any()]
        if learning:
            yield learning


def shares(rows: Sequence[TokenizedExample], count: int, per_example: int = 1) -> list[list[TokenizedExample]]:
    """The rows of one step in `count` parts with about the same number of rows, for devices that compute side by side.

    Rows of one example stay together, and so do examples with the same prefix. A part may be empty; with one part the
    order is unchanged."""
    if count == 1:
        return [list(rows)]
    examples = sorted(_learning(rows, per_example), key=lambda example: example[0].key)
    fresh: list[int] = []
    last: _Row | None = None
    for example in examples:
        fresh.append(_fresh(last, example))
        last = example[-1]
    parts: list[list[TokenizedExample]] = [[] for _ in range(count)]
    total, before = sum(fresh), 0
    for example, size in zip(examples, fresh, strict=True):
        middle, first = before + size / 2, example[0].number // per_example * per_example
        parts[min(count - 1, int(middle * count / total))] += rows[first : first + per_example]
        before += size
    return parts


def supervised_count(loss_mask: npt.NDArray[np.bool_]) -> int:
    """Targets of one example; its first token is never one, since no token precedes it."""
    return int(loss_mask[1:].sum())


@dataclass(frozen=True)
class _Row:
    inputs: npt.NDArray[np.uint32]
    """Everything before the last supervised token, which is only a target."""
    targets: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    """Positions in `inputs` whose next token is the target."""
    line: int
    rendered: int
    key: bytes
    """Big-endian tokens: their byte order is the order of a prefix tree."""
    number: int
    """Its place among the rows that are planned."""
    reference: float
    values: npt.NDArray[np.float64]

    @classmethod
    def of(cls, row: TokenizedExample, number: int) -> _Row:
        supervised = np.flatnonzero(row.loss_mask[1:]) + 1
        inputs = row.tokens[: supervised[-1]]
        targets = row.tokens[supervised].astype(np.int64)
        key = inputs.astype(">u4").tobytes()
        values = np.zeros(len(targets)) if row.values is None else row.values
        return cls(inputs, targets, supervised - 1, row.line, len(row.tokens), key, number, row.reference, values)


def _shared(left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32]) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    return int(differ.argmax()) if differ.any() else length


def _fresh(last: _Row | None, example: list[_Row]) -> int:
    """Tokens that an example adds behind a row whose beginning it may share: no fewer than it adds in a batch."""
    size = 0
    for row in example:
        size += len(row.inputs) - (_shared(last.inputs, row.inputs) if last else 0)
        last = row
    return size


def _cut(examples: list[list[_Row]], budget: int, share: bool) -> Iterator[list[_Row]]:
    """The rows of each batch."""
    part: list[_Row] = []
    filled = 0
    for example in examples:
        alone = sum(len(row.inputs) for row in example)
        fresh = _fresh(part[-1] if part else None, example) if share else alone
        if part and filled + fresh > budget:
            yield part
            part, filled, fresh = [], 0, _fresh(None, example) if share else alone
        part += example
        filled += fresh
    if part:
        yield part


def _pack(rows: list[_Row], share: bool) -> Batch:
    """In prefix-tree order, the prefix that a row shares with its predecessor is the longest that it shares with any
    earlier row."""
    rows = sorted(rows, key=lambda row: row.key)
    arrival = sorted(range(len(rows)), key=lambda at: rows[at].number)
    tokens: list[npt.NDArray[np.uint32]] = []
    positions: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    known: list[int] = []
    count = 0
    for index, row in enumerate(rows):
        common = _shared(rows[index - 1].inputs, row.inputs) if index and share else 0
        fresh = len(row.inputs) - common
        tokens.append(row.inputs[common:])
        positions.append(np.arange(common, common + fresh))
        span = np.arange(count, count + fresh)
        places.append(np.concatenate([places[-1][:common], span]) if common else span)
        known.append(common)
        count += fresh
    queries = np.concatenate([span[row.at] for span, row in zip(places, rows, strict=True)])
    unique, picks = np.unique(queries, return_inverse=True)
    return Batch(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions)),
        grids=tuple(_grids(places, known)),
        rows=torch.from_numpy(unique),
        picks=torch.from_numpy(picks),
        targets=torch.from_numpy(np.concatenate([row.targets for row in rows])),
        counts=tuple(len(row.targets) for row in rows),
        order=torch.tensor(arrival),
        numbers=tuple(rows[at].number for at in arrival),
        references=torch.tensor([rows[at].reference for at in arrival], dtype=torch.float64),
        values=torch.from_numpy(np.concatenate([row.values for row in rows])),
        lines=tuple(row.line for row in rows),
        rendered_tokens=sum(row.rendered for row in rows),
    )


def _grids(places: list[npt.NDArray[np.int64]], known: list[int]) -> Iterator[Tensor]:
    """Sequences of similar length side by side: (B, L) each, -1 after the ends. Those that mostly repeat the `known`
    beginning of another come last, in grids of their own: attention skips the queries of that beginning."""
    is_late = [2 * common >= len(positions) for positions, common in zip(places, known, strict=True)]
    if sum(common for common, late in zip(known, is_late, strict=True) if late) < LEAST_KNOWN:
        is_late = [False] * len(places)
    for late in (False, True):
        group: list[npt.NDArray[np.int64]] = []
        cells = 0
        for positions in sorted((one for one, own in zip(places, is_late, strict=True) if own is late), key=len):
            if group and (cells + len(positions)) * GRID_WASTE < len(positions) * (len(group) + 1):
                yield _grid(group)
                group, cells = [], 0
            group.append(positions)
            cells += len(positions)
        if group:
            yield _grid(group)


def _grid(group: list[npt.NDArray[np.int64]]) -> Tensor:
    length = -(-len(group[-1]) // GRID_STEP) * GRID_STEP
    grid = np.full((len(group), length), -1, dtype=np.int64)
    for cells, positions in zip(grid, group, strict=True):
        cells[: len(positions)] = positions
    return torch.from_numpy(grid)
