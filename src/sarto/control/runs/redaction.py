"""A run's statistics without quoted training data, for a job under a customer key."""

from __future__ import annotations

from typing import Any

from sarto.contract.tuning_run import DataStats
from sarto.control.access.quoting import SEALED_WORDS

SAMPLES = "sample_"
"""Begins the name of each field of DataStats that quotes rows."""


def without_quotes(data: DataStats) -> DataStats:
    changes: dict[str, Any] = {name: [] for name in DataStats.model_fields if name.startswith(SAMPLES)}
    return data.model_copy(update=changes | {"dropped_reasons": [SEALED_WORDS] * len(data.dropped_reasons)})
