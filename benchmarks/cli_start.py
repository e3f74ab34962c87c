"""The time to start a client command of `sarto`, as a ratio to starting Python: `python benchmarks/cli_start.py`.

Both are started in turn; the medians of processor and wall time are compared. `--help` imports all that a command needs
and sends nothing.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from processor import processor

SARTO = str(Path(sys.executable).with_name("sarto"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "sarto jobs list": [SARTO, "jobs", "list", "--help"],
    "sarto tune": [SARTO, "tune", "--help"],
    "sarto serve": [SARTO, "serve", "--help"],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one run."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            seconds[name].append(measure(command))
    print(processor())
    first = 0.0
    for name, measured in seconds.items():
        wall, own = (statistics.median(column) for column in zip(*measured, strict=True))
        first = first or own
        print(f"{name:<18} {wall * 1000:6.0f} ms wall  {own * 1000:6.0f} ms of a core  {own / first:5.1f}x")


if __name__ == "__main__":
    main()
