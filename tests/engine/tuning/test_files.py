"""What a run writes: events that TensorBoard reads, adapters and resume points that are whole, a step that fits."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sarto.contract.common import BaseWeights
from sarto.contract.tuning_run import EvalMetrics, StepMetrics
from sarto.engine.host_memory import free_memory_bytes
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.load import load_base
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.tuning import checkpoint_files
from sarto.engine.tuning.checkpoint_files import ResumeHeader, export, load_resume_point, save_resume_point
from sarto.engine.tuning.memory_plan import LADDER, LOW_MEMORY, StepShape, choose_memory, step_bytes
from sarto.engine.tuning.methods import METHODS
from sarto.engine.tuning.packing import MemoryPlan
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.weights import peft
from sarto.errors import Internal, ResourceExhausted


def make_step(number: int, loss: float) -> StepMetrics:
    return StepMetrics(
        step=number, epoch=1, loss=loss, accuracy=0.5, supervised_tokens=300, tokens=900, learning_rate=1e-3,
        gradient_norm=1.0, tokens_per_second=5.0, seconds_left=1.0,
    )  # fmt: skip


def test_tensorboard_reads_the_events_under_the_documented_names(tmp_path: Path) -> None:
    progress_log = ProgressLog(tmp_path, None, METHODS["supervised"])
    progress_log.step(make_step(1, 2.5))
    progress_log.step(make_step(1000, 1.25))
    progress_log.evaluation(EvalMetrics(step=1000, epoch=1, loss=1.5, accuracy=0.25, supervised_tokens=70))
    progress_log.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("/train_total_loss")] == [(1, 2.5), (1000, 1.25)]
    assert [e.value for e in events.Scalars("/train_num_predictions")] == [300, 300]
    assert [e.value for e in events.Scalars("/eval_fraction_of_correct_next_step_preds")] == [0.25]
    assert {"/eval_total_loss", "/eval_num_predictions"} <= set(events.Tags()["scalars"])


def make_cursor(completed: int) -> ResumeHeader:
    return ResumeHeader(
        fingerprint="f", completed=completed, memory=MemoryPlan(512), history_file="h", history_bytes=3,
        checkpoints=[], evaluations=[],
    )  # fmt: skip


def test_a_resume_point_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    header = make_cursor(completed=7)
    state = {"values": torch.arange(4.0), "mean": torch.ones(4), "square": torch.zeros(4)}
    assert load_resume_point(tmp_path) is None
    save_resume_point(tmp_path, header, state)
    point = load_resume_point(tmp_path)
    assert point is not None
    assert point.header == header
    assert all(torch.equal(point.state[name], state[name]) for name in state)
    path = tmp_path / "resume.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(Internal, match="cannot be read"):
        load_resume_point(tmp_path)


def torn(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """As a disk does that says it has written."""
    save_file(state, path, metadata=metadata)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_torn_resume_point_does_not_take_the_place_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"values": torch.arange(9.0)}
    save_resume_point(tmp_path, make_cursor(completed=4), state)
    monkeypatch.setattr(checkpoint_files, "save_file", torn)
    with pytest.raises(Internal, match="its bytes have changed"):
        save_resume_point(tmp_path, make_cursor(completed=5), state)
    point = load_resume_point(tmp_path)
    assert point is not None and point.header.completed == 4


def test_a_torn_checkpoint_is_not_exported(tiny: BaseWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = LoraAdapter(load_base(tiny, torch.float32), AdapterShape(4, 8.0))
    monkeypatch.setattr(peft, "save_file", torn)
    with pytest.raises(Internal, match="was not read back as it was written"):
        export(adapter, tmp_path / "7", tiny)
    assert not (tmp_path / "7").exists()


def test_the_ladder_takes_the_first_rung_that_fits_and_says_what_would(tiny: BaseWeights) -> None:
    config = load_base(tiny, torch.float32).config
    step = StepShape(longest=200, step_tokens=6000)
    needs = [step_bytes(config, torch.float32, step, rung) for rung in LADDER]
    assert needs == sorted(needs, reverse=True)
    chosen = [choose_memory(config, torch.float32, step, int(need / 0.79)) for need in needs]
    assert chosen == list(LADDER)
    assert choose_memory(config, torch.float32, step, 1 << 40, low=True) == LADDER[LOW_MEMORY]
    with pytest.raises(ResourceExhausted, match=r"200 tokens, needs about .* Examples of up to \d+ tokens would fit"):
        choose_memory(config, torch.float32, step, needs[-1])


def test_free_memory_is_what_the_machine_and_the_group_leave() -> None:
    assert 1 << 20 < free_memory_bytes(torch.device("cpu")) < 1 << 50
