"""Our preference step on given pairs, one step per line on standard input. Started by `../preference_vs_trl.py`.

A line is a JSON list of pairs, each two [tokens, learned] lists, the preferred completion first. The answer is one JSON
object: seconds with the pass that computes the references and without it, loss, gradient norm, peak memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ours import Nothing

from sarto.contract.common import BaseWeights
from sarto.engine.host_memory import keep_pages
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.tuning.loop import peak_memory_bytes
from sarto.engine.tuning.memory_plan import LADDER
from sarto.engine.tuning.methods.preference import FORWARD, PREFERENCE, batch_loss, log_probabilities, pair_losses
from sarto.engine.tuning.packing import TokenizedExample
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.trainer import Optimisation, Trainer
from sarto.engine.weights.peft import read_adapter

BETA = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--adapter", type=Path, required=True, help="what the peer begins with")
    parser.add_argument("--plain", action="store_true", help="float32 throughout, nothing clipped")
    given = parser.parse_args()
    keep_pages()
    torch.set_num_threads(given.threads)
    device = torch.device("cpu")
    dtype = torch.float32 if given.plain else native_dtype(device)
    decoder = load_base(BaseWeights(name="base", folder=given.base, digest=""), dtype, device)
    decoder.ops = choose_operations(device)
    adapter = LoraAdapter(decoder, AdapterShape(16, 32.0))
    decoder.leave_files()
    adapter.load(read_adapter(given.adapter))
    started_with, memory = adapter.values.clone(), LADDER[0]
    trainer = Trainer(
        decoder, adapter, PREFERENCE, partial(batch_loss, decoder, adapter, BETA), Nothing(),
        Schedule(1, 1, 1 << 30, 1e-4, 0), Optimisation(0.0, 1e9 if given.plain else 1.0, 0), memory,
    )  # fmt: skip

    @torch.no_grad()
    def referenced(rows: list[TokenizedExample]) -> list[TokenizedExample]:
        """The rows with the log-probabilities of the model that training began with."""
        now = adapter.values.clone()
        adapter.values.copy_(started_with)
        found = [0.0] * len(rows)
        for batch in PREFERENCE.plan(rows, 1024):
            for number, value in zip(
                batch.numbers, log_probabilities(decoder, adapter, FORWARD, batch).tolist(), strict=True
            ):
                found[number] = value
        adapter.values.copy_(now)
        return [replace(row, reference=value) for row, value in zip(rows, found, strict=True)]

    @torch.no_grad()
    def losses(rows: list[TokenizedExample]) -> list[float]:
        found = {}
        for batch in PREFERENCE.plan(rows, memory.token_budget):
            values = log_probabilities(decoder, adapter, memory, batch).view(-1, 2)
            each, _ = pair_losses(values, batch.references.view(-1, 2), BETA)
            found |= dict(zip(batch.numbers[::2], each.tolist(), strict=True))
        return [found[number] for number in sorted(found)]

    for line in sys.stdin:
        rows = [
            TokenizedExample(np.array(tokens, dtype=np.uint32), np.array(learned), 0)
            for pair in json.loads(line)
            for tokens, learned in pair
        ]
        wall, processor = time.perf_counter(), time.process_time()
        rows = referenced(rows)
        between, between_processor = time.perf_counter(), time.process_time()
        before = losses(rows) if given.plain else []
        step_wall, step_processor = time.perf_counter(), time.process_time()
        outcome = trainer.update(rows)
        ended, ended_processor = time.perf_counter(), time.process_time()
        report = {
            "step_seconds": ended - step_wall,
            "seconds": ended - step_wall + between - wall,
            "step_processor_seconds": ended_processor - step_processor,
            "processor_seconds": ended_processor - step_processor + between_processor - processor,
            "losses": before,
            "loss": outcome.loss,
            "gradient_norm": outcome.gradient_norm,
            "tokens": outcome.rendered_tokens,
            "peak_bytes": peak_memory_bytes(),
        }
        print("STEP " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
