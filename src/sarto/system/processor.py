"""Tests of the processor: the instructions whose matrix products are correct at the shapes of a base.

torch's products come from oneDNN, which uses the newest instructions up to `ONEDNN_MAX_CPU_ISA` in the environment that
torch is loaded in. A child process (`sarto.engine.programs.processor_trial`) tests products before a run or a serving
worker starts. Wrong products are tested again with fewer instructions. Results are cached in a file, keyed by all their
inputs. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sarto.errors import FailedPrecondition, Unavailable
from sarto.system import failpoints
from sarto.system.files import write_whole

logger = logging.getLogger(__name__)

VARIABLE = "ONEDNN_MAX_CPU_ISA"
LEVELS = ("ALL", "AVX512_CORE_BF16", "AVX512_CORE", "AVX2")
"""Instruction levels, from everything that a processor has, including matrix tiles, down to those of every server."""
DECIDING = (VARIABLE, "ATEN_CPU_CAPABILITY", failpoints.VARIABLE)
"""Environment variables that affect the result of a product."""
PROGRAM = "sarto.engine.programs.processor_trial"
TRIAL_SECONDS = 300.0
WRONG_SIGNALS = (signal.SIGILL, signal.SIGSEGV, signal.SIGFPE)
"""Signals of a child that count as a fault of the processor; any other end is an accident and not stored."""


@dataclass(frozen=True)
class KernelCheck:
    level: str
    """One of LEVELS; empty if no level is correct."""
    faults: dict[str, str] = field(default_factory=dict)
    """Each tested level with a fault, and its description."""

    @property
    def words(self) -> str:
        """The result as text for a job, the log and `sarto doctor`."""
        if not self.faults:
            return "all of this processor's"
        wrong = "; ".join(f"{level}: {fault}" for level, fault in self.faults.items())
        return f"up to {self.level}, since products are wrong with more ({wrong})"


class Processor:
    """This machine's processor, as child processes with this environment test it. Thread-safe."""

    def __init__(self, environment: Mapping[str, str], memory: Path) -> None:
        """`memory`: the file with the results."""
        self._environment, self._memory = dict(environment), memory
        self._lock, self._known = threading.Lock(), dict[str, KernelCheck]()
        self._fewest = self._levels()[0]

    def verdict(self, base: Path | str) -> KernelCheck:
        """The result for the base in a folder, tested if needed. Raises FailedPrecondition if no level is correct,
        Unavailable if the test could not run."""
        shapes = products_of(json.loads((Path(base) / "config.json").read_text(encoding="utf-8")))
        with self._lock:
            key = self._key(shapes)
            known = self._known.get(key) or self.remembered().get(key)
            check = known or self._tried(shapes)
            if known is None:
                self._remember(key, check)
            if key not in self._known:
                level = logging.WARNING if check.faults else logging.INFO
                logger.log(level, "processor tried", extra={"shapes": shapes, "instructions": check.words})
            self._known[key] = check
        return check

    def environment(self, base: Path | str | None = None) -> dict[str, str]:
        """Environment of a process that serves several bases: the lowest level that any of them has needed. Raises as
        `verdict` does."""
        if base is not None:
            self._fewest = max(self._fewest, self.verdict(base).level, key=self._levels().index)
        variables = {name: value for name, value in self._environment.items() if name != failpoints.VARIABLE}
        return variables | {VARIABLE: self._fewest}

    def verdicts(self) -> list[KernelCheck]:
        """Stored results for this machine, for any shapes."""
        return [verdict for key, verdict in self.remembered().items() if key.startswith(self._machine())]

    def remembered(self) -> dict[str, KernelCheck]:
        """Results by processor, versions, environment and shapes. An unreadable file counts as empty."""
        try:
            checks = json.loads(self._memory.read_text(encoding="utf-8"))
            return {key: KernelCheck(**value) for key, value in checks.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _tried(self, shapes: list[tuple[int, int]]) -> KernelCheck:
        faults: dict[str, str] = {}
        for level in self._levels():
            fault = self._fault(level, shapes)
            if not fault:
                return KernelCheck(level, faults)
            faults[level] = fault
        raise FailedPrecondition(
            "This processor multiplies wrong with every set of instructions that was tried ("
            + "; ".join(f"{level}: {fault}" for level, fault in faults.items())
            + "): nothing can be tuned or served on it. Try another version of torch, or another machine."
        )

    def _levels(self) -> tuple[str, ...]:
        """Levels from the operator's upper bound down."""
        level = self._environment.get(VARIABLE, "").upper() or LEVELS[0]
        return LEVELS[LEVELS.index(level) :] if level in LEVELS else (level, LEVELS[-1])

    def _fault(self, level: str, shapes: list[tuple[int, int]]) -> str:
        """The fault of products at a level; empty if they are correct."""
        try:
            child = subprocess.run(
                [sys.executable, "-m", PROGRAM], input=json.dumps({"level": level, "shapes": shapes}),
                env=self._environment | {VARIABLE: level}, capture_output=True, text=True, check=False,
                timeout=TRIAL_SECONDS,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"The processor could not be tried: {error}") from None
        if child.returncode == 0:
            return str(json.loads(child.stdout)["fault"])
        if -child.returncode in WRONG_SIGNALS:
            return f"the process was ended by {signal.Signals(-child.returncode).name}"
        last = (child.stderr.strip().splitlines() or ["without a word"])[-1]
        raise Unavailable(f"The processor could not be tried: its process ended with {child.returncode}: {last}")

    def _key(self, shapes: list[tuple[int, int]]) -> str:
        return f"{self._machine()}, {shapes}"

    def _machine(self) -> str:
        """Everything that decides a product, except its shape."""
        name, features = cpu()
        settings = sorted((name, self._environment.get(name, "")) for name in DECIDING)
        digest = hashlib.sha256(f"{features} {settings}".encode()).hexdigest()[:16]
        return f"{name} ({digest}), torch {version('torch')}, sarto {version('sarto')}"

    def _remember(self, key: str, check: KernelCheck) -> None:
        checks = {known: asdict(verdict) for known, verdict in self.remembered().items()} | {key: asdict(check)}
        try:
            self._write(checks)
        except OSError as error:
            logger.warning("results for the processor not stored", extra={"reason": str(error)})

    def _write(self, checks: dict[str, Any]) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._memory, json.dumps(checks, indent=1).encode(), durable=False)


