"""Aggregate the scores of rows into the numbers of AggregationResult: one function per AggregationMetric.

Rows without a score are excluded before. A standard deviation is the sample's (n-1) and is undefined for one row.
Percentiles interpolate linearly between the closest ranks (Hyndman and Fan's type 7). The mode of numbers is the most
frequent, compared to nine digits; of equally frequent ones the smallest.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from sarto.schema.evaluation import AggregationMetric, PairwiseChoice

Choice = PairwiseChoice


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted values lie."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def mode(values: Sequence[float]) -> float:
    counts = Counter(round(value, 9) for value in values)
    most = max(counts.values())
    return min(value for value, count in counts.items() if count == most)


def choice_mode(choices: Sequence[PairwiseChoice]) -> PairwiseChoice:
    """The most frequent choice; TIE if no single choice leads."""
    counts = Counter(choices)
    most = max(counts.values())
    leaders = [choice for choice, count in counts.items() if count == most]
    return leaders[0] if len(leaders) == 1 else Choice.TIE


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _variance(values: Sequence[float]) -> float | None:
    return statistics.variance(values) if len(values) > 1 else None


AGGREGATIONS: dict[AggregationMetric, Callable[[Sequence[float]], float | None]] = {
    AggregationMetric.AVERAGE: statistics.fmean,
    AggregationMetric.MODE: mode,
    AggregationMetric.STANDARD_DEVIATION: _deviation,
    AggregationMetric.VARIANCE: _variance,
    AggregationMetric.MINIMUM: min,
    AggregationMetric.MAXIMUM: max,
    AggregationMetric.MEDIAN: statistics.median,
    AggregationMetric.PERCENTILE_P90: lambda values: percentile(values, 0.90),
    AggregationMetric.PERCENTILE_P95: lambda values: percentile(values, 0.95),
    AggregationMetric.PERCENTILE_P99: lambda values: percentile(values, 0.99),
}


def aggregate(metric: AggregationMetric, values: Sequence[float]) -> float | None:
    """One number for the scores of many rows; None for no rows and for an undefined number."""
    return AGGREGATIONS[metric](values) if values else None
