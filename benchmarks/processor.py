"""The processor's name, which every table of results must show."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """As the system has it, with how many cores of it are ours."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(reversed([[word.strip() for word in line.split(":", 1)] for line in lines if ":" in line]))
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = f", family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return f"{name}{numbers}, {os.cpu_count()} cores, {' '.join(known) or platform.machine()}"


def show_processor() -> None:
    """On the error stream, so that what a program prints for other programs stays as it is."""
    print(f"processor: {processor()}", file=sys.stderr, flush=True)
