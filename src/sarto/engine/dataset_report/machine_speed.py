"""The speed of this machine for forecasts, measured in a moment. Loads torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from sarto.engine.dataset_report.forecast import Machine
from sarto.engine.ops.select import native_dtype
from sarto.system.memory import available_memory_bytes
from sarto.system.processor import cpu

SIZE, TRIED_SIZE = 1024, 256
SECONDS = 0.06
FAR_BEHIND = 8
"""A precision that is this many times slower on a small product is not measured on a large one. In bfloat16 that takes
seconds on a processor without instructions for it."""


def measure(threads: int, dtype: str = "auto") -> Machine:
    """The machine as a run on `threads` threads or the accelerator would use it, in its native precision or another."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = str(native_dtype(device)).removeprefix("torch.") if dtype == "auto" else dtype
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Machine("cuda", threads, _speed("cuda", torch.bfloat16, time.perf_counter), free, name, precision)
    speed = threads * max(_thread_speed(torch.float32), _thread_speed(torch.bfloat16))
    return Machine("cpu", threads, speed, available_memory_bytes() or 0, cpu()[0], precision)


def processor_speed(kind: torch.dtype, threads: int) -> float:
    """Operations per second of `threads` on an idle machine, measured on one thread by its processor time. Other load
    takes wall time from a thread but hardly any processor time."""
    return threads * _thread_speed(kind)


@cache
def _thread_speed(kind: torch.dtype) -> float:
    """The speed of one thread, measured once, because every check of a dataset needs it while the worker generates."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tried = _product_speed("cpu", kind, TRIED_SIZE, time.thread_time)
        is_far_behind = kind != torch.float32 and FAR_BEHIND * tried < _thread_speed(torch.float32)
        return tried if is_far_behind else _speed("cpu", kind, time.thread_time)
    finally:
        torch.set_num_threads(before)


def _speed(device: str, kind: torch.dtype, clock: Callable[[], float]) -> float:
    """Floating-point operations per second of a square product, the maximum of several."""
    best, until = _product_speed(device, kind, SIZE, clock), clock() + SECONDS
    while clock() < until:
        best = max(best, _product_speed(device, kind, SIZE, clock))
    return best


def _product_speed(device: str, kind: torch.dtype, size: int, clock: Callable[[], float]) -> float:
    """Operations per second of one product, after a small one as warm-up."""
    small, one = (torch.ones(side, side, dtype=kind, device=device) for side in (32, size))
    float((small @ small)[0, 0])
    started = clock()
    product = one @ one
    float(product[0, 0])  # waits for an accelerator
    return 2.0 * size**3 / max(clock() - started, 1e-9)
