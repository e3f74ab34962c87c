"""Equal rows, nearly equal rows, and rows of one dataset that are also in another.

Equal rows are found by a hash of their tokens. Near duplicates are found by MinHash over runs of tokens, in bounded
memory: candidates share a band of their signature, and every reported pair was compared token by token. Runs that occur
in many rows (templates, instructions) are excluded, so rows are compared by their own content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sarto.engine.dataset.token_store import TokenStore
from sarto.engine.dataset.tokenise import offsets

Array = np.ndarray[Any, np.dtype[Any]]
RUN = 4
"""Tokens of a run."""
BANDS, ROWS_PER_BAND = 3, 3
NEAR = 0.8
"""Share of common runs from which two rows are near duplicates."""
LIKELY = 6
"""Equal hashes of two signatures from which two rows are compared token by token."""
STRETCH = 4096
COMMON_SHARE, COMMON_BITS, FEWEST_ROWS = 0.05, 20, 40
"""A run in more than this share of a first sample of rows is common. In fewer rows than the last value no run is."""
MOST_PAIRS = 10_000
SHOWN = 20
_MIX = np.uint64(0x9E3779B97F4A7C15)
_EMPTY = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class Duplicates:
    """`groups` are lists of lines, the first few; counts are of all rows that repeat an earlier one."""

    exact_count: int
    exact_groups: list[list[int]]
    same_prompt_count: int
    """Rows whose prompt an earlier row has with another reply."""
    same_prompt_groups: list[list[int]]
    near_count: int
    near_pairs: list[tuple[int, int, float]] = field(default_factory=list)
    """(line, earlier line, share of common runs)."""
    near_is_complete: bool = True
    """False when there were too many candidates, so that only the first were compared."""


def find_duplicates(store: TokenStore) -> Duplicates:
    rows, prompts, lines = _row_hashes(store), _first(store, "prompt_hash"), _first(store, "lines")
    exact_count, exact_groups = _groups(rows, lines)
    _, first_of_row = np.unique(rows, return_index=True)
    first_of_row.sort()
    same_prompt_count, same_prompt_groups = _groups(prompts[first_of_row], lines[first_of_row])
    pairs, is_complete = near_pairs(store)
    shown = [(store.line(a), store.line(b), round(share, 3)) for a, b, share in pairs[:SHOWN]]
    near = len({a for a, _, _ in pairs})
    return Duplicates(exact_count, exact_groups, same_prompt_count, same_prompt_groups, near, shown, is_complete)


def _first(store: TokenStore, column: str) -> Array:
    """The column at the first example of each line, which is the preferred one of a pair."""
    values: Array = store.columns[column][:: 2 if store.holds_pairs else 1]
    return values


def _row_hashes(store: TokenStore) -> Array:
    """The hash of each line; that of a pair covers both completions."""
    hashes = store.columns["row_hash"]
    if not store.holds_pairs:
        return hashes
    both: Array = (hashes[::2] * _MIX) ^ hashes[1::2]
    return both


@dataclass(frozen=True)
class Overlap:
    """Validation rows that are also in the training data. Their loss is no measure of generalisation."""

    same_rows: int
    same_prompts: int
    """Rows whose prompt is in both, with any reply; includes `same_rows`."""
    lines: list[int]
    """The first of these lines in the validation file."""


def find_overlap(training: TokenStore, validation: TokenStore) -> Overlap:
    rows = np.isin(_row_hashes(validation), _row_hashes(training))
    prompts = np.isin(_first(validation, "prompt_hash"), _first(training, "prompt_hash"))
    lines = _first(validation, "lines")[prompts][:SHOWN]
    return Overlap(int(rows.sum()), int(prompts.sum()), [int(line) for line in lines])


def _groups(hashes: Array, lines: Array) -> tuple[int, list[list[int]]]:
    """The number of rows that repeat an earlier one, and the first groups of equal lines."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    groups = []
    if len(repeated):
        members = np.flatnonzero(counts[inverse] > 1)
        order = members[np.argsort(inverse[members], kind="stable")]
        starts = np.flatnonzero(np.diff(inverse[order], prepend=-1))
        parts = np.split(lines[order], starts[1:])
        groups = [[int(line) for line in part[:SHOWN]] for part in parts[:SHOWN]]
    return int((counts[repeated] - 1).sum()), groups


