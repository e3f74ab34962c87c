"""What a run will take on a machine: steps, time, peak memory. Arithmetic; `machine.py` measures the machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sarto.engine.data.automatic import DataShape
from sarto.schema.base_shape import STEP_ROWS, BaseShape
from sarto.schema.runs import ChosenParameters

OPERATIONS_PER_PARAMETER = 3.5
"""Of one trained token: forward, and backward without the gradients of the base."""
REACHED = 0.7
"""Share of a machine's speed that a run reaches; measured between 0.62 and 0.8 on processors."""
STEP_TOKENS, CHECKPOINT_TOKENS = 150, 2000
"""A step, and a checkpoint with its certificate, take as long as so many tokens beside the tokens they are made of."""


@dataclass(frozen=True)
class Machine:
    """`flops_per_second` as a run's matrix products reach it; memory that is free now, 0 where unknown."""

    device: str
    threads: int
    flops_per_second: float
    free_bytes: int


def forecast(data: DataShape, chosen: ChosenParameters, base: BaseShape, machine: Machine | None) -> dict[str, Any]:
    """Steps, epochs and tokens of a run; with a machine also seconds, peak bytes, and whether they fit."""
    tokens = round(data.rows * data.mean_tokens) * chosen.epoch_count
    found: dict[str, Any] = {"steps": chosen.total_steps, "epochs": chosen.epoch_count, "tokens": tokens}
    if machine is None:
        return found
    beside = STEP_TOKENS * chosen.total_steps + CHECKPOINT_TOKENS * chosen.epoch_count
    operations = OPERATIONS_PER_PARAMETER * base.parameters * (tokens + beside)
    peak = base.peak_bytes(max(data.longest, min(STEP_ROWS, round(chosen.batch_size * data.mean_tokens))))
    return found | {
        "seconds": max(0.1, round(operations / (REACHED * machine.flops_per_second), 1)),
        "peak_memory_bytes": peak,
        "fits": machine.free_bytes == 0 or peak <= machine.free_bytes,
        "machine": asdict(machine),
    }
