"""What this machine can do, measured in a moment, for forecasts. Loads torch, as only `batches` does beside it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from sarto.engine.data.forecast import Machine

SIZE = 1024
SECONDS = 0.03


def measure(threads: int) -> Machine:
    """The machine as `threads` of it or its accelerator would work on a run."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Machine("cuda", threads, _speed("cuda", torch.bfloat16), free)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        speed = _speed("cpu", max((torch.float32, torch.bfloat16), key=lambda kind: _speed("cpu", kind, 0.0)))
    finally:
        torch.set_num_threads(before)
    return Machine("cpu", threads, speed, _free_memory())


def _speed(device: str, kind: torch.dtype, seconds: float = SECONDS) -> float:
    """Floating-point operations per second of a square product: the fastest of a moment, least moved by other load."""
    one = torch.ones(SIZE, SIZE, dtype=kind, device=device)
    float((one @ one)[0, 0])
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        product = one @ one
        float(product[0, 0])  # waits for an accelerator
        best = min(best, time.perf_counter() - started)
    return 2.0 * SIZE**3 / best


def _free_memory() -> int:
    """Bytes that can be had without swapping; 0 where the system does not say."""
    information = Path("/proc/meminfo")
    if not information.exists():
        return 0
    lines = (line.split() for line in information.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
