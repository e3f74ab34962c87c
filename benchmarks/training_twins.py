"""The chosen training operations against their plain torch twins, in turn on the same examples: catches a regression.

Needs no downloads: a random model with the shape of the small base, but fewer layers. Prints one JSON object with the
speed of each set over the plain one; with `--check` it fails when the chosen set is not clearly faster, or its losses
differ. Ratios are of processor seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from processor import show_processor
from sarto.contract.common import BaseWeights
from sarto.engine.host_memory import keep_pages
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.reference import Operations, PlainOperations
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.tuning.memory_plan import LADDER
from sarto.engine.tuning.methods import METHODS
from sarto.engine.tuning.methods.supervised import batch_loss
from sarto.engine.tuning.packing import TokenizedExample
from sarto.engine.tuning.schedule import Schedule
from sarto.engine.tuning.trainer import Optimisation, Trainer
from training.ours import Nothing

LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS, VOCABULARY = 4, 576, 1536, 9, 3, 16384
WARM_ROUNDS = 2
MARGIN, NARROW_MARGIN = 1.15, 0.95
"""How many times as fast as the plain operations the chosen ones must be: with AVX-512, where they are about twice as
fast, and with less, where both multiply float32 by oneDNN and differ by about a tenth (1.05 to 1.12 on AVX2)."""
LOSS_MARGIN = 2e-2


def make_base(folder: Path) -> BaseWeights:
    config = {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": FEED_FORWARD, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    head = WIDTH // HEADS
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = (WIDTH,)
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS), ("o", HEADS)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows * head, WIDTH)
        for name in ("gate", "up"):
            shapes[f"{at}mlp.{name}_proj.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"{at}mlp.down_proj.weight"] = (WIDTH, FEED_FORWARD)
    draw = torch.Generator().manual_seed(0)
    weights = {name: (torch.randn(shape, generator=draw) * 0.03).bfloat16() for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return BaseWeights(name="random", folder=str(folder), digest="random")


def make_examples(seed: int) -> list[TokenizedExample]:
    """Eight examples of three kinds that share a prompt each."""
    random = np.random.default_rng(seed)
    prompts = [np.random.default_rng(kind).integers(0, VOCABULARY, 50) for kind in range(3)]
    rows = []
    for index in range(8):
        own, reply = random.integers(0, VOCABULARY, random.integers(20, 150)), random.integers(0, VOCABULARY, 20)
        tokens = np.concatenate([prompts[index % 3], own, reply]).astype(np.uint32)
        rows.append(TokenizedExample(tokens, np.arange(len(tokens)) >= len(tokens) - 20, index))
    return rows


def make_trainer(base: BaseWeights, ops: Operations) -> Trainer:
    decoder = load_base(base, native_dtype(torch.device("cpu")))
    decoder.ops = ops
    adapter = LoraAdapter(decoder, AdapterShape(16, 32.0))
    schedule = Schedule(1, 1, 1 << 30, 2e-4, 0)
    method = METHODS["supervised"]
    loss = partial(batch_loss, decoder, adapter)
    return Trainer(decoder, adapter, method, loss, Nothing(), schedule, Optimisation(0.0, 1.0, 0), LADDER[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    show_processor()
    keep_pages()
    sets = (choose_operations(torch.device("cpu")), FusedOperations(EagerKernels()), PlainOperations())
    seconds: dict[str, list[float]] = {ops.name: [] for ops in sets}
    losses: dict[str, list[float]] = {ops.name: [] for ops in sets}
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder))
        trainers = {ops.name: make_trainer(base, ops) for ops in sets}
        for number in range(given.rounds + WARM_ROUNDS):
            examples = make_examples(number)
            for name, trainer in trainers.items():
                started = time.process_time()
                losses[name].append(trainer.update(examples).loss)
                if number >= WARM_ROUNDS:
                    seconds[name].append(time.process_time() - started)
    plain, chosen = PlainOperations.name, sets[0].name
    over = {name: statistics.median(a / b for a, b in zip(seconds[plain], each)) for name, each in seconds.items()}  # noqa: B905
    apart = max(abs(a - b) for a, b in zip(losses[plain], losses[chosen], strict=True))
    print(json.dumps({"over_plain": {n: round(r, 2) for n, r in over.items()}, "loss_difference": round(apart, 5)}))
    margin = MARGIN if chosen.endswith("v4") else NARROW_MARGIN
    return int(given.check and (over[chosen] < margin or apart > LOSS_MARGIN))


if __name__ == "__main__":
    sys.exit(main())
