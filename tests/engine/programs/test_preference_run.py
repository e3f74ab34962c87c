"""A run that learns from pairs, as the service starts it: killed in its references or steps, it ends the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sarto.contract.common import BaseWeights, DatasetRef, EvaluationPlan, TuningParameters
from sarto.contract.run_folder import EVALUATION_FOLDER, REPORT_FILE
from sarto.contract.tuning_run import RunSpec
from sarto.system.failpoints import VARIABLE
from tests.engine.programs.test_tune import PROGRAM, arguments_of, finish, kill_after, make_spec, progress, steps
from tests.tiny import make_tiny_base

PAIRS = 150
"""References are computed in blocks of 32 pairs."""
IN_THE_REFERENCES = "rename engine.tuning.methods.references._References._compute after"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def write_pairs(path: Path, count: int) -> DatasetRef:
    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"text": text}]}

    rows = [
        {
            "contents": [turn("user", f"Is order {number} late?")],
            "completions": [
                {"score": 1.0, "completion": turn("model", f"No {number}.")},
                {"score": 0.0, "completion": turn("model", f"Well, let me see about {number}.")},
            ],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetRef(uri=f"gs://bucket/{path.name}", path=str(path), size_bytes=path.stat().st_size)


def pair_spec(base: BaseWeights, folder: Path, epoch: int = 1, **fields: object) -> RunSpec:
    folder.mkdir(exist_ok=True)
    parameters = TuningParameters(
        rank=4, alpha=8.0, epoch_count=2, batch_size=10, learning_rate=5e-3, beta=0.1, warmup_fraction=0.1
    )
    given: dict[str, object] = {
        "method": "preference",
        "data_format": "preference",
        "training_dataset": write_pairs(folder / "pairs.jsonl", PAIRS),
        "validation_dataset": write_pairs(folder / "held-out.jsonl", 8),
        "parameters": parameters.model_dump(),
        "cache_folder": str(folder / "cache"),
    }
    return make_spec(base, folder, epoch, **(given | fields))


def kill_at(spec: RunSpec, place: str, time: int) -> None:
    """The run dies when it comes there for the given time."""
    environment = {**os.environ, VARIABLE: f"{place}*{time}"}
    command = [*PROGRAM, *arguments_of(spec)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        child.wait(120)
    assert child.returncode == -signal.SIGKILL
    assert not (Path(spec.run_folder) / "result.json").exists()


def adapters(spec: RunSpec) -> list[bytes]:
    found = sorted((Path(spec.run_folder) / "checkpoints").glob("*/adapter_model.safetensors"))
    return [path.read_bytes() for path in found]


@pytest.mark.slow
def test_a_run_killed_in_its_references_and_in_its_steps_ends_like_one_never_killed(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    whole = pair_spec(tiny, tmp_path / "whole")
    expected = finish(whole)
    assert expected.error is None
    killed = tmp_path / "killed"
    kill_at(pair_spec(tiny, killed, 1), IN_THE_REFERENCES, 1)
    assert list((killed / "resume").glob("references-*.part"))
    second, third = pair_spec(tiny, killed, 2), pair_spec(tiny, killed, 3)
    kill_at(second, IN_THE_REFERENCES, 2)
    kill_after(third, 2)
    kill_after(pair_spec(tiny, killed, 4), 20)
    last = pair_spec(tiny, killed, 5)
    result = finish(last)
    messages = [line.message for spec in (second, third) for line in progress(spec)]
    assert any("after 32 that an earlier attempt computed" in message for message in messages)
    assert any("resumed after step" in line.message for line in progress(last))
    assert steps(last) == steps(whole)
    assert len(steps(whole)) == 30
    assert adapters(last) == adapters(whole)
    assert [c.evaluation for c in result.checkpoints] == [c.evaluation for c in expected.checkpoints]
    values = [list((folder / "cache").glob("references-*/values")) for folder in (tmp_path / "whole", killed)]
    assert sorted(p.read_bytes() for p in values[0]) == sorted(p.read_bytes() for p in values[1])
    assert not list((killed / "resume").glob("references-*"))


def test_a_run_reports_its_data_its_forecast_and_the_accuracy_of_its_checkpoints(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    spec = pair_spec(tiny, tmp_path / "job", evaluation=EvaluationPlan())
    result = finish(spec)
    assert result.error is None and result.data is not None
    assert result.data.example_count == PAIRS and result.data.scores is not None
    assert result.data.step_count == 30
    report = json.loads((Path(spec.run_folder) / REPORT_FILE).read_text())
    assert report["dataset"]["usedRows"] == PAIRS and report["dataset"]["pairs"]["chosenIsShorter"] == 1.0
    assert report["forecast"]["steps"] == 30
    assert report["automatic"]["beta"] == 0.1
    record = result.checkpoints[-1]
    assert record.evaluation is not None and record.evaluation.supervised_tokens == 8
    assert record.certificate is not None and record.certificate.passed
    found = json.loads((tmp_path / "job" / "resume" / EVALUATION_FOLDER / "report" / "report.json").read_text())
    assert found["systems"][-1]["preference"]["rows"] == 8
    assert found["systems"][0]["preference"] is None


def test_each_dropped_pair_is_listed_by_its_line(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = pair_spec(tiny, tmp_path / "job", validation_dataset=None)
    path = Path(spec.training_dataset.path)
    lines = path.read_text().splitlines()
    broken = json.loads(lines[6])
    broken["completions"][0]["score"] = 0
    lines[6] = json.dumps(broken)
    path.write_text("\n".join(lines) + "\n")
    result = finish(spec)
    assert result.error is None and result.data is not None
    assert result.data.dropped_indices == [7] and result.data.example_count == PAIRS - 1
    assert "two completions with score 0" in result.data.dropped_reasons[0]


def test_two_ranks_learn_from_pairs_what_one_learns(tiny: BaseWeights, tmp_path: Path) -> None:
    alone, shared = pair_spec(tiny, tmp_path / "alone"), pair_spec(tiny, tmp_path / "shared", ranks=2)
    expected, result = finish(alone), finish(shared)
    assert result.error is None and result.parameters is not None
    assert result.parameters.details["ranks"] == 2
    values = [np.frombuffer(file.read_bytes()[32:], "<f8") for spec in (alone, shared) for file in references(spec)]
    assert len(values) == 4  # of training and validation pairs
    for each in range(2):
        np.testing.assert_allclose(values[2 + each], values[each], rtol=1e-6)
    np.testing.assert_allclose(steps(shared), steps(alone), rtol=1e-4)
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        assert mine.evaluation is not None and theirs.evaluation is not None
        assert mine.evaluation.loss == pytest.approx(theirs.evaluation.loss, rel=1e-4)
        assert mine.evaluation.accuracy == theirs.evaluation.accuracy


def references(spec: RunSpec) -> list[Path]:
    """The files of values, the longer first."""
    return sorted(Path(spec.cache_folder).glob("references-*/values"), key=lambda path: -path.stat().st_size)
