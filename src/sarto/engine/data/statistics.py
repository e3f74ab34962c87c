"""Distributions and the statistics of a dataset as the API tells them. Pure numbers from a token store's columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarto.engine.data.store import TokenStore
from sarto.schema.runs import DataStats, Distribution
from sarto.schema.turns import RowFault

BUCKETS = 6
Array = np.ndarray[Any, np.dtype[Any]]


def distribution(values: Array, buckets: int = BUCKETS) -> Distribution:
    """Summary of one integer per row: about `buckets` buckets of equal whole width, empty ones left out; a single one
    when all values are equal."""
    if len(values) == 0:
        return Distribution(sum=0, min=0, max=0, mean=0, median=0, p5=0, p95=0, buckets=[])
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low) // buckets))
    counts = np.bincount((values - low) // width, minlength=1)
    found: list[tuple[int, float, float]] = [
        (int(count), float(low + index * width), float(low + (index + 1) * width))
        for index, count in enumerate(counts)
        if count
    ]
    p5, median, p95 = (float(value) for value in np.percentile(values, [5, 50, 95]))
    mean = float(values.mean())
    total = int(values.sum(dtype=np.int64))
    return Distribution(sum=total, min=low, max=high, mean=mean, median=median, p5=p5, p95=p95, buckets=found)


def data_stats(store: TokenStore, step_count: int) -> DataStats:
    """Input tokens are those without loss, output tokens those with; together they are all tokens of a pass."""
    columns, facts = store.columns, store.facts
    faults = facts.faults
    return DataStats(
        example_count=len(columns["lines"]),
        dropped_count=len(faults),
        dropped_indices=[fault[0] for fault in faults],
        dropped_reasons=[RowFault(*fault[1:]).reason for fault in faults],
        character_count=int(columns["characters_of"].sum(dtype=np.int64)),
        token_count=store.token_count,
        input_tokens=distribution(columns["tokens_of"] - columns["learned_of"]),
        output_tokens=distribution(columns["learned_of"]),
        messages=distribution(columns["turns_of"]),
        sample_contents=[content for sample in facts.samples[:3] for content in sample["contents"]],
        step_count=step_count,
    )
