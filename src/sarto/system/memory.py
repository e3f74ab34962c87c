"""The memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def machine_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Memory of this machine, or of its control group if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _limit(cgroup)
    return total if limit is None else min(total, limit)


def available_memory_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Memory that can be had now without swapping, of this machine or its control group, whichever has less. None on a
    system that does not report it."""
    free = kernel_bytes(meminfo, "MemAvailable")
    limit = _limit(cgroup)
    if free is None or limit is None:
        return free
    return min(free, max(0, limit - int((cgroup / "memory.current").read_text())))


def kernel_bytes(path: Path, name: str) -> int | None:
    """A size from a file in /proc with lines such as `VmData: 1024 kB`; None without such a file or line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _limit(cgroup: Path) -> int | None:
    try:
        text = (cgroup / "memory.max").read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
