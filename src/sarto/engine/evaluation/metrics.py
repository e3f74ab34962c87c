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

from sarto.engine.evaluation.rouge import rouge

Score = Callable[[str, str], float]
"""(prediction, reference) → number."""

MISSING, TRUE, FALSE = object(), object(), object()
MAX_DEPTH = 100
"""Deepest nesting of JSON that is looked at."""
_WORD = re.compile(r"\w+")


def exact_match(prediction: str, reference: str) -> float:
    """1 where both are the same text; space around it and the two ways to write an accent make no difference."""
    return float(_plain(prediction) == _plain(reference))


def bleu(prediction: str, reference: str, *, use_effective_order: bool = False) -> float:
    """BLEU-4 of one row, sacreBLEU's tokens and exponential smoothing. Texts under four tokens score 0 unless
    `use_effective_order` counts only the orders they have."""
    return float(_bleu(use_effective_order).corpus_score([prediction], [[reference]]).score) / 100


def chrf(prediction: str, reference: str) -> float:
    """chrF2 of one row: F-measure of character n-grams up to 6, recall counting double; works in every script."""
    return float(_chrf().corpus_score([prediction], [[reference]]).score) / 100


def token_f1(prediction: str, reference: str) -> float:
    """F-measure of the words both have, ignoring case, punctuation and order; 1 where neither has words."""
    ours, theirs = Counter(_words(prediction)), Counter(_words(reference))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def json_valid(prediction: str, _reference: str = "") -> float:
    """1 where the whole text is one JSON object or list, nothing around it."""
    return float(isinstance(read_json(prediction), dict | list))


def json_field_accuracy(prediction: str, reference: str) -> float:
    """Share of fields that are equal, of all that either side has: a missing and an invented field both count against.
    0 where the prediction is not JSON."""
    fields = json_fields(prediction, reference)
    return sum(fields.values()) / len(fields) if fields else float(_same(read_json(prediction), read_json(reference)))


def json_fields(prediction: str, reference: str) -> dict[str, bool]:
    """Per field, whether both sides have it with the same value. Fields inside objects are named by dotted paths;
    lists are compared whole; true is not 1. Empty where the reference is not a JSON object."""
    wanted, seen = read_json(reference), read_json(prediction)
    if not isinstance(wanted, dict):
        return {}
    theirs, ours = _leaves(wanted), _leaves(seen) if isinstance(seen, dict) else {}
    return {
        path: _same(ours.get(path, MISSING), theirs.get(path, MISSING))
        for path in dict.fromkeys([*theirs, *ours])
    }  # fmt: skip


def read_json(text: str) -> Any:
    """The JSON value a text holds, MISSING where it holds none. NaN and Infinity are not JSON."""
    try:
        value = orjson.loads(text)
        _comparable(value)  # raises where lists stand in lists too deep to compare, as a failing model writes them
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
    """Dotted path → value of everything that is not itself an object with fields, in the order written."""
    found: dict[str, Any] = {}
    waiting = [(str(key), inner) for key, inner in reversed(value.items())]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, dict) and inner:
            waiting += [(f"{path}.{key}", deeper) for key, deeper in reversed(inner.items())]
        else:
            found[path] = inner
    return found


def _same(left: Any, right: Any) -> bool:
    return MISSING not in (left, right) and bool(_comparable(left) == _comparable(right))


def _comparable(value: Any, depth: int = 0) -> Any:
    """The value with true and false as marks of their own, since Python takes them for 1 and 0."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, list):
        return [_comparable(inner, depth + 1) for inner in value]
    if isinstance(value, dict):
        return {key: _comparable(inner, depth + 1) for key, inner in value.items()}
    return value
