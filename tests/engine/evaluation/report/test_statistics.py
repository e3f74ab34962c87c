"""Intervals cover the truth as often as they say, tests agree with hand computation, all of it seeded."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.engine.evaluation.report.statistics import (
    agreement,
    bootstrap,
    compare,
    holm,
    interval,
    krippendorff_alpha,
    mcnemar,
    sign_flip,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]
POPULATIONS: dict[str, tuple[Draw, float]] = {
    "graded": (lambda g, n: g.beta(2, 1, n), 2 / 3),
    "two humps": (lambda g, n: g.beta(0.5, 0.5, n), 0.5),
    "half perfect": (lambda g, n: np.where(g.random(n) < 0.4, 1.0, g.beta(2, 2, n)), 0.7),
    "five fields": (lambda g, n: g.binomial(5, 0.8, n) / 5, 0.8),
    "hit or miss": (lambda g, n: (g.random(n) < 0.3) * 1.0, 0.3),
    "rarely hit": (lambda g, n: (g.random(n) < 0.08) * 1.0, 0.08),
}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("rows", [15, 60])
def test_intervals_cover_the_true_mean_as_often_as_they_say(name: str, rows: int):
    draw, mean = POPULATIONS[name]
    generator, trials = np.random.default_rng(7), 300
    hits = 0
    for trial in range(trials):
        found = interval([float(x) for x in draw(generator, rows)], seed=trial)
        hits += found is not None and found.low - 1e-12 <= mean <= found.high + 1e-12
    # 95 % of 300 is 285; four standard deviations of chance below it, and room for the discreteness of shares
    assert 270 <= hits <= 300


@pytest.mark.parametrize("rows", [20, 80])
def test_intervals_of_paired_shares_cover_the_true_difference(rows: int):
    generator, trials, hits = np.random.default_rng(3), 400, 0
    for _ in range(trials):
        draw = generator.random(rows)
        before = [float(x) for x in (draw < 0.45)]
        after = [float(x) for x in ((draw < 0.35) | (draw > 0.7))]
        found = compare(before, after)
        assert found is not None
        assert found.interval is not None
        hits += found.interval.low <= 0.2 <= found.interval.high
    assert hits >= 366


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 5))
def test_an_interval_holds_the_mean_and_is_the_same_every_time(values: list[float], seed: int):
    found = interval(values, seed=seed)
    assert found == interval(values, seed=seed)
    if found is not None:
        assert found.low - 1e-9 <= math.fsum(values) / len(values) <= found.high + 1e-9


def test_shares_get_wilsons_interval():
    found = interval([1.0] * 8 + [0.0] * 2)
    assert found is not None
    assert found.method == "Wilson"
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    none = interval([0.0] * 20)
    assert none is not None
    assert (none.low, none.high) == (0.0, pytest.approx(0.1611, abs=1e-4))


def test_too_few_graded_rows_have_no_interval():
    assert bootstrap([0.1, 0.2, 0.3, 0.4]) is None
    assert interval([]) is None


def test_mcnemar_of_hand_computed_splits():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(3, 3) == 1.0


def test_sign_flips_of_a_hand_computed_case():
    p, method = sign_flip(np.array([1.0, 2.0, 4.0, 0.0]))  # of 8 patterns only both extremes reach 7
    assert (p, method) == (pytest.approx(2 / 8), "sign-flip permutation, exact")


def test_random_sign_flips_agree_with_exact_ones():
    generator = np.random.default_rng(1)
    short = generator.normal(0.4, 1, 14)
    exact, _ = sign_flip(short)
    padded, method = sign_flip(np.concatenate([short, [1e-9]]))
    assert "flips" in method
    assert padded == pytest.approx(exact, abs=0.02)


def test_a_permutation_test_finds_nothing_as_often_as_it_should():
    generator = np.random.default_rng(5)
    found = sum(sign_flip(generator.normal(0, 1, 12))[0] <= 0.05 for _ in range(400))
    assert 6 <= found <= 36  # 20 expected


def test_a_comparison_counts_and_chooses_its_test():
    shares = compare([0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0])
    assert shares is not None
    assert (shares.better, shares.worse, shares.same, shares.method) == (2, 1, 2, "McNemar, exact")
    graded = compare([0.2, 0.3, 0.4, 0.5, 0.6], [0.3, 0.4, 0.5, 0.6, 0.7])
    assert graded is not None
    assert graded.difference == pytest.approx(0.1)
    assert graded.p == pytest.approx(2 / 2**5)
    assert compare([], []) is None


def test_holm_of_a_hand_computed_case():
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([]) == []


def test_agreement_of_hand_computed_judgements():
    assert agreement([[1, 1, 2], [3]]) == pytest.approx(1 / 3)
    assert agreement([[1], [2]]) is None


def test_krippendorffs_alpha_of_hand_computed_judgements():
    # two rows "a a" and "a b": disagreement within 2/4, overall 2·3·1/(4·3) = 1/2
    assert krippendorff_alpha([["a", "a"], ["a", "b"]]) == pytest.approx(0.0)
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == pytest.approx(1.0)
    # numbers by squared distance: within (0 + 2)/4; overall 2·(2·1 + 2·4 + 1·1)/(4·3)
    assert krippendorff_alpha([[1, 1], [2, 3]]) == pytest.approx(1 - 0.5 / (22 / 12))
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [2]]) is None
