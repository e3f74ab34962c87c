"""The values a run uses where nobody gave one, each with its reason in words; `docs/data.md` gives the same rules.

Pure arithmetic on the data's size and the base's. Used by the run, and by the data report to say what a run would do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sarto.engine.data.store import TokenStore
from sarto.schema.runs import ChosenParameters, TuningParameters

MOST_EPOCHS = 12
SMALLEST_BATCH, LARGEST_BATCH = 4, 32
STEP_TOKENS = 16_384
"""An optimiser step is kept near this many tokens when rows are long."""
RATES = ((5e8, 5e-4), (1.5e10, 2e-4), (math.inf, 1e-4))
"""Learning rates of LoRA by the base's number of parameters, up to each bound."""
FEW_ROWS = 100


@dataclass(frozen=True)
class DataShape:
    """What the rules look at: rows as they are trained, and their rendered tokens."""

    rows: int
    mean_tokens: float
    longest: int

    @classmethod
    def of(cls, store: TokenStore) -> DataShape:
        return cls(len(store), store.token_count / max(1, len(store)), int(store.lengths.max(initial=0)))


def choose(
    data: DataShape,
    given: TuningParameters,
    parameter_count: int,
    *,
    precision: str = "",
    device: str = "",
    threads: int = 0,
) -> ChosenParameters:
    """Every value of a run. `reasons` has a sentence for each that was not given."""
    reasons: dict[str, str] = {}
    epochs = given.epoch_count
    if epochs is None:
        epochs, reasons["epoch_count"] = _epochs(data.rows)
    batch = given.batch_size
    if batch is None:
        batch, reasons["batch_size"] = _batch_size(data)
    rate = given.learning_rate
    if rate is None:
        rate, reasons["learning_rate"] = _learning_rate(data.rows, parameter_count)
    elif given.learning_rate_reason:
        reasons["learning_rate"] = given.learning_rate_reason
    if given.learning_rate_multiplier != 1:
        reasons["learning_rate_multiplier"] = f"{rate:g}, multiplied by {given.learning_rate_multiplier:g} as asked"
    steps = epochs * -(-data.rows // batch)
    return ChosenParameters(
        rank=given.rank,
        alpha=given.alpha,
        epoch_count=epochs,
        batch_size=batch,
        learning_rate=rate * given.learning_rate_multiplier,
        warmup_steps=max(1, round(given.warmup_fraction * steps)),
        total_steps=steps,
        precision=precision,
        device=device,
        threads=threads,
        reasons=reasons,
    )


def _epochs(rows: int) -> tuple[int, str]:
    epochs = min(MOST_EPOCHS, max(1, round(3 * (2000 / rows) ** 0.25)))
    if rows < 500:
        why = "few rows have to be seen more often to be learned; the validation loss shows when it is enough"
    elif rows <= 10_000:
        why = "about three passes are enough for this much data"
    else:
        why = "with this much data every further pass costs more than it teaches"
    return epochs, f"{epochs} for {rows:,} rows: {why}"


def _batch_size(data: DataShape) -> tuple[int, str]:
    wanted = 2 ** round(math.log2(2 * data.rows**0.25))
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, wanted))
    reason = f"{batch} for {data.rows:,} rows: small data needs many small steps, large data steady ones"
    fitting = batch
    while fitting > 1 and fitting * data.mean_tokens > STEP_TOKENS:
        fitting //= 2
    if fitting < batch:
        reason = f"{fitting}, not {batch}: rows of {data.mean_tokens:,.0f} tokens make {STEP_TOKENS:,} tokens a step"
    return fitting, reason


def _learning_rate(rows: int, parameter_count: int) -> tuple[float, str]:
    rate = next(rate for bound, rate in RATES if parameter_count <= bound)
    size = f"{parameter_count / 1e9:.2g} billion" if parameter_count >= 1e9 else f"{parameter_count / 1e6:.0f} million"
    reason = f"{rate:g} for an adapter on a base of {size} parameters"
    if rows < FEW_ROWS:
        return rate / 2, f"{reason}, halved for fewer than {FEW_ROWS} rows"
    return rate, reason