def near_pairs(store: TokenStore) -> tuple[list[tuple[int, int, float]], bool]:
    """(row, earlier row, share of common runs) of near but unequal rows, and whether all candidates were compared."""
    _, first = np.unique(_row_hashes(store), return_index=True)
    ends = np.cumsum(store.columns["entries"], dtype=np.int64)[:: 2 if store.holds_pairs else 1]
    rows = np.sort(ends[first] - 1)  # the last token row of each example, of a pair that of the preferred one
    if len(rows) < 2:
        return [], True
    common = _common_runs(store)
    signatures = _signatures(store, common)[:, rows]  # (hashes, examples)
    candidates = _candidates(signatures)
    pairs = []
    for later, earlier in candidates[:MOST_PAIRS]:
        share = _share(store, int(rows[earlier]), int(rows[later]), common)
        if share >= NEAR:
            pairs.append((int(rows[later]), int(rows[earlier]), share))
    return sorted(pairs), len(candidates) <= MOST_PAIRS


def _candidates(signatures: Array) -> Array:
    """Pairs of examples that share a band and most of their signatures: (pairs, 2), the later one first."""
    pairs = []
    for number in range(BANDS):
        band = np.zeros(signatures.shape[1], dtype=np.uint64)
        for row in signatures[number * ROWS_PER_BAND : (number + 1) * ROWS_PER_BAND]:
            band = (band ^ row) * _MIX
        order = np.argsort(band, kind="stable")
        same = np.flatnonzero(band[order][1:] == band[order][:-1])
        pairs.append(np.stack([order[same + 1], order[same]], axis=1))
    every = np.concatenate(pairs)
    agreeing = (signatures[:, every[:, 0]] == signatures[:, every[:, 1]]).sum(axis=0)
    has_runs = signatures[0, every[:, 0]] != _EMPTY
    return np.unique(every[(agreeing >= LIKELY) & has_runs], axis=0)


def _runs(tokens: Array) -> Array:
    """A hash of the RUN tokens from each position but the last few: (T - RUN + 1,) uint64."""
    wide = tokens.astype(np.uint64) + np.uint64(1)
    count = max(0, len(wide) - RUN + 1)
    mixed = wide[:count].copy()
    for step in range(1, RUN):
        mixed *= _MIX
        mixed ^= mixed >> np.uint64(29)
        mixed += wide[step : step + count]
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _common_runs(store: TokenStore) -> Array:
    """A table of bits, indexed by the low bits of a run's hash: true if the run occurs in many rows of a first
    sample."""
    table = np.zeros(1 << COMMON_BITS, dtype=bool)
    if len(store) >= FEWEST_ROWS:
        _, tokens, lengths = next(store.stretches(STRETCH))
        values, counts = np.unique(_runs(tokens), return_counts=True)
        table[_low(values[counts > max(2, COMMON_SHARE * len(lengths))])] = True
    return table


def _low(runs: Array) -> Array:
    return runs & np.uint64((1 << COMMON_BITS) - 1)


def _signatures(store: TokenStore, common: Array) -> Array:
    """MinHash of each row's own runs: (hashes, rows) uint32; all _EMPTY if a row has no run of its own."""
    seeds = np.random.Generator(np.random.PCG64(7)).integers(1, 2**32, BANDS * ROWS_PER_BAND, dtype=np.uint32) | 1
    signatures = np.full((len(seeds), len(store)), _EMPTY, dtype=np.uint32)
    for first, tokens, lengths in store.stretches(STRETCH):
        runs = _runs(tokens)
        is_own = np.zeros(len(tokens), dtype=np.int32)
        is_own[: len(runs)] = ~common[_low(runs)]
        ends = offsets(lengths)
        for step in range(1, RUN):  # runs that reach into the next row
            is_own[np.maximum(ends[1:] - step, ends[:-1])] = 0
        counts = np.add.reduceat(is_own, ends[:-1])
        own = (runs[is_own[: len(runs)].astype(bool)] >> np.uint64(32)).astype(np.uint32)
        filled = np.flatnonzero(counts)
        starts = offsets(counts[filled])[:-1]
        if len(filled) == 0:
            continue
        for number, seed in enumerate(seeds):
            signatures[number, first + filled] = np.minimum.reduceat(own * seed, starts)
    return signatures


def _share(store: TokenStore, earlier: int, later: int, common: Array) -> float:
    """Common runs over all runs of both, without runs that many rows have."""
    runs = [_runs(store.tokens(index)) for index in (earlier, later)]
    one, other = (set(each[~common[_low(each)]].tolist()) for each in runs)
    return len(one & other) / max(1, len(one | other))
