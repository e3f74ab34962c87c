"""ROUGE-1 to 9, ROUGE-L and ROUGE-Lsum as F-measures between 0 and 1.

Ours rather than `rouge-score`, because that library (last released 2022) needs a sentence model downloaded at run time
for `splitSummaries`, takes a second to import, and fills a table of m by n Python objects; tests hold ours equal to it.
Words are runs of the letters a to z and digits, as ROUGE defines them: text in other scripts has none and scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sarto.engine.evaluation.porter import stem
from sarto.errors import InvalidArgument
from sarto.schema.evaluation import ROUGE_TYPES

MAX_WORDS = 20_000
"""Longest text that ROUGE-L and ROUGE-Lsum take; their work grows with the product of both lengths."""
_WORD = re.compile(r"[a-z0-9]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")


def rouge(
    prediction: str, reference: str, rouge_type: str, *, use_stemmer: bool = False, split_summaries: bool = False
) -> float:
    """F-measure of one prediction. `split_summaries` breaks both texts into sentences for rougeLsum, which otherwise
    takes one sentence a line. Raises InvalidArgument for an unknown type and for texts that are too long."""
    if rouge_type not in ROUGE_TYPES:
        raise InvalidArgument(f'unknown ROUGE type "{rouge_type}"; use one of {", ".join(sorted(ROUGE_TYPES))}')
    if rouge_type == "rougeLsum":
        ours, theirs = (
            [words(sentence, use_stemmer) for sentence in _sentences(text, split_summaries)]
            for text in (prediction, reference)
        )
        return _summary_score(ours, theirs)
    predicted, wanted = words(prediction, use_stemmer), words(reference, use_stemmer)
    if rouge_type == "rougeL":
        _check_length(predicted, wanted)
        return _f_measure(_lcs_length(predicted, wanted), len(predicted), len(wanted))
    size = int(rouge_type.removeprefix("rouge"))
    grams, wanted_grams = _ngrams(predicted, size), _ngrams(wanted, size)
    return _f_measure((grams & wanted_grams).total(), grams.total(), wanted_grams.total())


def words(text: str, use_stemmer: bool = False) -> list[str]:
    """Lower-case words of a to z and digits; those above three characters stemmed if asked."""
    found: list[str] = _WORD.findall(text.lower())
    return [stem(word) if len(word) > 3 else word for word in found] if use_stemmer else found


def _sentences(text: str, split: bool) -> list[str]:
    lines = text.split("\n")
    return [piece for line in lines for piece in _SENTENCE_END.split(line)] if split else lines


def _ngrams(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def _f_measure(hits: int, predicted: int, wanted: int) -> float:
    """From counts: matched, in the prediction, in the reference."""
    return 2 * hits / (predicted + wanted) if hits else 0.0


def _check_length(*texts: Sequence[str]) -> None:
    longest = max(map(len, texts))
    if longest > MAX_WORDS:
        raise InvalidArgument(
            f"ROUGE-L takes texts up to {MAX_WORDS} words; this one has {longest}; use rouge1 or bleu"
        )


def _places(tokens: Sequence[str]) -> dict[str, int]:
    """Each word as the set of its positions, one bit a position."""
    places: dict[str, int] = {}
    for index, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << index
    return places


def _lcs_rows(rows: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The table of longest common subsequences, a row as one integer: bit j is set where its entry grows at column j.

    Bit-parallel after Crochemore and Hyyrö: a whole row costs a few operations on long integers.
    """
    places, every = _places(columns), (1 << len(columns)) - 1
    row, table = every, [0]
    for token in rows:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & every
        table.append(row ^ every)
    return table


def _lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    places, every = _places(right), (1 << len(right)) - 1
    row = every
    for token in left:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & every
    return (row ^ every).bit_count()


def _lcs_places(wanted: Sequence[str], predicted: Sequence[str]) -> set[int]:
    """Positions in `wanted` of one longest common subsequence: of several the one ROUGE's programs walk to, which
    from the end prefers to drop a word of `wanted`."""
    table = _lcs_rows(wanted, predicted)
    i, j = len(wanted), len(predicted)
    length, found = table[i].bit_count(), set()
    while i > 0 and j > 0 and length:
        if wanted[i - 1] == predicted[j - 1]:
            i, j, length = i - 1, j - 1, length - 1
            found.add(i)
        elif (table[i - 1] & ((1 << j) - 1)).bit_count() == length:
            i -= 1
        else:
            j -= 1
    return found


def _summary_score(predicted: list[list[str]], wanted: list[list[str]]) -> float:
    """Each wanted sentence against the union of what all predicted ones share with it; no word counted twice."""
    left, left_wanted = Counter(word for s in predicted for word in s), Counter(word for s in wanted for word in s)
    sizes = left.total(), left_wanted.total()
    _check_length(*predicted, *wanted)
    hits = 0
    for sentence in wanted:
        union = set[int]().union(*(_lcs_places(sentence, other) for other in predicted))
        for index in sorted(union):
            word = sentence[index]
            if left[word] and left_wanted[word]:
                hits += 1
                left[word] -= 1
                left_wanted[word] -= 1
    return _f_measure(hits, *sizes)
