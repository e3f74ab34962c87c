"""What a run will take on a machine: steps, time, peak memory. Arithmetic; `machine.py` measures the machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sarto.engine.data.automatic import DataShape
from sarto.schema.runs import ChosenParameters

OPERATIONS_PER_PARAMETER = 3.5
"""Of one trained token: forward, and backward without the gradients of the base."""
REACHED = 0.7
"""Share of a machine's speed that a run reaches; measured between 0.62 and 0.8 on processors."""
STEP_TOKENS, CHECKPOINT_TOKENS = 150, 2000
"""A step, and a checkpoint with its certificate, take as long as so many tokens beside the tokens they are made of."""
STEP_ROWS = 2048
"""Tokens of a packed batch; only a longer row makes a larger one."""
RUNTIME_BYTES = 1130 << 20
"""What a process takes beside weights and steps; measured on the small base."""


@dataclass(frozen=True)
class Machine:
    """`flops_per_second` as a run's matrix products reach it; memory that is free now, 0 where unknown."""

    device: str
    threads: int
    flops_per_second: float
    free_bytes: int


@dataclass(frozen=True)
class BaseShape:
    """Of a base model, what decides its cost."""

    parameters: int
    layers: int
    width: int
    feed_forward: int

    @classmethod
    def load(cls, folder: Path | str) -> BaseShape:
        """By the base's configuration; biases and norms are left out of the count."""
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        layers, width, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        attention = width * head * 2 * (heads + (config.get("num_key_value_heads") or heads))
        embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings", True) else 2)
        return cls(int(layers * (attention + 3 * width * inner) + embeddings), layers, width, inner)


def forecast(data: DataShape, chosen: ChosenParameters, base: BaseShape, machine: Machine | None) -> dict[str, Any]:
    """Steps, epochs and tokens of a run; with a machine also seconds, peak bytes, and whether they fit."""
    tokens = round(data.rows * data.mean_tokens) * chosen.epoch_count
    found: dict[str, Any] = {"steps": chosen.total_steps, "epochs": chosen.epoch_count, "tokens": tokens}
    if machine is None:
        return found
    beside = STEP_TOKENS * chosen.total_steps + CHECKPOINT_TOKENS * chosen.epoch_count
    operations = OPERATIONS_PER_PARAMETER * base.parameters * (tokens + beside)
    peak = _peak_bytes(base, max(data.longest, min(STEP_ROWS, round(chosen.batch_size * data.mean_tokens))))
    return found | {
        "seconds": max(0.1, round(operations / (REACHED * machine.flops_per_second), 1)),
        "peak_memory_bytes": peak,
        "fits": machine.free_bytes == 0 or peak <= machine.free_bytes,
        "machine": asdict(machine),
    }


def _peak_bytes(base: BaseShape, rows: int) -> int:
    """Weights and their merged copy in 2 bytes each, what one packed batch keeps for its backward pass, the runtime."""
    kept = rows * base.layers * (12 * base.width + 3 * base.feed_forward) * 2
    return 2 * 2 * base.parameters + kept + RUNTIME_BYTES
