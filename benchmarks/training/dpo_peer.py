"""TRL's DPOTrainer as a user would call it, one optimiser step per line on standard input.

Runs in the peers' environment, started by `../preference_vs_trl.py`. It first saves the adapter it begins with and
prints where. Then it waits for a line before each step, and prints one JSON object after it: the step's pairs, seconds,
processor seconds, the loss of each of its batches, the norm of the gradient, peak memory so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peer import load_tokenizer
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer

CHECKED_BATCH = 2
"""With one pair a batch and so many of them a step, the loss of each pair is seen."""


class Pace(TrainerCallback):  # type: ignore[misc]
    """Waits before each step, reports after it."""

    def __init__(self) -> None:
        self.report: dict[str, Any] = {"pairs": [], "losses": []}
        self.wall = self.processor = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.report = {"pairs": [], "losses": []}
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        grads = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
        self.report["gradient_norm"] = float(torch.stack(grads).norm())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.report |= {
            "seconds": time.perf_counter() - self.wall,
            "processor_seconds": time.process_time() - self.processor,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print("STEP " + json.dumps(self.report), flush=True)


def pairs_of(inputs: dict[str, Any]) -> list[list[tuple[list[int], list[bool]]]]:
    """Each pair of a batch: of the preferred and of the other completion tokens, and which of them are learned."""
    tokens, mask, learned = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    rows = [
        (ids[keep.bool()].tolist(), marks[keep.bool()].bool().tolist())
        for ids, keep, marks in zip(tokens, mask, learned, strict=True)
    ]
    half = len(rows) // 2
    return [[rows[at], rows[at + half]] for at in range(half)]


def timed(pace: Pace) -> type:
    class Timed(DPOTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            pace.report["pairs"] += pairs_of(inputs)
            loss = super().training_step(model, inputs, *rest, **named)
            pace.report["losses"].append(float(loss) * self.args.gradient_accumulation_steps)
            return loss

    return Timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--plain", action="store_true", help="float32 throughout, nothing clipped, in the data's order")
    parser.add_argument("--adapter", type=Path, required=True)
    given = parser.parse_args()
    set_seed(0)
    rows = [json.loads(line) for line in given.data.read_text().splitlines()]
    settings: dict[str, Any] = {
        "output_dir": "peer-output", "max_steps": given.steps, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "seed": 0, "logging_steps": 1,
    }  # fmt: skip
    if given.plain:
        settings |= {
            "bf16": False, "gradient_checkpointing": False, "max_grad_norm": 1e9, "lr_scheduler_type": "constant",
            "learning_rate": 1e-4, "weight_decay": 0.0, "max_length": None, "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": CHECKED_BATCH,
        }  # fmt: skip
    pace = Pace()
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = timed(pace)(
        model=AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32), args=DPOConfig(**settings),
        train_dataset=Dataset.from_list(rows), peft_config=lora, callbacks=[pace],
        processing_class=load_tokenizer(given.base),
    )  # fmt: skip
    trainer.model.save_pretrained(given.adapter)
    trainer.train()


if __name__ == "__main__":
    main()
