"""What the machine and its processes say of themselves: memory, and whose the processors were."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def memory(pid: int, which: str = "VmHWM") -> int:
    """Resident bytes of a process: the most it had (VmHWM), or now (VmRSS)."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def holdings(pid: int) -> str:
    """Where the resident memory of a process lies, the largest first: for whoever has to find out."""
    sizes: Counter[str] = Counter()
    place = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            place = words[5].rpartition("/")[2] if len(words) > 5 else "anonymous"
        elif words[0] == "Rss:":
            sizes[place] += int(words[1])
    return ", ".join(f"{name} {size >> 10} MiB" for name, size in sizes.most_common(6))


def worker_of(pid: int) -> int:
    """The process of a service that generates."""
    (found,) = [one for one in _children(pid) if b"sarto.serving.worker" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return found


@dataclass
class Processors:
    """Counts, from its making on, the time of all processors that other programs than this one's took."""

    began: tuple[float, float, float] = field(default_factory=lambda: _times())

    @property
    def share_of_others(self) -> float:
        whole, busy, ours = (now - then for now, then in zip(_times(), self.began, strict=True))
        return max(0.0, busy - ours) / max(whole, 0.01)


def _times() -> tuple[float, float, float]:
    """Seconds of all processors together, those in which they worked, and those in which they worked for this process
    and all that it started."""
    values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = values[3] + values[4]
    ours = sum(_spent(pid) for pid in (os.getpid(), *_descendants(os.getpid())))
    return sum(values) / TICKS, (sum(values) - idle) / TICKS, ours


def _spent(pid: int) -> float:
    """Of a process and those children of it that have ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(word) for word in words[11:15]) / TICKS


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _children(pid: int) -> list[int]:
    try:
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(word) for task in tasks for word in task.read_text().split()]
    except OSError:
        return []
