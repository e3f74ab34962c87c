"""Our preference tuning against TRL's DPOTrainer on the same pairs, step by step in turn.

The peer has the environment of `training_vs_peers.py`. It takes a step with its defaults; then our worker takes a step
on the very pairs of that step; so both meet the same load of the machine. Pairs have prompts of about 300 tokens and
answers of about 60. TRL computes its references in every step, ours once before training; here ours computes them in
every step too, which gives the ratio of a first epoch, of later ones, and of a whole job of three epochs, the default
of both. Tokens are those of the pairs as they are rendered, a prompt twice.

`--check` compares numbers instead of seconds: float32, no clipping, the loss of each pair and the norm of the gradient
of the first three steps, which may differ by 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from processor import show_processor
from sarto.control.executors.executor import clean_environment
from training.data import ASIDES, CITIES, DAYS, ITEMS, SYSTEM
from training_vs_peers import HERE, Worker, make_environment

SEED, PAIRS = 11, 64
PROMPT_ASIDES, ANSWER_ASIDES = 15, 3
"""Sentences that give a prompt of about 300 tokens and an answer of about 60."""
EPOCHS = 3
CHECKED_STEPS, CHECKED_ASIDES, TOLERANCE = 3, 2, 1e-3


def text(draw: random.Random, sentences: int) -> str:
    return " ".join(
        draw.choice(ASIDES).format(count=draw.randint(2, 19), day=draw.choice(DAYS), other=draw.choice(ITEMS))
        for _ in range(sentences)
    )


def write_pairs(path: Path, prompt_asides: int) -> None:
    draw = random.Random(SEED)
    rows = []
    for _ in range(PAIRS):
        question = f"Please look at this from {draw.choice(CITIES)}. {text(draw, prompt_asides)}"
        prompt = [{"role": "system", "content": SYSTEM["brief"]}, {"role": "user", "content": question}]
        chosen, rejected = (
            [{"role": "assistant", "content": f"{opening} {text(draw, ANSWER_ASIDES)}"}]
            for opening in ("Open:", "They said a lot of things:")
        )
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Bench:
    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        threads = {"OMP_NUM_THREADS": str(given.threads)}
        data, adapter, plain = folder / "pairs.jsonl", folder / "adapter", ["--plain"] if given.check else []
        write_pairs(data, CHECKED_ASIDES if given.check else PROMPT_ASIDES)
        (folder / "peer").mkdir()
        (folder / "ours").mkdir()
        steps = CHECKED_STEPS if given.check else given.steps + 1
        common = ["--base", str(given.base), "--adapter", str(adapter), *plain]
        python = make_environment(given.environment, "cpu")
        self.peer = Worker(
            [str(python), str(HERE / "dpo_peer.py"), *common, "--data", str(data), "--steps", str(steps + 1)],
            {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"}, folder / "peer",
        )  # fmt: skip
        first = self.peer.step("go")
        self.ours = Worker(
            [sys.executable, str(HERE / "dpo_ours.py"), *common, "--threads", str(given.threads)],
            clean_environment(os.environ) | threads, folder / "ours",
        )  # fmt: skip
        self.steps = [(first, self.ours.step(json.dumps(first["pairs"])))]
        for _ in range(steps - 1):
            theirs = self.peer.step("go")
            self.steps.append((theirs, self.ours.step(json.dumps(theirs["pairs"]))))
        self.peer.close()
        self.ours.close()


def check(bench: Bench) -> dict[str, Any]:
    """The largest differences. Ends with 1 where one is over the tolerance."""
    found = {"loss_difference": 0.0, "norm_difference": 0.0}
    for number, (theirs, mine) in enumerate(bench.steps, 1):
        for left, right in zip(theirs["losses"], mine["losses"], strict=True):
            found["loss_difference"] = max(found["loss_difference"], abs(left - right))
        norm = abs(theirs["gradient_norm"] - mine["gradient_norm"])
        found["norm_difference"] = max(found["norm_difference"], norm)
        print(
            f"step {number}: losses {theirs['losses']} and {mine['losses']}, "
            f"gradient norms {theirs['gradient_norm']:.6f} and {mine['gradient_norm']:.6f}",
            file=sys.stderr,
        )
    return found | {"passed": max(found.values()) <= TOLERANCE}


def ratios(bench: Bench, clock: str) -> dict[str, Any]:
    """The first step of both is left out."""
    steps = bench.steps[1:]
    theirs, ours = (sum(step[side][clock] for step in steps) for side in (0, 1))
    later = sum(mine[f"step_{clock}"] for _, mine in steps)
    tokens = sum(mine["tokens"] for _, mine in steps)
    job = ours + (EPOCHS - 1) * later
    return {
        "over_trl_defaults_first_epoch": round(theirs / ours, 2),
        "over_trl_defaults_later_epochs": round(theirs / later, 2),
        "memory_over_trl": round(steps[-1][1]["peak_bytes"] / steps[-1][0]["peak_bytes"], 3),
        "over_trl_defaults_whole_job": round(EPOCHS * theirs / job, 2),
        "peak_mib": round(steps[-1][1]["peak_bytes"] / 2**20),
        "trl_peak_mib": round(steps[-1][0]["peak_bytes"] / 2**20),
        "tokens_per_second": round(EPOCHS * tokens / job),
        "trl_tokens_per_second": round(tokens / theirs),
        "clock": clock,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path.home() / ".cache/sarto/models/smollm2-135m-instruct")
    parser.add_argument("--environment", type=Path, default=Path.home() / ".cache/sarto/benchmarks/training-peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--processor-seconds", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    show_processor()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
    found = (
        check(bench) if given.check else ratios(bench, "processor_seconds" if given.processor_seconds else "seconds")
    )
    print(json.dumps(found))
    sys.exit(0 if found.get("passed", True) else 1)


if __name__ == "__main__":
    main()
