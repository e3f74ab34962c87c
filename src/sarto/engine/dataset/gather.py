"""Join many open rows into one array of tokens with spans and hashes, by array operations. Pure; it works on blocks of
rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sarto.engine.rendering.render import OpenRow
from sarto.engine.rendering.tokenizer import unpack
from sarto.engine.rendering.word_table import WordTable, spread

Array = np.ndarray[Any, np.dtype[Any]]
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class TokenRows:
    """Rows in one array, one after the other. `spans` are (start, end) pairs of token positions inside their row."""

    tokens: Array
    """(all tokens,) uint32"""
    lengths: Array
    """(rows,) int64"""
    span_counts: Array
    spans: Array
    """(all spans, 2) int64"""
    learned: Array
    """(rows,) number of tokens with loss"""
    prompt_hash: Array
    """(rows,) uint64, hash of the tokens before the last span; of all tokens where there is none"""
    row_hash: Array


def gather(rows: list[OpenRow], table: WordTable) -> TokenRows:
    """Encode all rows. Each row has at least one learned piece."""
    texts: list[str] = []
    constants: dict[bytes, int] = {}
    kinds: list[int] = []  # of each part: the number of its constant, or -1 for the next text
    piece_parts: list[int] = []
    piece_learned: list[bool] = []
    for row in rows:
        for parts, learned in row:
            for part in parts:
                if isinstance(part, str):
                    texts.append(part)
                    kinds.append(-1)
                else:
                    kinds.append(constants.setdefault(part, len(constants)))
            piece_parts.append(len(parts))
            piece_learned.append(learned)
    tokens, part_ends = _concatenate(texts, list(constants), np.array(kinds, dtype=np.int64), table)
    edges = np.concatenate([np.zeros(1, dtype=np.int64), part_ends])
    piece_ends = edges[np.cumsum(np.array(piece_parts, dtype=np.int64))]
    piece_starts = np.concatenate([np.zeros(1, dtype=np.int64), piece_ends[:-1]])
    pieces = np.array([len(row) for row in rows], dtype=np.int64)
    last_piece = np.cumsum(pieces) - 1
    row_starts = piece_starts[last_piece - pieces + 1]
    row_ends = piece_ends[last_piece]
    is_learned = np.array(piece_learned, dtype=bool)
    row_of_span = np.repeat(np.arange(len(rows)), pieces)[is_learned]
    spans = np.stack([piece_starts[is_learned], piece_ends[is_learned]], axis=1)
    span_counts = np.bincount(row_of_span, minlength=len(rows))
    learned_counts = np.bincount(row_of_span, weights=spans[:, 1] - spans[:, 0], minlength=len(rows)).astype(np.int64)
    reply_starts, has_reply = row_ends.copy(), span_counts > 0
    reply_starts[has_reply] = spans[np.cumsum(span_counts)[has_reply] - 1, 0]
    sums = _position_sums(tokens, row_starts, row_ends - row_starts)
    return TokenRows(
        tokens=tokens,
        lengths=row_ends - row_starts,
        span_counts=span_counts,
        spans=spans - row_starts[row_of_span, None],
        learned=learned_counts,
        prompt_hash=sums[reply_starts] - sums[row_starts],
        row_hash=sums[row_ends] - sums[row_starts],
    )


def _concatenate(texts: list[str], constants: list[bytes], kinds: Array, table: WordTable) -> tuple[Array, Array]:
    """The tokens of all parts in one array, and the end of each part."""
    encoded, text_counts = table.encode_texts(texts)
    constant_counts = np.array([len(constant) // 4 for constant in constants], dtype=np.int64)
    source = np.concatenate([encoded, unpack(b"".join(constants))])
    is_text = kinds < 0
    counts, starts = np.empty(len(kinds), dtype=np.int64), np.empty(len(kinds), dtype=np.int64)
    counts[is_text] = text_counts
    starts[is_text] = np.cumsum(text_counts) - text_counts
    numbers = kinds[~is_text]
    counts[~is_text] = constant_counts[numbers]
    starts[~is_text] = len(encoded) + (np.cumsum(constant_counts) - constant_counts)[numbers]
    return source[spread(starts, counts)], np.cumsum(counts)


def _position_sums(tokens: Array, row_starts: Array, lengths: Array) -> Array:
    """Running sums of a hash of each token and its position in its row: (tokens + 1,) uint64. A difference of two sums
    identifies the tokens between them and their order."""
    places = (np.arange(len(tokens)) - np.repeat(row_starts, lengths)).astype(np.uint64)
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * _ODD[0] + places * _ODD[1]
    mixed ^= mixed >> np.uint64(30)
    mixed *= _ODD[2]
    mixed ^= mixed >> np.uint64(27)
    mixed *= _ODD[1]
    mixed ^= mixed >> np.uint64(31)
    sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
    np.cumsum(mixed, out=sums[1:])
    return sums
