"""Small tunings of the tiny base, in process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sarto.contract.common import BaseWeights, DatasetRef, TuningParameters
from sarto.contract.tuning_run import ChosenParameters, RunSpec
from sarto.engine.tuning.packing import TokenizedExample
from sarto.engine.tuning.session import TokenisedDataset
from tests.tiny import make_tiny_base


class MemoryExamples:
    """Rows held in memory; the shape of a token store."""

    def __init__(self, rows: list[TokenizedExample]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def tokens(self, index: int) -> npt.NDArray[np.uint32]:
        return self.rows[index].tokens

    def loss_mask(self, index: int) -> npt.NDArray[np.bool_]:
        return self.rows[index].loss_mask

    def line(self, index: int) -> int:
        return self.rows[index].line

    def reference(self, index: int) -> float:
        return self.rows[index].reference


def make_rows(count: int = 8, seed: int = 0, longest: int = 30) -> TokenisedDataset:
    """A shared prompt, an own part, a reply to learn."""
    random = np.random.default_rng(seed)
    prompt = random.integers(0, 256, 8)
    rows = []
    for index in range(count):
        own, reply = (random.integers(0, 256, n) for n in random.integers(2, longest // 2, 2))
        tokens = np.concatenate([prompt, own, reply]).astype(np.uint32)
        mask = np.arange(len(tokens)) >= len(prompt) + len(own)
        rows.append(TokenizedExample(tokens, mask, index + 1))
    return TokenisedDataset(MemoryExamples(rows), np.array([len(row.tokens) for row in rows]), f"rows-{seed}-{count}")


def make_spec(base: BaseWeights, folder: Path, **fields: object) -> RunSpec:
    dataset = DatasetRef(uri="gs://bucket/train.jsonl", path="train.jsonl", size_bytes=1)
    given: dict[str, object] = {
        "job": "projects/1/locations/us-central1/tuningJobs/7",
        "epoch": 1,
        "method": "supervised",
        "run_folder": str(folder),
        "base": base,
        "training_dataset": dataset,
        "parameters": TuningParameters(rank=4, alpha=8.0),
        "max_tokens_per_example": 2048,
        "cache_folder": str(folder / "cache"),
        "threads": 1,
        "dtype": "float32",
    }
    return RunSpec.model_validate(given | fields)


def make_parameters(**fields: object) -> ChosenParameters:
    given: dict[str, object] = {
        "rank": 4,
        "alpha": 8.0,
        "epoch_count": 2,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "warmup_steps": 1,
        "total_steps": 0,
        "precision": "auto",
        "device": "auto",
        "threads": 1,
        "reasons": {},
    }
    return ChosenParameters.model_validate(given | fields)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
