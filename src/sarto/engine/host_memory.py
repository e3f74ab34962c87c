"""Memory of this machine for an engine on the CPU: the free memory, and how glibc handles freed pages."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

from sarto.contract.tuning_run import Remedy
from sarto.errors import ResourceExhausted
from sarto.system.memory import available_memory_bytes, kernel_bytes

UNKNOWN_BYTES = 4 << 30
"""Taken to be free on a system that does not report it."""


class ShortOfMemory(ResourceExhausted):
    """A run that does not fit, and the changes with which it would."""

    def __init__(self, message: str, remedies: list[Remedy]) -> None:
        super().__init__(message)
        self.remedies = remedies


def free_memory_bytes(device: torch.device) -> int:
    """Free memory of the device; on a processor the least that the machine, the control group and the limit of this
    process leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = available_bytes()
    bound = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if bound != resource.RLIM_INFINITY:
        free = min(free, max(0, bound - (kernel_bytes(Path("/proc/self/status"), "VmData") or 0)))
    return free


def available_bytes() -> int:
    """Of the machine and the control group."""
    free = available_memory_bytes()
    return UNKNOWN_BYTES if free is None else free


MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2


KEPT = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20))


def keep_pages() -> None:
    """Keep freed pages in the process, so that no step has to allocate them again."""
    if library := _glibc():
        for option, size in KEPT:
            library.mallopt(option, size)


def return_pages() -> None:
    """Return the free pages between allocated blocks to the system; takes milliseconds."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "gnu_get_libc_version") else None
