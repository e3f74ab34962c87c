"""Memory that was freed, in a process of its own: what the heap's holes take, before and after they are given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from pathlib import Path
from sarto.engine.host_memory import keep_pages, return_pages

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

keep_pages()
blocks = [torch.ones(16 << 10) for _ in range(4096)]
full = resident()
del blocks[::2]
kept = resident()
return_pages()
print(full, kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells glibc")
def test_what_was_freed_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    full, kept, left = map(int, done.stdout.split())
    assert kept > full - 16
    assert left < kept - 100  # of the 128 MiB that were freed between others
