"""Detects divergence of a tuning by its loss at the end against its loss at the start.

Pure arithmetic on the losses of all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LAST_STEPS = 10
SUSPECT_NATS = 1.0
"""Rise of the loss that causes a warning: each token is e times less probable than before."""
HOPELESS_NATS = 3.0
"""Rise of the loss that fails the job: each token is twenty times less probable."""


def rise(losses: Sequence[float]) -> tuple[float, float]:
    """The loss of the first step, before anything is learned, and the mean over the last steps: at most ten, and at
    most half of all."""
    count = max(1, min(LAST_STEPS, len(losses) // 2))
    return losses[0], sum(losses[-count:]) / count


def words(first: float, last: float, learning_rate: float) -> str:
    """The message for a tuning whose loss ended above its start."""
    perplexity = f"{math.exp(min(last, 700)):.3g}"
    return (
        f"training diverged: its loss was {first:.3g} at the first step and is {last:.3g} at the end (perplexity"
        f" {perplexity}) with a learning rate of {learning_rate:.3g}; try a smaller learning rate multiplier"
    )
