"""One peer library as a user would call it, one optimiser step per line on standard input.

Runs in the peers' environment, started by `../training_vs_peers.py`. Before each step it waits for a line; after it, it
prints one JSON object: the step's examples as tokens and masks, seconds, processor seconds, loss, peak memory so far.
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
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["trl", "trainer"], required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--weights", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--autocast", choices=["default", "off"], default="default")
    parser.add_argument("--checkpointing", choices=["default", "off"], default="default")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--by-length", action="store_true")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--full", action="store_true", help="train all weights, not an adapter")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


def examples_of(inputs: dict[str, Any]) -> list[tuple[list[int], list[bool]]]:
    """The examples inside a batch, whether padded or packed: tokens, and which of them are learned."""
    tokens, labels = inputs["input_ids"], inputs["labels"]
    if "attention_mask" in inputs:
        lengths = inputs["attention_mask"].sum(1).tolist()
        rows = [(tokens[i, :n].tolist(), labels[i, :n].tolist()) for i, n in enumerate(lengths)]
    else:
        starts = (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], tokens.shape[1]]
        rows = [(tokens[0, a:b].tolist(), labels[0, a:b].tolist()) for a, b in zip(starts, ends, strict=True)]
    return [(ids, [label != -100 for label in learned]) for ids, learned in rows]


class Pace(TrainerCallback):  # type: ignore[misc]
    """Waits before each step, reports after it."""

    def __init__(self) -> None:
        self.examples: list[tuple[list[int], list[bool]]] = []
        self.loss = 0.0
        self.wall = self.processor = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        report = {
            "seconds": time.perf_counter() - self.wall,
            "processor_seconds": time.process_time() - self.processor,
            "loss": self.loss,
            "examples": self.examples,
            "peak_bytes": peak,
        }
        print("STEP " + json.dumps(report), flush=True)


def timed(base: type, pace: Pace) -> type:
    class Timed(base):  # type: ignore[misc, valid-type]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            pace.examples = examples_of(inputs)
            loss = super().training_step(model, inputs, *rest, **named)
            pace.loss = float(loss)
            return loss

    return Timed


def shared_settings(given: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "output_dir": "peer-output",
        "per_device_train_batch_size": given.batch,
        "max_steps": given.steps,
        "learning_rate": 1e-5 if given.full else 2e-4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": given.device == "cpu",
        "disable_tqdm": True,
        "seed": 0,
        "weight_decay": 0.0,
    }
    if given.liger:
        settings["use_liger_kernel"] = True
    if given.autocast == "off":
        settings["bf16"] = False
    if given.checkpointing == "off":
        settings["gradient_checkpointing"] = False
    if given.by_length:
        settings["train_sampling_strategy"] = "group_by_length"
    return settings


def load_tokenizer(base: str) -> Any:
    """Our folders keep special tokens in `config.json` only."""
    config = json.loads((Path(base) / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config["eos_token_id"])
    return tokenizer


def make_trl(given: argparse.Namespace, rows: list[dict[str, Any]], lora: LoraConfig, pace: Pace) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = shared_settings(given)
    if given.packing:
        settings |= {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1}
    model = AutoModelForCausalLM.from_pretrained(
        given.base, dtype=getattr(torch, given.weights), attn_implementation=given.attention
    )
    data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
    return timed(SFTTrainer, pace)(
        model=model, args=SFTConfig(**settings), train_dataset=data, peft_config=lora, callbacks=[pace],
        processing_class=load_tokenizer(given.base),
    )  # fmt: skip


def make_trainer(given: argparse.Namespace, rows: list[dict[str, Any]], lora: LoraConfig, pace: Pace) -> Any:
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq

    tokenizer = load_tokenizer(given.base)
    data = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        tokens = tokenizer(whole, add_special_tokens=False)["input_ids"]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        labels = [-100] * start + tokens[start:]
        data.append({"input_ids": tokens, "labels": labels, "attention_mask": [1] * len(tokens)})
    model = AutoModelForCausalLM.from_pretrained(
        given.base, dtype=getattr(torch, given.weights), attn_implementation=given.attention
    )
    if not given.full:
        model = get_peft_model(model, lora)
    return timed(Trainer, pace)(
        model=model, args=TrainingArguments(**shared_settings(given)), train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True), callbacks=[pace],
    )  # fmt: skip


def main() -> None:
    given = arguments()
    set_seed(0)
    rows = [json.loads(line) for line in given.data.read_text().splitlines()]
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    pace = Pace()
    make = make_trl if given.kind == "trl" else make_trainer
    make(given, rows, lora, pace).train()


if __name__ == "__main__":
    main()
