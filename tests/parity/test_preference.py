"""Preference tuning of the real small base: from pairs it learns to be brief, also about what it has not seen."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from sarto.contract.common import BaseWeights, DatasetRef, TuningParameters
from sarto.contract.tuning_run import RunResult
from sarto.engine.evaluation.rows import read_rows, reply_text
from sarto.engine.programs.local_model import asking
from sarto.engine.programs.tune import run
from sarto.engine.serving.adapter_pool import AdapterKey
from sarto.engine.serving.engine import Engine, EngineOptions
from sarto.schema.generation import GenerationConfig
from tests.engine.tuning.conftest import make_spec

EXAMPLES = Path(__file__).parents[2] / "examples" / "preference"
TRAINING, HELD_OUT = 32, 20


def dataset(path: Path, source: Path, count: int) -> DatasetRef:
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    path.write_text("".join(lines), encoding="utf-8")
    return DatasetRef(uri=f"gs://bucket/{path.name}", path=str(path), size_bytes=path.stat().st_size)


def tuned(base: BaseWeights, folder: Path) -> tuple[RunResult, Path]:
    folder.mkdir()
    spec = make_spec(
        base, folder, method="preference", data_format="preference",
        training_dataset=dataset(folder / "train.jsonl", EXAMPLES / "train.jsonl", TRAINING),
        validation_dataset=dataset(folder / "held-out.jsonl", EXAMPLES / "validation.jsonl", HELD_OUT),
        parameters=TuningParameters(
            rank=8, alpha=16.0, epoch_count=3, batch_size=4, learning_rate=2e-4, beta=0.1, warmup_fraction=0.1
        ),
        threads=2, dtype="auto",
    )  # fmt: skip
    return run(spec), folder


def mean_words(base: BaseWeights, rows: Path, adapter: AdapterKey | None) -> float:
    """Of greedy answers to the prompts of some pairs."""
    engine = Engine(EngineOptions(threads=2))
    generate = asking(engine, base, adapter)
    found, _ = read_rows(rows, data_format="preference", limit=8)
    config = GenerationConfig(temperature=0.0, max_output_tokens=96)
    try:
        answers = [asyncio.run(generate(row.request.model_copy(update={"generation_config": config}))) for row in found]
    finally:
        engine.close()
    texts = [reply_text(answer.candidates[0].content) for answer in answers]
    return sum(len(text.split()) for text in texts) / len(texts)


@pytest.mark.slow
def test_thirty_two_pairs_teach_to_be_brief(real_base: BaseWeights, tmp_path: Path) -> None:
    result, folder = tuned(real_base, tmp_path / "job")
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert sum(step["accuracy"] for step in steps[-8:]) / 8 >= 0.95  # the last epoch
    record = result.checkpoints[-1]
    assert record.evaluation is not None and record.evaluation.accuracy >= 0.8
    key = AdapterKey("terse", str(folder / record.folder))
    rows = EXAMPLES / "test.jsonl"
    assert mean_words(real_base, rows, key) < mean_words(real_base, rows, None)
