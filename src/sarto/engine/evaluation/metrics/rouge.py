"""ROUGE-1 to 9, ROUGE-L and ROUGE-Lsum as F-measures between 0 and 1.

Implemented here because `rouge-score` (last released 2022) downloads a sentence model at run time for `splitSummaries`,
takes a second to import, and fills a table of m by n Python objects. Tests compare both. Words are runs of the letters
a to z and digits, as ROUGE defines them: text in other scripts has none and scores 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from sarto.engine.evaluation.metrics.porter import stem
from sarto.errors import InvalidArgument
from sarto.schema.evaluation import ROUGE_TYPES

MAX_WORDS = 20_000
"""Longest text for ROUGE-L and ROUGE-Lsum; their cost grows with the product of both lengths."""
MAX_CELLS = 4_000_000
"""Most pairs of a predicted and a reference line that ROUGE-Lsum compares."""
_WORD = re.compile(r"[a-z0-9]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")


def rouge(
    prediction: str, reference: str, rouge_type: str, *, use_stemmer: bool = False, split_summaries: bool = False
) -> float:
    """F-measure of one prediction. `split_summaries` splits both texts into sentences for rougeLsum, which otherwise
    has one sentence per line. Raises InvalidArgument for an unknown type and for texts that are too long."""
    if rouge_type not in ROUGE_TYPES:
        raise InvalidArgument(f'Unknown ROUGE type "{rouge_type}"; use one of {", ".join(sorted(ROUGE_TYPES))}.')
    if rouge_type == "rougeLsum":
        ours, theirs = (
            [words(sentence, use_stemmer) for sentence in _sentences(text, split_summaries)]
            for text in (prediction, reference)
        )
        return _summary_score(ours, theirs)
    predicted, expected = words(prediction, use_stemmer), words(reference, use_stemmer)
    if rouge_type == "rougeL":
        _check_length(predicted, expected)
        return _f_measure(_lcs_length(predicted, expected), len(predicted), len(expected))
    size = int(rouge_type.removeprefix("rouge"))
    grams, expected_grams = _ngrams(predicted, size), _ngrams(expected, size)
    return _f_measure((grams & expected_grams).total(), grams.total(), expected_grams.total())


def words(text: str, use_stemmer: bool = False) -> list[str]:
    """Lower-case words of a to z and digits; optionally stemmed above three characters."""
    tokens: list[str] = _WORD.findall(text.lower())
    return [stem(word) if len(word) > 3 else word for word in tokens] if use_stemmer else tokens


def _sentences(text: str, split: bool) -> list[str]:
    lines = text.split("\n")
    return [piece for line in lines for piece in _SENTENCE_END.split(line)] if split else lines


def _ngrams(tokens: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def _f_measure(hits: int, predicted: int, expected: int) -> float:
    """The F-measure of three counts: matched, in the prediction, in the reference."""
    return 2 * hits / (predicted + expected) if hits else 0.0


def _check_length(*texts: Sequence[str]) -> None:
    longest = max(map(len, texts))
    if longest > MAX_WORDS:
        raise InvalidArgument(
            f"ROUGE-L takes texts up to {MAX_WORDS} words; this one has {longest}; use rouge1 or bleu."
        )


def _places(tokens: Sequence[str]) -> dict[str, int]:
    """For each word the set of its positions as an integer, one bit per position."""
    places: dict[str, int] = {}
    for index, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << index
    return places


def _lcs_rows(rows: Sequence[str], columns: Sequence[str]) -> list[int]:
    """The table of longest common subsequences, with each row as one integer: bit j is set if its entry grows at column
    j.

    Bit-parallel after Crochemore and Hyyrö: a whole row costs a few operations on long integers."""
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


def _lcs_places(expected: Sequence[str], predicted: Sequence[str]) -> set[int]:
    """Positions in `expected` of one longest common subsequence. Of several it is the one that ROUGE's programs find,
    which from the end prefer to skip a word of `expected`."""
    table = _lcs_rows(expected, predicted)
    i, j = len(expected), len(predicted)
    length, places = table[i].bit_count(), set()
    while i > 0 and j > 0 and length:
        if expected[i - 1] == predicted[j - 1]:
            i, j, length = i - 1, j - 1, length - 1
            places.add(i)
        elif (table[i - 1] & ((1 << j) - 1)).bit_count() == length:
            i -= 1
        else:
            j -= 1
    return places


def _summary_score(predicted: list[list[str]], expected: list[list[str]]) -> float:
    """Compare each reference sentence with the union of its common words in all predicted ones. No word counts
    twice."""
    left, left_expected = Counter(word for s in predicted for word in s), Counter(word for s in expected for word in s)
    sizes = left.total(), left_expected.total()
    _check_length(*predicted, *expected)
    lines = list(dict.fromkeys(map(tuple, predicted)))  # a repeated line adds nothing
    if len(lines) * len(expected) > MAX_CELLS:
        words = f"{len(lines)} and {len(expected)} lines; the product may be {MAX_CELLS}"
        raise InvalidArgument(f"ROUGE-Lsum compares all lines with each other; these texts have {words}; use rougeL.")
    hits = 0
    for sentence in expected:
        union = set[int]().union(*(_lcs_places(sentence, other) for other in lines))
        for index in sorted(union):
            word = sentence[index]
            if left[word] and left_expected[word]:
                hits += 1
                left[word] -= 1
                left_expected[word] -= 1
    return _f_measure(hits, *sizes)
