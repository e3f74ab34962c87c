"""The planner: examples of one optimiser step become packed batches, for every device alike.

Tokens after the last supervised one are dropped, equal prefixes are computed once, whole examples are packed to a token
budget, attention stays strictly inside each example, and only supervised positions are asked for logits. There is no
padding in a batch; grids (where attention looks up its rows) are padded a little so that products can be stacked.
Knows no model and no files. Used by training and by the validation pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GRID_WASTE = 1.15
"""A grid may hold this many times the cells its sequences need before it is split by length."""
GRID_STEP = 16
"""Grid lengths are multiples of this, so that products of different steps have few different shapes."""


@dataclass(frozen=True)
class Tokenized:
    """One example as it is planned: `line` names it in messages."""

    tokens: npt.NDArray[np.uint32]
    loss_mask: npt.NDArray[np.bool_]
    line: int


@dataclass(frozen=True)
class Batch:
    """Packed rows: T tokens, of which R are asked for P targets (a shared row may have several)."""

    tokens: Tensor
    """(T,) int64"""
    positions: Tensor
    """(T,) int64: the place of each row in its sequence."""
    grids: tuple[Tensor, ...]
    """Each (B, L) int64: the rows of B sequences in order, -1 behind their ends."""
    rows: Tensor
    """(R,) int64, ascending: rows whose next token is supervised."""
    picks: Tensor
    """(P,) int64 into `rows`, one for each target."""
    targets: Tensor
    """(P,) int64"""
    lines: tuple[int, ...]
    rendered_tokens: int
    """Tokens of the examples as rendered: dropped tails and shared prefixes counted every time."""

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device) for name in ("tokens", "positions", "rows", "picks", "targets")}
        return Batch(**moved, grids=tuple(g.to(device) for g in self.grids), lines=self.lines,
                     rendered_tokens=self.rendered_tokens)  # fmt: skip


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the examples in one epoch; a pure function, so that a resumed run needs no generator state."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def plan(examples: Sequence[Tokenized], token_budget: int, *, share_prefixes: bool = True) -> list[Batch]:
    """Batches of at most `token_budget` rows each (an example longer than that is a batch of its own).

    The sum of their gradients is the gradient of the step, however it is cut. Examples that supervise nothing are left
    out.
    """
    used = [_Row.of(example) for example in examples if example.loss_mask[1:].any()]
    used.sort(key=lambda row: row.key)
    return [_pack(part, share_prefixes) for part in _cut(used, token_budget, share_prefixes)]


def shares(examples: Sequence[Tokenized], count: int) -> list[list[Tokenized]]:
    """The examples of one step in `count` parts of about as many rows each, for devices that compute side by side.

    Examples that begin alike stay together. A part may be empty; with one part they come as they are."""
    if count == 1:
        return [list(examples)]
    rows = [(_Row.of(example), example) for example in examples if example.loss_mask[1:].any()]
    rows.sort(key=lambda pair: pair[0].key)
    fresh = []
    for index, (row, _) in enumerate(rows):
        fresh.append(len(row.inputs) - (_shared(rows[index - 1][0].inputs, row.inputs) if index else 0))
    parts: list[list[Tokenized]] = [[] for _ in range(count)]
    total, before = sum(fresh), 0
    for (_, example), size in zip(rows, fresh, strict=True):
        middle = before + size / 2
        parts[min(count - 1, int(middle * count / total))].append(example)
        before += size
    return parts


def supervised_count(loss_mask: npt.NDArray[np.bool_]) -> int:
    """Targets of one example; its first token is never one, since nothing comes before it."""
    return int(loss_mask[1:].sum())


@dataclass(frozen=True)
class _Row:
    inputs: npt.NDArray[np.uint32]
    """Everything before the last supervised token, which is a target only."""
    targets: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    """Places in `inputs` whose next token is the target."""
    line: int
    rendered: int
    key: bytes
    """Big-endian tokens: byte order is then the order of a prefix tree."""

    @classmethod
    def of(cls, example: Tokenized) -> _Row:
        supervised = np.flatnonzero(example.loss_mask[1:]) + 1
        inputs = example.tokens[: supervised[-1]]
        targets = example.tokens[supervised].astype(np.int64)
        return cls(inputs, targets, supervised - 1, example.line, len(example.tokens), inputs.astype(">u4").tobytes())


def _shared(left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32]) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    return int(differ.argmax()) if differ.any() else length


def _cut(rows: list[_Row], budget: int, share: bool) -> Iterator[list[_Row]]:
    part: list[_Row] = []
    filled = 0
    for row in rows:
        fresh = len(row.inputs) - (_shared(part[-1].inputs, row.inputs) if part and share else 0)
        if part and filled + fresh > budget:
            yield part
            part, filled, fresh = [], 0, len(row.inputs)
        part.append(row)
        filled += fresh
    if part:
        yield part


def _pack(rows: list[_Row], share: bool) -> Batch:
    """Rows come in prefix-tree order: each shares with the one before all that it shares with any earlier one."""
    tokens: list[npt.NDArray[np.uint32]] = []
    positions: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    count = 0
    for index, row in enumerate(rows):
        common = _shared(rows[index - 1].inputs, row.inputs) if index and share else 0
        fresh = len(row.inputs) - common
        tokens.append(row.inputs[common:])
        positions.append(np.arange(common, common + fresh))
        place = np.arange(count, count + fresh)
        places.append(np.concatenate([places[-1][:common], place]) if common else place)
        count += fresh
    asked = np.concatenate([place[row.at] for place, row in zip(places, rows, strict=True)])
    unique, picks = np.unique(asked, return_inverse=True)
    return Batch(
        tokens=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions=torch.from_numpy(np.concatenate(positions)),
        grids=tuple(_grids(places)),
        rows=torch.from_numpy(unique),
        picks=torch.from_numpy(picks),
        targets=torch.from_numpy(np.concatenate([row.targets for row in rows])),
        lines=tuple(row.line for row in rows),
        rendered_tokens=sum(row.rendered for row in rows),
    )


def _grids(places: list[npt.NDArray[np.int64]]) -> Iterator[Tensor]:
    """Sequences of similar length side by side: (B, L) each, -1 behind the ends."""
    group: list[npt.NDArray[np.int64]] = []
    cells = 0
    for place in sorted(places, key=len):
        if group and (cells + len(place)) * GRID_WASTE < len(place) * (len(group) + 1):
            yield _grid(group)
            group, cells = [], 0
        group.append(place)
        cells += len(place)
    yield _grid(group)


def _grid(group: list[npt.NDArray[np.int64]]) -> Tensor:
    length = -(-len(group[-1]) // GRID_STEP) * GRID_STEP
    grid = np.full((len(group), length), -1, dtype=np.int64)
    for cells, place in zip(grid, group, strict=True):
        cells[: len(place)] = place
    return torch.from_numpy(grid)