def products_of(config: dict[str, Any]) -> list[tuple[int, int]]:
    """(inputs, outputs) of a base's matrices by its `config.json`; of the vocabulary's matrix only a part."""
    inner = config.get("text_config", config)
    width, heads = int(inner["hidden_size"]), int(inner["num_attention_heads"])
    size = int(inner.get("head_dim") or width // heads)
    keys = int(inner.get("num_key_value_heads") or heads)
    hidden, vocabulary = int(inner["intermediate_size"]), int(inner["vocab_size"])
    some = min(vocabulary, 2048 + vocabulary % 64)
    layer = [(width, (heads + 2 * keys) * size), (heads * size, width), (width, 2 * hidden), (hidden, width)]
    return [*layer, (width, some)]


def cpu() -> tuple[str, str]:
    """The processor's name with its model numbers, which distinguish processors of one name, and its capabilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ""
    fields = dict(reversed([line.partition(":")[::2] for line in lines if ":" in line]))
    info = {key.strip(): value.strip() for key, value in fields.items()}
    features = info.get("flags") or info.get("Features", "")
    numbers = " ".join(info.get(key, "") for key in ("cpu family", "model", "stepping", "microcode"))
    generation = [f"{key.removeprefix('cpu ')} {info[key]}" for key in ("cpu family", "model") if key in info]
    return ", ".join([info.get("model name") or platform.machine(), *generation]), f"{features} {numbers}"
