"""Memory plans for a step: a list of plans with decreasing memory, and the first that fits the free memory.

Estimates are of the memory of a step besides base and adapter; they err on the high side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sarto.engine.models.decoder import DecoderConfig
from sarto.engine.ops.operands import ROOM
from sarto.engine.ops.reference import LOSS_ROWS
from sarto.engine.ops.segments import QUERY_BLOCK
from sarto.engine.tuning.packing import MemoryPlan, epoch_order
from sarto.errors import ResourceExhausted

ROW_BUDGET = 2048
"""Rows of a batch; more rows do not make a product faster on a processor."""
USABLE = 0.8
"""Share of the free memory that a step may use."""
LADDER = (
    MemoryPlan(ROW_BUDGET),
    MemoryPlan(ROW_BUDGET, keep_attention=False),
    MemoryPlan(1024, keep_attention=False),
    MemoryPlan(512, keep_attention=False),
    MemoryPlan(512, keep_attention=False, recompute_layers=True),
    MemoryPlan(256, keep_attention=False, recompute_layers=True),
)
GPU_ROWS = 8
"""Factor of ROW_BUDGET on a GPU."""
LOW_MEMORY = 3
"""First plan of the low-memory mode."""


@dataclass(frozen=True)
class StepShape:
    longest: int
    """Tokens of the longest example."""
    step_tokens: int
    """Tokens of the largest step."""

    @classmethod
    def of(cls, lengths: np.ndarray[Any, np.dtype[np.int64]], batch_size: int, seed: int, longest: int) -> StepShape:
        """The sizes for steps of this many examples with these lengths; the longest row has `longest` tokens. The first
        epoch's order is used; later epochs differ little, and the budget limits each batch."""
        ordered = lengths[epoch_order(len(lengths), seed, 1)]
        return cls(longest, max(int(ordered[i : i + batch_size].sum()) for i in range(0, len(ordered), batch_size)))


def choose_memory(
    config: DecoderConfig,
    dtype: torch.dtype,
    step: StepShape,
    free_bytes: int,
    *,
    low: bool = False,
    is_gpu: bool = False,
) -> MemoryPlan:
    """The first plan that fits. Raises ResourceExhausted with the longest possible example if none does."""
    ladder = [replace(plan, token_budget=plan.token_budget * (GPU_ROWS if is_gpu else 1)) for plan in LADDER]
    for plan in ladder[LOW_MEMORY if low else 0 :]:
        if step_bytes(config, dtype, step, plan) <= free_bytes * USABLE:
            return plan
    last = ladder[-1]
    fits = max(
        (
            n
            for n in range(0, step.longest, 64)
            if step_bytes(config, dtype, StepShape(n, n), last) <= free_bytes * USABLE
        ),
        default=0,
    )
    needed = step_bytes(config, dtype, step, last)
    raise ResourceExhausted(
        f"A training step with the longest example, {step.longest} tokens, needs about {needed >> 20} MiB beside the "
        f"base model, and {free_bytes >> 20} MiB are free. "
        f"Examples of up to {fits} tokens would fit; shorten or split the longer ones, or free memory."
    )


def step_bytes(config: DecoderConfig, dtype: torch.dtype, step: StepShape, plan: MemoryPlan) -> int:
    """Peak memory of one batch."""
    size = dtype.itemsize
    rows = max(step.longest, min(plan.token_budget, step.step_tokens))
    heads = config.head_shape.total * config.head_dim
    answers = config.heads * config.head_dim
    row = 2 * (4 * config.width + size * (config.width + ROOM))  # both norms: the stream, and the normed input
    row += size * (int(1.3 * heads) + answers + ROOM + 3 * config.feed_forward + 2 * ROOM)
    if plan.keep_attention:
        row += int(0.8 * size * config.heads * (step.longest + QUERY_BLOCK))
    transient = 3 * row + size * config.heads * QUERY_BLOCK * 4
    row_bytes = (4 + size) * config.width if plan.recompute_layers else row
    logits = LOSS_ROWS * config.vocabulary * (size + 8)
    return rows * (config.layers * row_bytes + transient) + logits


def describe(plan: MemoryPlan, step: StepShape) -> str:
    attention = "attention weights kept" if plan.keep_attention else "attention weights computed twice"
    layers = ", layers computed twice" if plan.recompute_layers else ""
    return f"batches of up to {max(plan.token_budget, step.longest)} tokens, {attention}{layers}"
