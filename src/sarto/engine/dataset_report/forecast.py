"""Forecast of a run on a machine: steps, time, peak memory. Arithmetic; `machine_speed.py` measures the machine.

The time is corrected by the measured times of earlier runs of the same project on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sarto.contract.base_shape import STEP_ROWS, BaseShape
from sarto.contract.tuning_run import ChosenParameters, PastRun
from sarto.engine.dataset.default_parameters import DataShape

OPERATIONS_PER_PARAMETER, FULL_OPERATIONS = 3.5, 5.25
"""Operations per trained token: forward, and backward without and with the gradients of the base."""
FORWARD_SHARE = 0.4
"""Cost of the pass that computes the references of pairs, as a share of a training pass."""
REACHED = 0.8
"""Share of a machine's speed that a run reaches, both in processor time: the median in docs/benchmarks.md."""
STEP_TOKENS, CHECKPOINT_TOKENS = 150, 2000
"""The fixed cost of a step, and of a checkpoint with its certificate, as a number of tokens."""
LEAST_SECONDS = 0.1
LAST_RUNS = 5
"""Number of runs that correct a forecast."""
SPEAKS_FOR_OTHERS_SECONDS = 5.0
"""Shortest run that corrects forecasts for other bases. A shorter run measures mostly the start and end of its own
base."""


@dataclass(frozen=True)
class Machine:
    """`flops_per_second` of matrix products in a run; `free_bytes` is 0 if unknown."""

    device: str
    threads: int
    flops_per_second: float
    free_bytes: int
    processor: str = ""
    """Name of the processor or the accelerator."""
    precision: str = ""


@dataclass(frozen=True)
class Correction:
    """`factor` is the median of measured time over forecast time, of `runs` runs; 1 without any."""

    factor: float
    runs: int
    is_same_base: bool

    @classmethod
    def of(cls, past: Sequence[PastRun], digest: str, machine: Machine) -> Correction:
        """A correction by runs of this base on this processor with equal threads and precision; without any, by runs of
        other bases."""
        alike = (machine.processor, machine.threads, machine.precision)
        here = [run for run in past if (run.processor, run.threads, run.precision) == alike]
        own = [run for run in here if run.base == digest]
        used = own or [run for run in here if run.tuning_seconds >= SPEAKS_FOR_OTHERS_SECONDS]
        ratios = [run.tuning_seconds / run.forecast_seconds for run in used[:LAST_RUNS]]
        return cls(median(ratios) if ratios else 1.0, len(ratios), bool(own))


def forecast(
    data: DataShape,
    chosen: ChosenParameters,
    base: BaseShape,
    machine: Machine | None,
    past: Sequence[PastRun] = (),
    digest: str = "",
) -> dict[str, Any]:
    """Steps, epochs and tokens of a run; with a machine also seconds, peak bytes, and whether they fit.

    `past` are earlier runs, newest first; `digest` is that of the base."""
    tokens = round(data.rows * data.mean_tokens) * chosen.epoch_count
    report: dict[str, Any] = {"steps": chosen.total_steps, "epochs": chosen.epoch_count, "tokens": tokens}
    if machine is None:
        return report
    computed = tokens * data.computed_share
    beside = STEP_TOKENS * chosen.total_steps + CHECKPOINT_TOKENS * chosen.epoch_count
    is_full, rows = not chosen.rank, max(data.longest, min(STEP_ROWS, round(chosen.batch_size * data.mean_tokens)))
    each = FULL_OPERATIONS if is_full else OPERATIONS_PER_PARAMETER
    operations = each * base.parameters * (computed + beside)
    peak = base.full_peak_bytes(rows) if is_full else base.peak_bytes(rows)
    seconds = max(LEAST_SECONDS, operations / (REACHED * machine.flops_per_second))
    correction = Correction.of(past, digest, machine)
    references = FORWARD_SHARE * seconds / chosen.epoch_count if chosen.beta is not None else 0.0
    return report | {
        "seconds": round(max(LEAST_SECONDS, seconds * correction.factor + references), 1),
        "uncorrected_seconds": round(seconds, 3),
        "correction": asdict(correction),
        "peak_memory_bytes": peak,
        "fits": machine.free_bytes == 0 or peak <= machine.free_bytes,
        "machine": asdict(machine),
    }
