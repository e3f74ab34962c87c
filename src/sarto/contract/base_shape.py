"""The shape of a base model, and the memory of a run on it. Arithmetic, no tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STEP_ROWS = 2048
"""Tokens of a packed batch; only a longer row makes a larger one."""
LEAST_ROWS = 256
"""Tokens of a batch when memory is short."""
RUNTIME_BYTES = 1130 << 20
"""Memory of a process besides weights and steps; measured on the small base."""
PACKED_BYTES = {"int8": 1.0, "nf4": 0.5625}
"""Bytes per weight of the layers in a quantised base."""
LEAST_RUNTIME_BYTES = 400 << 20
"""Least of that memory with which a process works."""
FULL_BYTES = 16
"""Bytes per weight under full tuning: master, gradient and two moments in float32."""
COPY_BYTES = 4
"""Bytes per weight beside them: the products' copy, and the model that is served for the comparison with training."""


@dataclass(frozen=True)
class BaseShape:
    """The numbers of a base model that decide its cost."""

    parameters: int
    layers: int
    width: int
    feed_forward: int
    embeddings: int = 0
    """Number of parameters that are never quantised."""
    quantisation: Literal["int8", "nf4"] | None = None

    @classmethod
    def load(cls, folder: Path | str, quantisation: Literal["int8", "nf4"] | None = None) -> BaseShape:
        """From the base's configuration, without biases and norms."""
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config", config)
        layers, width, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        attention = width * head * 2 * (heads + (config.get("num_key_value_heads") or heads))
        embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings", True) else 2)
        parameters = int(layers * (attention + 3 * width * inner) + embeddings)
        return cls(parameters, layers, width, inner, int(embeddings), quantisation)

    def peak_bytes(self, rows: int = STEP_ROWS) -> int:
        """Peak memory: weights and their merged copy in 2 bytes each, the activations of one packed batch for its
        backward pass, and the runtime. A quantised base has no merged copy."""
        weights = self.weight_bytes if self.quantisation else 2 * self.weight_bytes
        return weights + rows * self.layers * self._row_bytes + RUNTIME_BYTES

    @property
    def least_bytes(self) -> int:
        """Least memory of a run: weights, small batches with one tensor kept per layer, a small runtime."""
        return self.weight_bytes + self._least_step_bytes + LEAST_RUNTIME_BYTES

    def full_peak_bytes(self, rows: int = STEP_ROWS) -> int:
        """Peak memory of a run that tunes all weights."""
        return self.full_state_bytes + rows * self.layers * self._row_bytes + RUNTIME_BYTES

    @property
    def full_least_bytes(self) -> int:
        """Least memory of a run that tunes all weights."""
        return self.full_state_bytes + self._least_step_bytes + LEAST_RUNTIME_BYTES

    @property
    def full_state_bytes(self) -> int:
        """Memory of the weights and their training state."""
        return (FULL_BYTES + COPY_BYTES) * self.parameters

    @property
    def _least_step_bytes(self) -> int:
        return LEAST_ROWS * (self.layers * 6 * self.width + 3 * self._row_bytes)

    @property
    def weight_bytes(self) -> int:
        each = PACKED_BYTES[self.quantisation] if self.quantisation else 2
        return int(each * (self.parameters - self.embeddings)) + 2 * self.embeddings

    @property
    def _row_bytes(self) -> int:
        return (12 * self.width + 3 * self.feed_forward) * 2


VALUE_BYTES = 4


def adapter_bytes(base: Path, rank: int) -> int:
    """Memory of an adapter on every projection; 0 if the base's shape is unknown."""
    try:
        config = json.loads((base / "config.json").read_bytes())
        width, inner, layers = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return VALUE_BYTES * rank * layers * (4 * 2 * width + 3 * (width + inner))


def model_bytes(base: Path) -> int:
    """Size of all weights of a base in float32; 0 if the base's shape is unknown."""
    try:
        return VALUE_BYTES * BaseShape.load(base).parameters
    except (OSError, ValueError, KeyError, TypeError):
        return 0


EPOCHS_UNKNOWN = 4
MOST_CHECKPOINTS = 10
"""From ten epochs on a run has about ten checkpoints."""


def checkpoint_bytes(size: int, epochs: int | None, last_only: bool) -> int:
    """Bytes of two resume points and of all checkpoints, each here and in its bucket, with `size` bytes of trained
    values."""
    checkpoints = 1 if last_only else min(epochs or EPOCHS_UNKNOWN, MOST_CHECKPOINTS)
    return size * (2 * 3 + 2 * checkpoints)
