"""A run's statistics without quoted training data, for a job under a customer key."""

from __future__ import annotations

from sarto.contract.tuning_run import DataStats
from sarto.control.access.quoting import SEALED_WORDS


def without_quotes(data: DataStats) -> DataStats:
    reasons = [SEALED_WORDS] * len(data.dropped_reasons)
    return data.model_copy(update={"sample_contents": [], "dropped_reasons": reasons})
