"""Default hyper-parameters of a run, each with a reason. `docs/data.md` lists the same rules.

Pure arithmetic on the size of the data and of the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sarto.contract.common import TuningParameters
from sarto.contract.tuning_run import ChosenParameters
from sarto.engine.dataset.sampling_parameters import WARMUP_STEPS, SamplingParameters, choose_sampling
from sarto.engine.dataset.token_store import TokenStore
from sarto.plurals import row_count

MOST_EPOCHS = 12
SMALLEST_BATCH, LARGEST_BATCH = 4, 32
STEP_TOKENS = 16_384
"""Target tokens of an optimiser step when rows are long."""
RATES = ((5e8, 5e-4), (1.5e10, 2e-4), (math.inf, 1e-4))
"""Learning rates of LoRA by the base's number of parameters, up to each bound."""
FEW_ROWS = 100
ONE_EPOCH_PAIRS, TWO_EPOCHS_PAIRS = 2000, 500
"""Above these numbers of pairs one pass, or two, are sufficient."""
FULL_RATE = 1e-5
"""Learning rate of full tuning."""


@dataclass(frozen=True)
class DataShape:
    """The size of the data as the rules use it: trained rows and their rendered tokens."""

    rows: int
    mean_tokens: float
    longest: int
    computed_share: float = 1.0
    """Share of the rendered tokens that are computed: a pair's prompt is rendered twice and computed once."""

    @classmethod
    def of(cls, store: TokenStore) -> DataShape:
        """A pair counts as one row."""
        rows = store.line_count if store.holds_pairs else len(store)
        longest = int(store.lengths.max(initial=0))
        shared = int((store.columns["tokens_of"] - store.columns["learned_of"])[1::2].sum()) if store.holds_pairs else 0
        computed = 1 - shared / max(1, store.token_count)
        return cls(rows, store.token_count / max(1, rows), longest, computed)


def choose(
    data: DataShape,
    requested: TuningParameters,
    parameter_count: int,
    *,
    precision: str = "",
    device: str = "",
    threads: int = 0,
) -> ChosenParameters:
    """The hyper-parameters of a run. `reasons` has a sentence for each value that the request does not set."""
    reasons: dict[str, str] = {}
    sampling = None
    if requested.reinforcement is not None:
        has_accelerator = bool(device) and device != "cpu"
        sampling = choose_sampling(data.rows, requested, requested.reinforcement, has_accelerator=has_accelerator)
        reasons |= sampling.reasons
    epochs = sampling.epochs if sampling else requested.epoch_count
    if epochs is None:
        epochs, reasons["epoch_count"] = _epochs(data.rows) if requested.beta is None else _epochs_of_pairs(data.rows)
    batch = sampling.batch_size if sampling else requested.batch_size
    if batch is None:
        batch, reasons["batch_size"] = _batch_size(data)
    rate = requested.learning_rate
    if rate is None and requested.is_full:
        rate, reasons["learning_rate"] = FULL_RATE, f"{FULL_RATE:g} for full tuning"
    elif rate is None:
        rate, reasons["learning_rate"] = _learning_rate(data.rows, parameter_count)
    elif requested.learning_rate_reason:
        reasons["learning_rate"] = requested.learning_rate_reason
    if requested.beta_reason:
        reasons["beta"] = requested.beta_reason
    if requested.learning_rate_multiplier != 1:
        reasons["learning_rate_multiplier"] = (
            f"{rate:g}, multiplied by {requested.learning_rate_multiplier:g} as requested"
        )
    steps = sampling.steps if sampling else epochs * -(-data.rows // batch)
    chosen = ChosenParameters(
        rank=requested.rank,
        alpha=requested.alpha,
        epoch_count=epochs,
        batch_size=batch,
        learning_rate=rate * requested.learning_rate_multiplier,
        warmup_steps=max(1, round(requested.warmup_fraction * steps)),
        total_steps=steps,
        precision=precision,
        device=device,
        threads=threads,
        beta=requested.beta,
        reasons=reasons,
    )
    return chosen if sampling is None else _with_sampling(chosen, sampling, requested)


def _with_sampling(
    chosen: ChosenParameters, sampling: SamplingParameters, requested: TuningParameters
) -> ChosenParameters:
    assert requested.reinforcement is not None
    return chosen.model_copy(
        update={
            "warmup_steps": min(WARMUP_STEPS, sampling.steps),
            "samples_per_prompt": sampling.samples_per_prompt,
            "max_output_tokens": sampling.max_output_tokens,
            "evaluate_interval": sampling.evaluate_interval,
            "checkpoint_interval": sampling.checkpoint_interval,
            "kl_weight": requested.reinforcement.kl_weight,
            "temperature": 1.0,
            "seed": requested.seed,
        }
    )


def _epochs(rows: int) -> tuple[int, str]:
    epochs = min(MOST_EPOCHS, max(1, round(3 * (2000 / rows) ** 0.25)))
    if rows < 500:
        why = "few rows have to be seen more often to be learned; the validation loss shows when it is enough"
    elif rows <= 10_000:
        why = "about three passes are enough for this much data"
    else:
        why = "with this much data every further pass costs more than it teaches"
    return epochs, f"{epochs} for {row_count(rows)}: {why}"


def _epochs_of_pairs(pairs: int) -> tuple[int, str]:
    """Fewer epochs than for examples: memorised pairs move the model far from the initial one."""
    epochs = 1 if pairs > ONE_EPOCH_PAIRS else 2 if pairs > TWO_EPOCHS_PAIRS else 3
    why = "one pass" if epochs == 1 else "few passes"
    return epochs, f"{epochs} for {row_count(pairs)}: {why} over pairs, which change a model more than examples do"


def _batch_size(data: DataShape) -> tuple[int, str]:
    size = 2 ** round(math.log2(2 * data.rows**0.25))
    batch = min(LARGEST_BATCH, max(SMALLEST_BATCH, size))
    reason = f"{batch} for {row_count(data.rows)}: small data needs many small steps, large data steady ones"
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
