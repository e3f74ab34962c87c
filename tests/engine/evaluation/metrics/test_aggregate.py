"""Each aggregation on values computed by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarto.engine.evaluation.metrics.aggregate import AGGREGATIONS, aggregate, choice_mode
from sarto.schema.evaluation import AggregationMetric, PairwiseChoice

VALUES = [1.0, 2.0, 2.0, 3.0, 7.0]
BASELINE, CANDIDATE, TIE = PairwiseChoice.BASELINE, PairwiseChoice.CANDIDATE, PairwiseChoice.TIE


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("AVERAGE", 3.0),
        ("MODE", 2.0),
        ("STANDARD_DEVIATION", 5.5**0.5),  # (4 + 1 + 1 + 0 + 16) / 4
        ("VARIANCE", 5.5),
        ("MINIMUM", 1.0),
        ("MAXIMUM", 7.0),
        ("MEDIAN", 2.0),
        ("PERCENTILE_P90", 5.4),  # place 3.6 of 0..4: 3 + 0.6 * 4
        ("PERCENTILE_P95", 6.2),
        ("PERCENTILE_P99", 6.84),
    ],
)
def test_aggregations_of_hand_computed_values(kind: str, expected: float):
    assert aggregate(AggregationMetric(kind), VALUES) == pytest.approx(expected)


def test_every_aggregation_of_the_api_is_there():
    assert set(AGGREGATIONS) == {kind for kind in AggregationMetric if not kind.is_unspecified}


def test_one_row_has_no_deviation_and_no_rows_have_nothing():
    assert aggregate(AggregationMetric.STANDARD_DEVIATION, [0.5]) is None
    assert aggregate(AggregationMetric.VARIANCE, [0.5]) is None
    assert aggregate(AggregationMetric.PERCENTILE_P99, [0.5]) == 0.5
    assert all(aggregate(kind, []) is None for kind in AGGREGATIONS)


def test_of_equally_frequent_numbers_the_smallest_is_the_mode():
    assert aggregate(AggregationMetric.MODE, [3.0, 1.0, 3.0, 1.0, 0.1 + 0.2, 0.3]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([CANDIDATE, CANDIDATE, BASELINE], CANDIDATE),
        ([CANDIDATE, BASELINE], TIE),
        ([TIE, BASELINE, BASELINE], BASELINE),
        ([TIE, TIE, CANDIDATE, CANDIDATE], TIE),
        ([CANDIDATE, BASELINE, TIE], TIE),
    ],
)
def test_the_mode_of_choices_is_a_tie_where_none_leads(choices: list[PairwiseChoice], expected: PairwiseChoice):
    assert choice_mode(choices) is expected


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_percentiles_and_median_stay_in_order(values: list[float]):
    order = ["MINIMUM", "MEDIAN", "PERCENTILE_P90", "PERCENTILE_P95", "PERCENTILE_P99", "MAXIMUM"]
    found = [aggregate(AggregationMetric(kind), values) for kind in order]
    assert all(b - a >= -1e-6 for a, b in pairwise(found) if a is not None and b is not None)
