"""What of a base model decides its cost: its shape, and the memory that a run on it takes. Arithmetic, no tensors.

Used by the data report's forecast and by what admits jobs to a server.
"""

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
"""What a process takes beside weights and steps; measured on the small base."""
PACKED_BYTES = {"int8": 1.0, "nf4": 0.5625}
"""Of a weight of the layers in a base that is quantised."""
LEAST_RUNTIME_BYTES = 400 << 20
"""The part of it that cannot be done without."""


@dataclass(frozen=True)
class BaseShape:
    """Of a base model, what decides its cost."""

    parameters: int
    layers: int
    width: int
    feed_forward: int
    embeddings: int = 0
    """Of the parameters, those that are never quantised."""
    quantisation: Literal["int8", "nf4"] | None = None

    @classmethod
    def load(cls, folder: Path | str, quantisation: Literal["int8", "nf4"] | None = None) -> BaseShape:
        """By the base's configuration; biases and norms are left out of the count."""
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
        """Weights and their merged copy in 2 bytes each, what one packed batch keeps for its backward pass, the
        runtime. A quantised base has no merged copy."""
        weights = self._weight_bytes if self.quantisation else 2 * self._weight_bytes
        return weights + rows * self.layers * self._row_bytes + RUNTIME_BYTES

    @property
    def least_bytes(self) -> int:
        """Of a run that makes do: weights, small batches of which each layer keeps one tensor, a small runtime."""
        kept = LEAST_ROWS * (self.layers * 6 * self.width + 3 * self._row_bytes)
        return self._weight_bytes + kept + LEAST_RUNTIME_BYTES

    @property
    def _weight_bytes(self) -> int:
        each = PACKED_BYTES[self.quantisation] if self.quantisation else 2
        return int(each * (self.parameters - self.embeddings)) + 2 * self.embeddings

    @property
    def _row_bytes(self) -> int:
        return (12 * self.width + 3 * self.feed_forward) * 2
