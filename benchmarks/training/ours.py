"""Our training step on given examples, one step per line on standard input. Started by `../training_vs_peers.py`.

A line is a JSON list of [tokens, learned] pairs; the answer is one JSON object: seconds, processor seconds, loss, peak
memory. An empty list asks for the ceiling of square products instead, measured between steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from sarto.contract.common import BaseWeights
from sarto.engine.host_memory import keep_pages
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.full_weights import FullWeights
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.models.trainable import Trainable
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.tuning.loop import peak_memory_bytes
from sarto.engine.tuning.memory_plan import GPU_ROWS, LADDER, LOW_MEMORY
from sarto.engine.tuning.methods import METHODS
from sarto.engine.tuning.methods.supervised import batch_loss
from sarto.engine.tuning.packing import TokenizedExample
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.session import flops, measure_peak
from sarto.engine.tuning.trainer import Optimisation, Trainer
from sarto.engine.weights.starting_weights import read_weights

GPU_CALIBRATION = 8192
"""Side of the products that measure a GPU's ceiling."""


class Nothing:
    """No rows of its own: the driver sends them."""

    def __len__(self) -> int:
        return 1

    def tokens(self, index: int) -> np.ndarray:
        raise IndexError(index)

    loss_mask = reference = tokens

    def line(self, index: int) -> int:
        raise IndexError(index)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of large square products, the best of a few."""
    if device.type == "cpu":
        return measure_peak(dtype, device)
    left, right = (torch.randn(GPU_CALIBRATION, GPU_CALIBRATION, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        finish(device)
        started = time.perf_counter()
        torch.mm(left, right)
        finish(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * GPU_CALIBRATION**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--low-memory", action="store_true")
    parser.add_argument("--full", action="store_true", help="train all weights, not an adapter")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    keep_pages()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    dtype = native_dtype(device)
    base = BaseWeights(name="base", folder=given.base, digest="")
    decoder = load_base(base, dtype, device)
    decoder.ops = choose_operations(device)
    adapter: Trainable
    if given.full:
        adapter = FullWeights(decoder)
        read_weights(adapter, base)
    else:
        adapter = LoraAdapter(decoder, AdapterShape(16, 32.0))
        decoder.leave_files()
    memory = LADDER[LOW_MEMORY if given.low_memory else 0]
    if device.type == "cuda":
        memory = replace(memory, token_budget=memory.token_budget * GPU_ROWS)
    method = METHODS["supervised"]
    trainer = Trainer(
        decoder, adapter, method, partial(batch_loss, decoder, adapter), Nothing(),
        Schedule(1, 1, 1 << 30, 1e-5 if given.full else 2e-4, 0), Optimisation(0.0, 1.0, 0), memory,
    )  # fmt: skip
    per_token, per_target = flops(decoder, adapter)
    for line in sys.stdin:
        rows = json.loads(line)
        if not rows:
            print("STEP " + json.dumps({"peak_flops": peak(dtype, device)}), flush=True)
            continue
        examples = [
            TokenizedExample(np.array(tokens, dtype=np.uint32), np.array(learned), 0) for tokens, learned in rows
        ]
        wall, processor = time.perf_counter(), time.process_time()
        outcome = trainer.update(examples)
        finish(device)
        report = {
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - processor,
            "loss": outcome.loss,
            "flops": outcome.rendered_tokens * per_token + outcome.target_tokens * per_target,
            "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes(),
        }
        print("STEP " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
