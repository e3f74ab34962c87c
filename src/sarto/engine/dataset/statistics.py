"""Distributions and the statistics of a dataset in the API's form. Pure functions of a token store's columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from sarto.contract.tuning_run import DataStats, Distribution
from sarto.conversations.conversation import RowFault
from sarto.engine.dataset.token_store import TokenStore

BUCKETS = 6
Array = np.ndarray[Any, np.dtype[Any]]


def distribution(values: Array, buckets: int = BUCKETS) -> Distribution:
    """Summary of one integer per row: about `buckets` buckets of equal whole width, without empty ones; a single bucket
    when all values are equal."""
    if len(values) == 0:
        return Distribution(sum=0, min=0, max=0, mean=0, median=0, p5=0, p95=0, buckets=[])
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low) // buckets))
    counts = np.bincount((values - low) // width, minlength=1)
    histogram: list[tuple[int, float, float]] = [
        (int(count), float(low + index * width), float(low + (index + 1) * width))
        for index, count in enumerate(counts)
        if count
    ]
    p5, median, p95 = (float(value) for value in np.percentile(values, [5, 50, 95]))
    mean = float(values.mean())
    total = int(values.sum(dtype=np.int64))
    return Distribution(sum=total, min=low, max=high, mean=mean, median=median, p5=p5, p95=p95, buckets=histogram)


def data_stats(store: TokenStore, step_count: int) -> DataStats:
    """Statistics of one pass. Input tokens are those without loss, output tokens those with; together they are all
    tokens. Of pairs, input is counted once per row, and output per completion."""
    columns, facts = store.columns, store.facts
    faults, per_line = facts.faults, 2 if store.holds_pairs else 1
    learned, samples = columns["learned_of"], facts.samples[:3]
    pairs = samples if store.holds_pairs else []
    return DataStats(
        example_count=store.line_count,
        dropped_count=len(faults),
        dropped_indices=[fault[0] for fault in faults],
        dropped_reasons=[RowFault(*fault[1:]).reason for fault in faults],
        character_count=int(columns["characters_of"].sum(dtype=np.int64)),
        token_count=store.token_count,
        input_tokens=distribution((columns["tokens_of"] - learned)[::per_line]),
        output_tokens=distribution(learned),
        messages=distribution(columns["turns_of"][::per_line]),
        sample_contents=[content for sample in samples for content in sample["contents"]] if per_line == 1 else [],
        sample_pairs=[{key: sample[key] for key in ("contents", "completions")} for sample in pairs],
        sample_prompts=[{"contents": each["contents"]} for each in samples] if store.holds_prompts else [],
        is_prompts=store.holds_prompts,
        scores=distribution(np.resize([1, 0], len(learned))) if per_line == 2 else None,
        step_count=step_count,
    )
