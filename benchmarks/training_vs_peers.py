"""Our training against its peers on the same examples, step by step in turn.

The peers have an environment of their own, which this program makes once. A peer takes a step; then our worker takes a
step on the very examples that the peer's step held; so both meet the same load of the machine. Ratios are of seconds,
or with `--processor-seconds` of processor seconds, which other load hardly moves (use `--threads 1` with it). `--json`
prints one object at the end.

`--device cuda` compares on a GPU, with `--shape` on a base of that shape with random weights: `share_of_peak` is then
the model FLOP utilisation (4 operations for each frozen weight and token) of the product ceiling measured there.
`--shape tiny --device cpu` only shows that the program runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from processor import show_processor
from sarto.contract.common import Files
from sarto.contract.places import Places
from sarto.control.executors.executor import Executor, Launch, clean_environment
from sarto.control.executors.local import LocalExecutor
from sarto.control.executors.warm import WarmExecutor
from training.data import write
from training.shapes import SHAPES, write_base

HERE = Path(__file__).parent / "training"
PEER_PACKAGES = (f"torch=={torch.__version__.partition('+')[0]}", "trl==1.16.0", "peft==0.21.2", "transformers==5.23.0")
DEFAULTS = "trl defaults"
FULL = "trainer float32, all weights"
"""Its numbers are printed with the others, and are in no summary of the adapters' ratios."""
PEERS: dict[str, list[str]] = {
    DEFAULTS: ["--kind", "trl"],
    "trl bf16 weights, packing": [
        "--kind", "trl", "--weights", "bfloat16", "--autocast", "off", "--checkpointing", "off", "--packing",
    ],
    "trainer bf16 weights": ["--kind", "trainer", "--weights", "bfloat16", "--autocast", "off"],
    "trainer bf16 weights, eager attention": [
        "--kind", "trainer", "--weights", "bfloat16", "--autocast", "off", "--attention", "eager",
    ],
    "trainer bf16 weights, by length": [
        "--kind", "trainer", "--weights", "bfloat16", "--autocast", "off", "--by-length",
    ],
    "trainer float32": ["--kind", "trainer", "--autocast", "off"],
    FULL: ["--kind", "trainer", "--autocast", "off", "--checkpointing", "off", "--full"],
}  # fmt: skip
UNSLOTH_STYLE = ["--kind", "trl", "--weights", "bfloat16", "--autocast", "off", "--liger", "--packing"]
GPU_PEERS: dict[str, list[str]] = {
    DEFAULTS: PEERS[DEFAULTS],
    "trl bf16 weights, packing": PEERS["trl bf16 weights, packing"],
    "trainer bf16 weights": PEERS["trainer bf16 weights"],
    "unsloth-style: bf16, Liger kernels, packing": [*UNSLOTH_STYLE, "--checkpointing", "off"],
    "unsloth-style, layers computed twice": UNSLOTH_STYLE,
}
"""What Unsloth sets on TRL, with the kernels that install beside it: half weights, fused kernels, packed rows."""
GPU_PACKAGES = ("liger-kernel==0.8.5",)
SHARE_ROUNDS = 5
WARM_STEPS = {"cpu": 1, "cuda": 4}
"""On a GPU the first steps wait for compilers."""


@dataclass
class Measured:
    """Steps of a peer and of ours on the same examples; warm-up steps are left out."""

    peer: list[dict[str, Any]] = field(default_factory=list)
    ours: list[dict[str, Any]] = field(default_factory=list)
    peer_start_seconds: float = 0.0

    def ratio(self, clock: str) -> float:
        return float(sum(step[clock] for step in self.peer) / sum(step[clock] for step in self.ours))

    def tokens_per_second(self, who: list[dict[str, Any]], clock: str) -> float:
        tokens = sum(len(ids) for step in self.peer for ids, _ in step["examples"])
        return float(tokens / sum(step[clock] for step in who))


class Worker:
    """A child process that takes one step for each line."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.started = time.perf_counter()
        self.errors = folder / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
                cwd=folder,
            )  # fmt: skip

    def step(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for answer in self.process.stdout:
            if answer.startswith("STEP "):
                found: dict[str, Any] = json.loads(answer.removeprefix("STEP "))
                return found
        raise SystemExit(f"a worker ended without a step:\n{self.errors.read_text()[-2000:]}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


def make_environment(folder: Path, device: str) -> Path:
    """The peers' interpreter; installed once."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        packages = PEER_PACKAGES + (GPU_PACKAGES if device == "cuda" else ())
        print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "ready").touch()
    return python


