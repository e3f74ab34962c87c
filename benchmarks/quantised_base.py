"""What precision costs: the same tuning in float32, on the base as it is, in int8 and in NF4, one after the other.

For each form: bytes the base takes, loss on the validation rows before any tuning and after the same steps, and
processor seconds of a step. Needs the small base; `--json` prints one object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from processor import show_processor
from sarto.contract.common import BaseWeights, DatasetRef, TuningParameters
from sarto.contract.tuning_run import ChosenParameters, RunSpec
from sarto.engine.dataset.prepare import DatasetLimits, prepare
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.tuning.session import Session, TokenisedDataset

EXAMPLES = Path(__file__).parent.parent / "examples" / "support_tickets"
AS_IT_IS = "as it is"
FORMS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"}, AS_IT_IS: {}, "int8": {"quantisation": "int8"}, "nf4": {"quantisation": "nf4"},
}  # fmt: skip


def rows(name: str, tokenizer: ChatTokenizer, cache: Path) -> TokenisedDataset:
    path = EXAMPLES / f"{name}.jsonl"
    dataset = DatasetRef(uri=path.name, path=str(path), size_bytes=path.stat().st_size)
    limits = DatasetLimits(max_bytes=dataset.size_bytes, max_examples=10_000, max_dropped_share=0.0, role=name)
    return TokenisedDataset.of(
        prepare(dataset, tokenizer, max_tokens=2048, cache_folder=str(cache), limits=limits).store
    )


def measure(
    given: argparse.Namespace,
    form: dict[str, Any],
    training: TokenisedDataset,
    validation: TokenisedDataset,
    folder: Path,
) -> dict[str, Any]:
    base = BaseWeights(name="base", folder=str(given.base), digest=str(form), quantisation=form.get("quantisation"))
    dataset = DatasetRef(uri="train.jsonl", path="train.jsonl", size_bytes=1)
    spec = RunSpec(
        job="bench", epoch=1, method="supervised", run_folder=str(folder), base=base, training_dataset=dataset,
        threads=given.threads, parameters=TuningParameters(rank=16, alpha=32.0), max_tokens_per_example=2048,
        cache_folder=str(folder), dtype=form.get("dtype", "auto"),
    )  # fmt: skip
    chosen = ChosenParameters(
        rank=16, alpha=32.0, epoch_count=given.epochs, batch_size=8, learning_rate=2e-4, warmup_steps=2, total_steps=0,
        precision="", device="", threads=given.threads, reasons={},
    )  # fmt: skip
    session = Session(spec, chosen, training, validation)
    layers = [session.decoder.layer(index) for index in range(session.decoder.config.layers)]
    held = sum(part.numel() * part.element_size() for layer in layers for part in layer.parameters())
    before = session.trainer.evaluate(validation.examples).loss
    clock = time.process_time()
    for _ in range(session.schedule.total_steps):
        session.trainer.step()
    seconds = (time.process_time() - clock) / session.schedule.total_steps
    after = session.trainer.evaluate(validation.examples).loss
    return {
        "layers_mib": round(held / 2**20, 1), "loss_before": round(before, 4), "loss_after": round(after, 4),
        "processor_seconds_per_step": round(seconds, 3), "steps": session.schedule.total_steps,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path.home() / ".cache/sarto/models/smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    show_processor()
    torch.set_num_threads(given.threads)
    tokenizer = ChatTokenizer.load(given.base)
    with tempfile.TemporaryDirectory() as folder:
        training, validation = (rows(name, tokenizer, Path(folder)) for name in ("train", "validation"))
        found = {name: measure(given, form, training, validation, Path(folder)) for name, form in FORMS.items()}
    plain = found[AS_IT_IS]
    for form in found.values():
        form["seconds_over_plain"] = round(form["processor_seconds_per_step"] / plain["processor_seconds_per_step"], 3)
        form["loss_after_over_plain"] = round(form["loss_after"] / plain["loss_after"], 4)
    print(json.dumps(found, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
