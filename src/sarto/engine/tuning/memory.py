"""How a step is cut to fit: a ladder of ways to use less memory, and the first rung that fits what is free.

Estimates are of what a step holds beside base and adapter; they err on the high side. Used by `engine/run.py`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sarto.engine.families.decoder import DecoderConfig
from sarto.engine.ops.fused import ROOM
from sarto.engine.ops.plain import LOSS_ROWS
from sarto.engine.ops.segments import QUERY_BLOCK
from sarto.engine.tuning.supervised import MemoryPlan
from sarto.errors import ResourceExhausted

ROW_BUDGET = 2048
"""Rows of a batch; more make no product faster on a processor."""
USABLE = 0.8
"""Share of the free memory a step may plan with."""
LADDER = (
    MemoryPlan(ROW_BUDGET),
    MemoryPlan(ROW_BUDGET, keep_attention=False),
    MemoryPlan(1024, keep_attention=False),
    MemoryPlan(512, keep_attention=False),
    MemoryPlan(512, keep_attention=False, recompute_layers=True),
    MemoryPlan(256, keep_attention=False, recompute_layers=True),
)
GPU_ROWS = 8
"""A GPU wants batches this many times as large."""
LOW_MEMORY = 3
"""The rung where the low-memory mode starts."""


@dataclass(frozen=True)
class StepShape:
    longest: int
    """Tokens of the longest example."""
    step_tokens: int
    """Tokens of the largest step."""


def choose_memory(
    config: DecoderConfig,
    dtype: torch.dtype,
    step: StepShape,
    free_bytes: int,
    *,
    low: bool = False,
    is_gpu: bool = False,
) -> MemoryPlan:
    """The first rung that fits. Raises ResourceExhausted, saying how long an example may be, when none does."""
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
    """What one batch holds at its peak."""
    size = dtype.itemsize
    rows = max(step.longest, min(plan.token_budget, step.step_tokens))
    heads = config.head_shape.total * config.head_dim
    answers = config.heads * config.head_dim
    row = 2 * (4 * config.width + size * (config.width + ROOM))  # both norms: the stream, and the normed input
    row += size * (int(1.3 * heads) + answers + ROOM + 3 * config.feed_forward + 2 * ROOM)
    if plan.keep_attention:
        row += int(0.8 * size * config.heads * (step.longest + QUERY_BLOCK))
    transient = 3 * row + size * config.heads * QUERY_BLOCK * 4
    kept = (4 + size) * config.width if plan.recompute_layers else row
    logits = LOSS_ROWS * config.vocabulary * (size + 8)
    return rows * (config.layers * kept + transient) + logits


def free_memory_bytes(device: torch.device) -> int:
    """Of the device; on a processor what the machine, the control group and the bound of this process leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_kernel_says(Path("/proc/meminfo"), "MemAvailable")]
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        limits.append(int(limit) - int((group / "memory.current").read_text()))
    bound = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if bound != resource.RLIM_INFINITY:
        limits.append(max(0, bound - _kernel_says(Path("/proc/self/status"), "VmData")))
    return min(limits)


def _kernel_says(path: Path, name: str) -> int:
    """Bytes; a machine without /proc is taken to have 8 GiB free."""
    if not path.exists():
        return 8 << 30
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}")