class Bench:
    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.python = make_environment(given.environment, given.device)
        self.base = write_base(folder / "base", given.shape, given.base) if given.shape else given.base
        self.warm_steps = WARM_STEPS[given.device]
        self.data = write(folder / "data")
        self.threads = {"OMP_NUM_THREADS": str(given.threads)}

    def ours(self, *flags: str) -> Worker:
        command = [sys.executable, str(HERE / "ours.py"), "--base", str(self.base)]
        command += ["--threads", str(self.given.threads), "--device", self.given.device, *flags]
        return Worker(command, clean_environment(os.environ) | self.threads, self.folder)

    def compare(self, name: str, data: str, steps: int) -> Measured:
        """Peer and ours in turn on the same examples. The peer has one step more to do, for else it would end, and take
        a core to do so, while ours takes its last one."""
        measured = Measured()
        peers = PEERS if self.given.device == "cpu" else GPU_PEERS
        command = [str(self.python), str(HERE / "peer.py"), *peers[name], "--base", str(self.base)]
        command += ["--data", str(self.data[data]), "--steps", str(steps + 1), "--device", self.given.device]
        peer = Worker(command, {**os.environ, **self.threads, "TOKENIZERS_PARALLELISM": "false"}, self.folder)
        ours = self.ours("--full") if name == FULL else self.ours()
        for number in range(steps):
            theirs = peer.step("go")
            if number == 0:
                measured.peer_start_seconds = time.perf_counter() - peer.started
            mine = ours.step(json.dumps(theirs["examples"]))
            if number >= self.warm_steps:
                measured.peer.append(theirs)
                measured.ours.append(mine)
        peer.close()
        ours.close()
        clock = self.clock
        losses = [[round(step["loss"], 3) for step in who] for who in (measured.peer, measured.ours)]
        print(
            f"{data:9} {name:40} {measured.tokens_per_second(measured.peer, clock):7.0f} tokens/s, "
            f"ours {measured.tokens_per_second(measured.ours, clock):7.0f}: {measured.ratio(clock):.2f}x; "
            f"losses {losses[0]} and {losses[1]}; "
            f"peak {measured.peer[-1]['peak_bytes'] >> 20} and {measured.ours[-1]['peak_bytes'] >> 20} MiB",
            file=sys.stderr,
        )
        return measured

    def share_of_ceiling(self, steps: list[dict[str, Any]]) -> tuple[float, float]:
        """(share, mean ceiling in operations a second) of these steps taken one after another, as a run takes them: a
        process that has waited for a peer's long step first has to get its memory back into the caches. The ceiling is
        measured before and after each step, since a shared machine does not keep its speed."""
        worker = self.ours()
        lines = [json.dumps(step["examples"]) for step in steps]
        for line in lines:  # each shape once
            worker.step(line)
        done = possible = seconds = 0.0
        ceiling = worker.step("[]")["peak_flops"]
        for line in lines * SHARE_ROUNDS:
            before, taken = ceiling, worker.step(line)
            ceiling = worker.step("[]")["peak_flops"]
            done += taken["flops"]
            seconds += taken[self.clock]
            possible += taken[self.clock] * (before + ceiling) / 2
        worker.close()
        return done / possible, possible / seconds

    @property
    def clock(self) -> str:
        return "processor_seconds" if self.given.processor_seconds else "seconds"

    def start_seconds(self) -> float:
        """Process start to the end of the first step of a whole run, data stage included, nothing cached."""
        folder = self._spec(f"start-{time.monotonic_ns()}")
        executor = LocalExecutor(clean_environment(os.environ) | self.threads)
        return self._first_step(executor, folder, folder / "cache")

    def warm_start_seconds(self) -> list[float]:
        """The same for three jobs that follow a first one on the same base and data, in a warm service."""
        files = Files(read=[], write=[str(self.folder)])
        executor = WarmExecutor(clean_environment(os.environ) | self.threads, 600.0, files)
        cache = self.folder / "warm-cache"
        seconds = [self._first_step(executor, self._spec(f"warm-{number}"), cache) for number in range(4)]
        executor.close()
        return seconds[1:]

    def _spec(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        base = {"name": "base", "folder": f"models/{self.base.name}", "digest": "bench"}
        dataset = folder / "train.jsonl"
        rows = [json.loads(line) for line in self.data["short"].read_text().splitlines()]
        dataset.write_text("".join(json.dumps({"messages": r["prompt"] + r["completion"]}) + "\n" for r in rows))
        spec = {
            "job": "bench", "epoch": 1, "run_folder": "workspace", "method": "supervised", "base": base,
            "threads": self.given.threads,
            "training_dataset": {
                "uri": "train.jsonl", "path": f"workspace/{dataset.name}", "size_bytes": dataset.stat().st_size,
            },
            "parameters": {"rank": 16, "alpha": 32, "epoch_count": 1, "batch_size": 8, "learning_rate": 2e-4},
            "max_tokens_per_example": 2048, "cache_folder": "tokens",
        }  # fmt: skip
        (folder / "spec.json").write_text(json.dumps(spec))
        return folder

    def _first_step(self, executor: Executor, folder: Path, cache: Path) -> float:
        started = time.perf_counter()
        cache.mkdir(exist_ok=True)
        places = Places({"models": self.base.parent, "workspace": folder, "tokens": cache})
        run = executor.start(Launch("run", "workspace/spec.json", places, folder / "run.log"))
        progress = folder / "progress.jsonl"
        while not (progress.exists() and '"kind":"step"' in progress.read_text()):
            if run.poll() is not None:
                raise SystemExit(f"our run ended before its first step:\n{(folder / 'run.log').read_text()[-2000:]}")
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        run.stop(0.0)
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path.home() / ".cache/sarto/models/smollm2-135m-instruct")
    parser.add_argument("--environment", type=Path, default=Path.home() / ".cache/sarto/benchmarks/training-peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--processor-seconds", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=SHAPES, help="a base of this shape with random weights")
    parser.add_argument("--peers", nargs="+", help="names of peers; all of the device by default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    show_processor()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    known = PEERS if given.device == "cpu" else GPU_PEERS
    given.peers = given.peers or list(known)
    if unknown := set(given.peers) - set(known):
        parser.error(f"no such peers on {given.device}: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(report(Bench(given, Path(folder)), given), indent=None if given.json else 1))


def report(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    clock = bench.clock
    found = {name: bench.compare(name, "short", given.steps + bench.warm_steps) for name in given.peers}
    whole = found.pop(FULL, None)
    full = {} if whole is None else {
        "full_over_trainer": round(whole.ratio(clock), 2),
        "full_memory_over_trainer": round(whole.ours[-1]["peak_bytes"] / whole.peer[-1]["peak_bytes"], 3),
    }  # fmt: skip
    if not found and full:
        return full | {"clock": clock, "threads": given.threads, "torch": torch.__version__}
    long = bench.compare(DEFAULTS, "longtail", given.steps + bench.warm_steps)
    defaults = (
        found[DEFAULTS] if DEFAULTS in found else bench.compare(DEFAULTS, "short", given.steps + bench.warm_steps)
    )
    low = bench.ours("--low-memory")
    for step in defaults.peer:
        lowest = low.step(json.dumps(step["examples"]))
    low.close()
    start = statistics.median(bench.start_seconds() for _ in range(3))
    warm = statistics.median(bench.warm_start_seconds())
    others = {name: each.ratio(clock) for name, each in found.items() if name != DEFAULTS}
    best = min(others, key=lambda name: others[name]) if others else ""
    share, ceiling = bench.share_of_ceiling(defaults.peer)
    peer_peak = defaults.peer[-1]["peak_bytes"]
    return {
        "over_trl_defaults_short": round(defaults.ratio(clock), 2),
        "over_trl_defaults_longtail": round(long.ratio(clock), 2),
        "over_best_peer": round(others[best], 2) if best else None,
        "best_peer": best,
        "share_of_peak": round(share, 3),
        "memory_over_trl": round(defaults.ours[-1]["peak_bytes"] / peer_peak, 3),
        "memory_over_trl_low_memory": round(lowest["peak_bytes"] / peer_peak, 3),
        "start_over_trl": round(start / defaults.peer_start_seconds, 3),
        "warm_start_over_trl": round(warm / defaults.peer_start_seconds, 3),
        "start_seconds": round(start, 2),
        "warm_start_seconds": round(warm, 2),
        "tokens_per_second": round(defaults.tokens_per_second(defaults.ours, clock)),
        "peak_gflops": round(ceiling / 1e9),
        "clock": clock,
        "threads": given.threads,
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "base": given.shape or given.base.name,
        **full,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
