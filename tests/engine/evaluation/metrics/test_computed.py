"""Each metric on values computed by hand, against its reference implementation, and at its edges."""

from __future__ import annotations

import math

import pytest
import sacrebleu

from sarto.engine.evaluation.metrics.computed import (
    METRICS,
    bleu,
    chrf,
    exact_match,
    json_field_accuracy,
    json_fields,
    token_f1,
)
from sarto.schema.evaluation import COMPUTED_METRICS

HOSTILE = [
    "", " ", "\n", "\0", "�", "é", "e\u0301", "👩‍👩‍👧 familie", "مرحبا", "{", "[[[", '{"a": NaN}', "x" * 100_000,
    "word " * 30_000, "[" * 5_000 + "]" * 5_000, '{"a":' * 3_000, "<script>", "1e999",
]  # fmt: skip


def test_bleu_of_a_hand_computed_row():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; same length, so no penalty
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu("the cat sat on a mat", "the cat sat on the mat") == pytest.approx(expected)


def test_bleu_of_a_short_row_counts_only_the_orders_it_has_if_asked():
    assert bleu("two words", "two words") == 0.0
    assert bleu("two words", "two words", use_effective_order=True) == pytest.approx(1.0)


@pytest.mark.parametrize("effective", [False, True])
def test_bleu_and_chrf_equal_sacrebleu(corpus: list[tuple[str, str]], effective: bool):
    for prediction, reference in corpus:
        theirs = sacrebleu.corpus_bleu([prediction], [[reference]], use_effective_order=effective).score
        assert bleu(prediction, reference, use_effective_order=effective) == pytest.approx(theirs / 100, abs=1e-9)
        assert chrf(prediction, reference) == pytest.approx(
            sacrebleu.sentence_chrf(prediction, [reference]).score / 100, abs=1e-9
        )


def test_chrf_of_a_hand_computed_row():
    # letters: all of 2 against 2 of 3; pairs: 1 of 1 against 1 of 2; recall weighs double
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert chrf("ab", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_exact_match_forgives_space_around_and_how_an_accent_is_written():
    assert exact_match(" caf\u00e9\n", "cafe\u0301") == 1.0
    assert exact_match("Cafe", "cafe") == 0.0
    assert exact_match("", "") == 1.0


def test_token_f1_of_a_hand_computed_row():
    assert token_f1("The blue, blue car!", "a blue car") == pytest.approx(2 * 2 / (4 + 3))
    assert token_f1("...", "!") == 1.0
    assert token_f1("", "word") == 0.0


def test_json_fields_are_compared_by_type_and_place():
    reference = '{"a": 1, "b": {"c": "x", "d": [1, 2]}, "e": null, "f": true}'
    answer = '{"b": {"d": [1, 2.0], "c": "X"}, "a": 1.0, "f": 1, "g": 0}'
    assert json_fields(answer, reference) == {
        "a": True, "b.c": False, "b.d": True, "e": False, "f": False, "g": False,
    }  # fmt: skip
    assert json_field_accuracy(answer, reference) == pytest.approx(2 / 6)
    assert json_field_accuracy("no json", reference) == 0.0
    assert json_field_accuracy("[1, true]", "[1, true]") == 1.0
    assert json_field_accuracy("[1, 1]", "[1, true]") == 0.0


@pytest.mark.parametrize(
    ("text", "valid"), [("{}", 1), (" [1] ", 1), ("1", 0), ('Sure: {"a": 1}', 0), ('{"a": NaN}', 0), ('{"a": 1,}', 0)]
)
def test_json_is_valid_only_as_the_whole_text(text: str, valid: int):
    assert METRICS["json_valid"](text, "{}") == valid


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("rougeL", "rougeLsum")])
def test_no_text_breaks_a_metric(name: str):
    for prediction in HOSTILE:
        for reference in ("", "an answer", '{"a": 1}', prediction[:2_000]):
            score = METRICS[name](prediction, reference)
            assert math.isfinite(score)
            assert 0.0 <= score <= 1.0 + 1e-9


def test_every_computed_predefined_name_is_a_metric():
    assert {name for name in COMPUTED_METRICS.values() if name != "rouge"} <= METRICS.keys()
