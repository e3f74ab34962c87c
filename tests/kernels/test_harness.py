"""Our kernels against plain arithmetic, compiled for this machine and for aarch64, without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.cpp")
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-static", "-fno-math-errno")
BUILDS = {
    "native": ("g++", ()),
    "x86-64-v3": ("g++", ("-march=x86-64-v3",)),
    "x86-64-v4": ("g++", ("-march=x86-64-v4", "-mprefer-vector-width=512")),
    "aarch64": ("aarch64-linux-gnu-g++", ()),
}


@pytest.mark.parametrize("build", BUILDS)
def test_kernels_equal_plain_arithmetic(build: str, tmp_path: Path) -> None:
    compiler, flags = BUILDS[build]
    start: list[str] = []
    if build == "aarch64" and platform.machine() != "aarch64":
        start = ["qemu-aarch64"]
    elif build == "aarch64":
        compiler = "g++"
    elif build != "native" and not _runs(build):
        pytest.skip(f"this machine has no {build}")
    for program in (compiler, *start):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user")
    binary = str(tmp_path / "harness")
    subprocess.run([compiler, *FLAGS, *flags, str(HARNESS), "-o", binary], check=True, capture_output=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, binary], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("passed") == 10


def _runs(level: str) -> bool:
    """Whether this processor has a level of x86-64."""
    if platform.machine() != "x86_64":
        return False
    flags = Path("/proc/cpuinfo").read_text().split()
    return ("avx2" if level.endswith("v3") else "avx512vl") in flags
