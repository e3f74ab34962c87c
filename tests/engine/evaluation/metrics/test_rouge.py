"""Our ROUGE equals the reference implementation, on a shipped corpus and on anything else."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.engine.evaluation.metrics.porter import stem
from sarto.engine.evaluation.metrics.rouge import MAX_WORDS, rouge
from sarto.errors import InvalidArgument
from sarto.schema.evaluation import ROUGE_TYPES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer

TYPES = sorted(ROUGE_TYPES)
SCORERS = {stemmer: RougeScorer(TYPES, use_stemmer=stemmer) for stemmer in (False, True)}
SUFFIXES = (
    "ational tional enci anci izer bli alli entli eli ousli ization ation ator alism iveness fulness "
    "ousness aliti iviti biliti fulli logi icate ative alize iciti ical ful ness al ance ence er ic able "
    "ible ant ement ment ent ion ou ism ate iti ous ive ize ed ing eed ied ies s ss sses y ll e"
).split()


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_every_type_equals_the_reference_implementation_on_the_corpus(corpus: list[tuple[str, str]], use_stemmer: bool):
    for prediction, _ in corpus:
        for _, reference in corpus:
            theirs = SCORERS[use_stemmer].score(reference, prediction)
            for kind in TYPES:
                ours = rouge(prediction, reference, kind, use_stemmer=use_stemmer)
                assert ours == pytest.approx(theirs[kind].fmeasure, abs=1e-9), (kind, prediction, reference)


TEXTS = st.lists(st.sampled_from(["a", "b", "running", "runs", "the", "\n", ".", "ä", "7", "nationally"]), max_size=30)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, st.booleans())
def test_every_type_equals_the_reference_implementation_on_random_texts(left: list[str], right: list[str], stems: bool):
    prediction, reference = " ".join(left), " ".join(right)
    theirs = SCORERS[stems].score(reference, prediction)
    for kind in TYPES:
        ours = rouge(prediction, reference, kind, use_stemmer=stems)
        assert ours == pytest.approx(theirs[kind].fmeasure, abs=1e-9)


@settings(max_examples=800, deadline=None)
@given(st.text("aeiouybcdlnstwxz", max_size=6), st.sampled_from(SUFFIXES), st.sampled_from(["", *SUFFIXES]))
def test_the_stemmer_equals_the_reference_stemmer(start: str, suffix: str, second: str):
    word = start + suffix + second
    assert stem(word) == PorterStemmer().stem(word)


@pytest.mark.parametrize(
    ("prediction", "reference", "kind", "expected"),
    [
        ("the cat sat", "the cat sat down today", "rouge1", 6 / 8),  # 3 of 3 and of 5 words
        ("the cat sat", "the cat sat down today", "rouge2", 4 / 6),  # 2 of 2 and of 4 pairs
        ("police killed the gunman", "police kill the gunman", "rougeL", 6 / 8),  # police the gunman
        ("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", "rougeLsum", 8 / 15),  # union w1 w2 w3 w5 of 10 and 5
        ("", "something", "rouge1", 0.0),
        ("", "", "rougeLsum", 0.0),
        ("one two", "one two", "rouge3", 0.0),
    ],
)
def test_scores_computed_by_hand(prediction: str, reference: str, kind: str, expected: float):
    assert rouge(prediction, reference, kind) == pytest.approx(expected)


def test_splitting_summaries_equals_writing_one_sentence_a_line():
    text = 'He came. "Why?" she asked. It was 5.30 p.m. then!  The end.'
    lines = 'He came.\n"Why?" she asked.\nIt was 5.30 p.m. then!\nThe end.'
    other = "The end came. She asked why. It was late then."
    split = rouge(other, text, "rougeLsum", split_summaries=True)
    assert split == pytest.approx(rouge(other.replace(". ", ".\n"), lines, "rougeLsum"))
    assert split != pytest.approx(rouge(other, text, "rougeLsum"))


def test_long_texts_are_scored_and_longer_ones_refused_by_name():
    text = "all work and no play makes a dull day " * 700
    assert rouge(text, text, "rougeLsum") == 1.0
    assert rouge(text, text[::-1], "rougeL") < 1.0
    with pytest.raises(InvalidArgument, match=f"up to {MAX_WORDS} words"):
        rouge("word " * (MAX_WORDS + 1), "word", "rougeL")
    assert rouge("word " * (MAX_WORDS + 1), "word", "rouge1") > 0


def test_an_unknown_type_is_refused_with_the_known_ones():
    with pytest.raises(InvalidArgument, match="rougeLsum"):
        rouge("a", "a", "rouge10")
