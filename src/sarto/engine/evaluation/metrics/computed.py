"""METRICS: pure functions from a prediction and a reference to a number between 0 and 1, higher is better.

Knows no rows, no models, no files. BLEU and chrF are sacreBLEU's, divided by 100; ROUGE is in `rouge.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import orjson
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from sarto.engine.evaluation.metrics.rouge import rouge

Score = Callable[[str, str], float]
"""(prediction, reference) → number."""

MISSING, TRUE, FALSE = object(), object(), object()
MAX_DEPTH = 100
"""Deepest nesting of JSON that is parsed."""
_WORD = re.compile(r"\w+")


def exact_match(prediction: str, reference: str) -> float:
    """1 if both are the same text. Surrounding space and the encoding of accents make no difference."""
    return float(_plain(prediction) == _plain(reference))


def bleu(prediction: str, reference: str, *, use_effective_order: bool = False) -> float:
    """BLEU-4 of one row, sacreBLEU's tokens and exponential smoothing. Texts under four tokens score 0 unless
    `use_effective_order` counts only the orders they have."""
    return float(_bleu(use_effective_order).corpus_score([prediction], [[reference]]).score) / 100


def chrf(prediction: str, reference: str) -> float:
    """chrF2 of one row: F-measure of character n-grams up to 6, with double weight on recall; works in every script."""
    return float(_chrf().corpus_score([prediction], [[reference]]).score) / 100


def token_f1(prediction: str, reference: str) -> float:
    """F-measure of the words, ignoring case, punctuation and order; 1 if neither text has words."""
    ours, theirs = Counter(_words(prediction)), Counter(_words(reference))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def json_valid(prediction: str, _reference: str = "") -> float:
    """1 if the whole text is one JSON object or list, without other text."""
    return float(isinstance(read_json(prediction), dict | list))


def json_field_accuracy(prediction: str, reference: str) -> float:
    """Share of equal fields in all fields of both sides: missing and invented fields both count as wrong. 0 if the
    prediction is not JSON."""
    fields = json_fields(prediction, reference)
    return sum(fields.values()) / len(fields) if fields else float(_same(read_json(prediction), read_json(reference)))


def json_fields(prediction: str, reference: str) -> dict[str, bool]:
    """For each field, whether both sides have it with the same value. Nested fields have dotted paths; lists are
    compared whole; true is not 1. Empty if the reference is not a JSON object."""
    expected, seen = read_json(reference), read_json(prediction)
    if not isinstance(expected, dict):
        return {}
    theirs, ours = _leaves(expected), _leaves(seen) if isinstance(seen, dict) else {}
    return {
        path: _same(ours.get(path, MISSING), theirs.get(path, MISSING))
        for path in dict.fromkeys([*theirs, *ours])
    }  # fmt: skip


def read_json(text: str) -> Any:
    """The JSON value of a text; MISSING if it is none. NaN and Infinity are not JSON."""
    try:
        value = orjson.loads(text)
        _comparable(value)  # raises for lists nested too deep to compare, which failing models write
    except ValueError:
        return MISSING
    return value


METRICS: dict[str, Score] = {
    "exact_match": exact_match,
    "bleu": bleu,
    "chrf": chrf,
    "token_f1": token_f1,
    "json_valid": json_valid,
    "json_field_accuracy": json_field_accuracy,
    **{f"rouge{n}": partial(rouge, rouge_type=f"rouge{n}") for n in (*range(1, 10), "L", "Lsum")},
}


@cache
def _bleu(effective_order: bool) -> BLEU:
    return BLEU(effective_order=effective_order, force=True)


@cache
def _chrf() -> CHRF:
    return CHRF()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def _leaves(value: dict[str, Any]) -> dict[str, Any]:
    """Dotted path → value of every value that is not an object with fields, in the order of the text."""
    leaves: dict[str, Any] = {}
    waiting = [(str(key), inner) for key, inner in reversed(value.items())]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, dict) and inner:
            waiting += [(f"{path}.{key}", deeper) for key, deeper in reversed(inner.items())]
        else:
            leaves[path] = inner
    return leaves


def _same(left: Any, right: Any) -> bool:
    return MISSING not in (left, right) and bool(_comparable(left) == _comparable(right))


def _comparable(value: Any, depth: int = 0) -> Any:
    """The value with markers for true and false, since Python treats them as equal to 1 and 0."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, list):
        return [_comparable(inner, depth + 1) for inner in value]
    if isinstance(value, dict):
        return {key: _comparable(inner, depth + 1) for key, inner in value.items()}
    return value
