"""Tokens of texts from a table of words: 2.1 times as fast as encoding each (`benchmarks/data_prepare.py --parts`).

Texts are cut into words, which are looked up by array operations; unknown words are encoded.

A word is the part of a text up to the next space at which the tokenizer provably splits; with a tokenizer that does not
split at spaces, each text is one word. Words are identified by a 64-bit hash that is exact up to eight bytes. Single
prompts use `ChatTokenizer.encode`, and the data stage compares the two in every block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Encode = Callable[[list[str]], list[list[int]]]
WORD_BYTES = 8
LONGEST = 16 * WORD_BYTES
"""Bytes of the longest word in the table."""
SLOT_BITS = 20
WORD_LIMIT = 600_000
"""Most words in the table; some 30 MB with their tokens."""
_MIX, _LENGTHS = np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)
_SPACE, _FIRST_VISIBLE, _LAST_VISIBLE = 0x20, 0x21, 0x7E
_FIRST_OF_TWO, _LAST_OF_TWO = 0xC3, 0xDF
"""Leading bytes of two-byte characters that are not white space (those that are begin with 0xC2)."""


class _Pool:
    """An array that grows at its end."""

    def __init__(self, kind: str) -> None:
        self._values = np.zeros(1 << 16, dtype=kind)
        self.size = 0

    def extend(self, values: Array) -> None:
        needed = self.size + len(values)
        if needed > len(self._values):
            self._values = np.concatenate([self._values, np.zeros(max(needed, len(self._values)), self._values.dtype)])
        self._values[self.size : needed] = values
        self.size = needed

    def cut(self, size: int) -> None:
        self.size = size

    @property
    def values(self) -> Array:
        return self._values[: self.size]


class WordTable:
    """Words and their tokens, for one tokenizer. `encode` returns the tokens of each of several words."""

    def __init__(self, encode: Encode, *, splits_at_spaces: bool) -> None:
        self._encode, self._splits = encode, splits_at_spaces
        self._keys = np.zeros(1 << SLOT_BITS, dtype=np.uint64)
        self._slots = np.zeros(1 << SLOT_BITS, dtype=np.int32)
        self._tokens, self._starts, self._counts = _Pool("<u4"), _Pool("<i8"), _Pool("<i4")

    def __len__(self) -> int:
        return self._starts.size

    def encode_texts(self, texts: list[str]) -> tuple[Array, Array]:
        """Tokens of all texts in one array, uint32, and the number of tokens of each text, (texts,) int64."""
        parts = [text.encode() for text in texts]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        is_filled = lengths > 0
        if not is_filled.any():
            return np.zeros(0, dtype="<u4"), np.zeros(len(texts), dtype=np.int64)
        data = b"".join(parts)
        begins = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)[:-1]])[is_filled]
        starts = self._cut(data, begins)
        mark = self._mark()
        words = self._look_up(data, starts)
        counts = self._counts.values[words]
        tokens = self._tokens.values[spread(self._starts.values[words], counts)]
        per_text = np.zeros(len(texts), dtype=np.int64)
        per_text[is_filled] = np.add.reduceat(counts, np.searchsorted(starts, begins), dtype=np.int64)
        self._forget(mark)
        return tokens, per_text

    def _cut(self, data: bytes, begins: Array) -> Array:
        """Start of each word: at every text, and at each space after a byte that is surely not white space."""
        if not self._splits:
            return begins
        codes = np.frombuffer(data, dtype=np.uint8)
        is_start = np.zeros(len(codes), dtype=bool)
        before, second = codes[:-1], codes[:-2]
        is_word = (before >= _FIRST_VISIBLE) & (before <= _LAST_VISIBLE)
        is_word[1:] |= (second >= _FIRST_OF_TWO) & (second <= _LAST_OF_TWO)
        is_start[1:] = (codes[1:] == _SPACE) & is_word
        is_start[begins] = True
        return np.flatnonzero(is_start)

    def _look_up(self, data: bytes, starts: Array) -> Array:
        """The index of each word in the table; missing words are added."""
        lengths = np.diff(starts, append=len(data))
        hashes = _hash(data, starts, lengths)
        slots = self._find(hashes)
        is_known = self._keys[slots] == hashes
        is_long = lengths > LONGEST
        words = np.where(is_known & ~is_long, self._slots[slots], -1)
        missing = np.flatnonzero(words < 0)
        if len(missing):
            short = missing[~is_long[missing]]
            _, first, inverse = np.unique(hashes[short], return_index=True, return_inverse=True)
            new = np.concatenate([short[first], missing[is_long[missing]]])
            numbers = self._add([data[starts[at] : starts[at] + lengths[at]].decode() for at in new])
            words[short] = numbers[: len(first)][inverse]
            words[new[len(first) :]] = numbers[len(first) :]
            self._insert(hashes[short[first]], numbers[: len(first)])
        return words

    def _find(self, hashes: Array) -> Array:
        """The slot of each hash: its own, or the empty one for it."""
        low = np.uint64((1 << SLOT_BITS) - 1)
        slots = (hashes & low).astype(np.int64)
        open_ = np.flatnonzero((self._keys[slots] != hashes) & (self._keys[slots] != 0))
        while len(open_):
            slots[open_] = (slots[open_] + 1) & int(low)
            keys = self._keys[slots[open_]]
            open_ = open_[(keys != hashes[open_]) & (keys != 0)]
        return slots

    def _add(self, words: list[str]) -> Array:
        """Indices of new words, whose tokens are now at the ends of the pools."""
        encoded = self._encode(words)
        counts = np.array([len(ids) for ids in encoded], dtype=np.int64)
        first = self._starts.size
        self._starts.extend(self._tokens.size + np.cumsum(counts) - counts)
        self._counts.extend(counts)
        self._tokens.extend(np.array([number for ids in encoded for number in ids], dtype="<u4"))
        return np.arange(first, first + len(words))

    def _insert(self, hashes: Array, numbers: Array) -> None:
        """Add words one by one; slots shift as the table fills."""
        mask = (1 << SLOT_BITS) - 1
        for key, number in zip(hashes.tolist(), numbers.tolist(), strict=True):
            if number >= WORD_LIMIT:
                return
            slot = key & mask
            while self._keys[slot]:
                slot = (slot + 1) & mask
            self._keys[slot], self._slots[slot] = key, number

    def _mark(self) -> tuple[int, int]:
        return self._starts.size, self._tokens.size

    def _forget(self, mark: tuple[int, int]) -> None:
        """Remove the words of this call if the table was full."""
        words, tokens = mark
        if words >= WORD_LIMIT:
            self._starts.cut(words)
            self._counts.cut(words)
            self._tokens.cut(tokens)


def spread(starts: Array, counts: Array) -> Array:
    """Indices of consecutive ranges: starts[0], starts[0] + 1, … for counts[0], then the next."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def _hash(data: bytes, starts: Array, lengths: Array) -> Array:
    """A hash per word, never 0; for words longer than LONGEST only of the beginning."""
    padded = np.frombuffer(data + b"\0" * LONGEST, dtype=np.uint8)
    eights = np.lib.stride_tricks.as_strided(padded.view(np.uint8), (len(data) + 1, 8), (1, 1))
    hashes = lengths.astype(np.uint64) * _LENGTHS
    active, at, left = np.arange(len(starts)), starts, lengths
    for _ in range(LONGEST // WORD_BYTES):
        loaded = np.ascontiguousarray(eights[at]).view("<u8")[:, 0] & _MASKS[np.minimum(left, 8)]
        mixed = (hashes[active] ^ loaded) * _MIX
        hashes[active] = mixed ^ (mixed >> np.uint64(29))
        more = left > 8
        if not more.any():
            break
        active, at, left = active[more], at[more] + 8, left[more] - 8
    hashes[hashes == 0] = 1
    return hashes
