"""The engine's tests under every instruction set that this machine has: `make processors` prints the table.

What limits oneDNN, torch and our own kernels is read once in a process, so each cell is a process of its own. Each
proves first that it is limited as its name says; a cell that this machine cannot run is named with the reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FP16 = "Intel AVX-512 with float16, Intel DL Boost and bfloat16 support"
ISAS = {
    "AVX2": ("Intel AVX2",),
    "AVX512_CORE": ("Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",),
    "AVX512_CORE_VNNI": ("Intel AVX-512 with Intel DL Boost",),
    "AVX512_CORE_BF16": ("Intel AVX-512 with Intel DL Boost and bfloat16 support",),
    "AVX512_CORE_FP16": ("Intel AVX 10.1", FP16),
    "AVX512_CORE_AMX": (
        "Intel AVX10.1 and Intel AMX with bfloat16 and 8-bit integer support",
        f"{FP16} and Intel AMX with bfloat16 and 8-bit integer support",
    ),
}
"""oneDNN's limits, lowest first → what its versions report of themselves under each."""


@dataclass(frozen=True)
class Cell:
    """`kernels`: what torch's limit makes of ours; `is_built` False: the package as it is without a compiler."""

    isa: str
    capability: str
    kernels: str
    is_built: bool = True

    @property
    def name(self) -> str:
        return f"{self.isa}, torch {self.capability}, kernels {self.kernels}"


CELLS = [
    Cell("AVX2", "default", "eager"),
    Cell("AVX2", "avx2", "v3"),
    Cell("AVX512_CORE", "avx512", "v4"),
    Cell("AVX512_CORE_VNNI", "avx512", "v4"),
    Cell("AVX512_CORE_BF16", "avx512", "v4"),
    Cell("AVX512_CORE_BF16", "avx512", "eager", is_built=False),
    Cell("AVX512_CORE_FP16", "avx512", "v4"),
    Cell("AVX512_CORE_AMX", "avx512", "v4"),
]
TESTS = (
    "tests/engine/ops/test_operations.py",
    "tests/engine/ops/test_quantised.py",
    "tests/engine/test_operands.py::test_mixed_adapters_are_answered_the_same_in_poisoned_memory",
    "tests/parity/test_decoder_training.py",
    "tests/parity/test_generation.py",
    "tests/parity/test_parity.py",
    "tests/engine/serving/test_linear_panels.py",
    "tests/engine/serving/test_neighbours.py",
)
"""Operations, steps of training against PEFT's, bases in 8 and 4 bits, certificates, adapters mixed in one step, and
answers that do not depend on their neighbours, in float32 and bfloat16."""
CHOSEN = "not (openmp or built_here or blocks_see or small_base or gemma3 or qwen2 or qwen3 or mistral)"
"""One tiny family; what looks at the build itself, or multiplies nothing, is no matter of instruction sets."""
PROBE = """
import torch
from sarto.engine.ops.select import choose_operations
x, w = torch.ones(64, 64), torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64), 8)
torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
print("capability:" + torch.backends.cpu.get_cpu_capability().lower())
print("kernels:" + choose_operations(torch.device("cpu")).name.split()[-1])
"""


@dataclass(frozen=True)
class Outcome:
    """`result`: "passed", "failed", or "cannot run"; `words` say how many, or why."""

    result: str
    words: str
    seconds: float = 0.0


def run(cell: Cell) -> Outcome:
    """The cell's tests in a process of its own, once it is known to be what its name says."""
    with _environment(cell) as environment:
        telling = environment | {"ONEDNN_VERBOSE": "1"}  # a line for every product, so of the probe alone
        probe = subprocess.run([sys.executable, "-c", PROBE], env=telling, capture_output=True, text=True, cwd=ROOT)
        if probe.returncode:
            return Outcome("failed", probe.stderr[-2000:])
        said = {
            key: value.strip() for key, value in re.findall(r"(?:^|,)(isa|capability|kernels):(.*)", probe.stdout, re.M)
        }
        if said["isa"] not in ISAS[cell.isa]:
            return _not_limited(cell, said["isa"])
        if (said["capability"], said["kernels"]) != (cell.capability, cell.kernels):
            return Outcome("failed", f"limited to {cell.name}, and found {said}")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-m",
            "not gpu",
            "-k",
            CHOSEN,
            *TESTS,
        ]
        started = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    seconds = time.monotonic() - started
    if done.returncode:
        return Outcome(
            "failed", "\n".join([line for line in lines if line.startswith("FAILED")] or lines[-5:]), seconds
        )
    return Outcome("passed", lines[-1].strip("= "), seconds)


def _not_limited(cell: Cell, found: str) -> Outcome:
    """A lower set than the limit is all that this machine has; a higher one means that the limit was not heard."""
    level = next((number for number, names in enumerate(ISAS.values()) if found in names), len(ISAS))
    if level < list(ISAS).index(cell.isa):
        return Outcome("cannot run", f"this machine ends at: {found}")
    return Outcome("failed", f"oneDNN limited to {cell.isa} says that it uses: {found}")


@contextmanager
def _environment(cell: Cell) -> Iterator[dict[str, str]]:
    limits = {"ONEDNN_MAX_CPU_ISA": cell.isa, "ATEN_CPU_CAPABILITY": cell.capability, "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    with tempfile.TemporaryDirectory() as folder:
        source = ROOT / "src"
        if not cell.is_built:
            source = Path(folder) / "src"
            shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
        yield kept | limits | {"PYTHONPATH": str(source), "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Print the table; 1 where a cell failed."""
    failed = 0
    for cell in CELLS:
        outcome = run(cell)
        failed += outcome.result == "failed"
        print(f"{cell.name:47} {outcome.result:10} {outcome.seconds:4.0f} s  {outcome.words}", flush=True)
    print("Not tried: other architectures; on aarch64 our kernels compile, and nobody has run the engine there.")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
