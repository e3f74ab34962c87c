"""The method learns: eight examples are memorised in seconds, the base does not move, numbers mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sarto.contract.common import BaseWeights
from sarto.contract.tuning_run import Progress, RunSpec
from sarto.engine.models.adapter_shape import AdapterShape
from sarto.engine.models.lora import LoraAdapter
from sarto.engine.tuning.checkpointing import Checkpointing
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.session import Session, TokenisedDataset
from sarto.engine.weights.peft import read_adapter
from sarto.errors import FailedPrecondition, InvalidArgument
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec


def run(session: Session, spec: RunSpec) -> tuple[Checkpointing, list[Progress]]:
    folder = Path(spec.run_folder)
    folder.mkdir(exist_ok=True)
    checkpointing = Checkpointing(folder, None, session.fingerprint(), spec.resume_seconds, base=spec.base)
    progress_log = ProgressLog(folder, None, session.method)
    try:
        session.tune(progress_log, checkpointing)
    finally:
        progress_log.close()
    lines = (folder / "progress.jsonl").read_text().splitlines()
    return checkpointing, [Progress.model_validate(json.loads(line)) for line in lines]


def losses(progress: list[Progress]) -> list[float]:
    return [line.step.loss for line in progress if line.step is not None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_examples_are_memorised_and_the_base_stays_as_it_was(
    tiny: BaseWeights, tmp_path: Path, dtype: str
) -> None:
    spec = make_spec(tiny, tmp_path / "run", dtype=dtype)
    rows = make_rows(8)
    session = Session(spec, make_parameters(epoch_count=150, batch_size=8, rank=16, learning_rate=2e-2), rows, None)
    checkpointing, progress = run(session, spec)
    found = losses(progress)
    assert found[0] > 5.0
    assert found[-1] < 0.2
    steps = [line.step for line in progress if line.step is not None]
    assert steps[-1].accuracy > 0.95
    stored = load_file(Path(tiny.folder) / "model.safetensors")
    expected = stored["model.layers.1.self_attn.o_proj.weight"].to(session.dtype)
    assert torch.equal(session.decoder.layer(1).o.weight, expected)
    assert len(checkpointing.checkpoints) == 10


def test_bfloat16_tracks_float32(tiny: BaseWeights, tmp_path: Path) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        spec = make_spec(tiny, tmp_path / dtype, dtype=dtype)
        _, progress = run(Session(spec, make_parameters(epoch_count=10), make_rows(40), None), spec)
        found[dtype] = np.array(losses(progress))
    difference = np.abs(found["bfloat16"] - found["float32"]) / found["float32"]
    assert difference[:5].max() <= 2e-2
    assert difference[-10:].mean() <= 2e-2


def test_validation_is_measured_at_every_checkpoint_and_before_it(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(epoch_count=3), make_rows(16), make_rows(2, seed=1))
    checkpointing, progress = run(session, spec)
    assert [c.step for c in checkpointing.checkpoints] == [4, 8, 12]
    assert [c.checkpoint_id for c in checkpointing.checkpoints] == ["1", "2", "3"]
    assert all(c.evaluation is not None and c.evaluation.step == c.step for c in checkpointing.checkpoints)
    evaluated = [line.evaluation.step for line in progress if line.evaluation is not None]
    assert set(evaluated) > {4, 8, 12}
    assert evaluated == sorted(evaluated)


def test_only_the_last_checkpoint_is_kept_when_asked(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run", export_last_checkpoint_only=True)
    checkpointing, _ = run(Session(spec, make_parameters(epoch_count=3), make_rows(8), None), spec)
    assert [(c.checkpoint_id, c.step, c.epoch) for c in checkpointing.checkpoints] == [("1", 6, 3)]


def test_a_run_can_start_from_another_adapter(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "first")
    checkpointing, progress = run(Session(spec, make_parameters(epoch_count=20), make_rows(8), None), spec)
    parent = Path(spec.run_folder) / checkpointing.checkpoints[-1].folder
    again = make_spec(tiny, tmp_path / "second", parent_adapter=str(parent))
    session = Session(again, make_parameters(epoch_count=1), make_rows(8), None)
    assert all(torch.equal(t, read_adapter(parent).tensors[n]) for n, t in session.adapter.named_tensors())
    _, more = run(session, again)
    assert losses(more)[0] < 0.8 * losses(progress)[0]


def test_an_adapter_of_another_shape_is_refused(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "first")
    checkpointing, _ = run(Session(spec, make_parameters(epoch_count=1), make_rows(8), None), spec)
    parent = str(Path(spec.run_folder) / checkpointing.checkpoints[-1].folder)
    again = make_spec(tiny, tmp_path / "second", parent_adapter=parent)
    with pytest.raises(InvalidArgument, match=r"rank=4.*rank=8"):
        Session(again, make_parameters(rank=8), make_rows(8), None)


def test_numbers_that_are_not_finite_stop_the_run_with_step_and_lines(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(epoch_count=4, learning_rate=1e30), make_rows(8), None)
    with pytest.raises(FailedPrecondition, match=r"Step \d+: the (loss|gradient) is not a finite number.*lines \d"):
        run(session, spec)


def test_a_gradient_that_is_not_finite_stops_the_run_before_anything_changes(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(alpha=1.2e39), make_rows(8), None)  # B begins at zero: the loss is finite
    before = session.adapter.values.clone()
    with pytest.raises(FailedPrecondition, match=r"Step 1: the gradient is not a finite number.*lines \d"):
        run(session, spec)
    assert torch.equal(session.adapter.values, before)


def test_trying_out_the_longest_step_first_changes_no_number(tiny: BaseWeights, tmp_path: Path) -> None:
    found = []
    for tight in (False, True):
        spec = make_spec(tiny, tmp_path / str(tight))
        session = Session(spec, make_parameters(epoch_count=1), make_rows(8), None)
        session._tight = tight
        found.append(losses(run(session, spec)[1]))
    assert found[0] == found[1]


def test_a_damaged_adapter_is_never_read(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(epoch_count=1), make_rows(8), None)
    checkpointing = Checkpointing(tmp_path, None, "", 1.0, base=tiny)
    session.adapter.values[5] = float("nan")
    with pytest.raises(InvalidArgument, match="not finite"):
        checkpointing.export(session.adapter, 1, 1, None)
    assert not list((tmp_path / "checkpoints").glob("1"))


def test_an_example_beyond_the_context_is_refused_by_number(tiny: BaseWeights, tmp_path: Path) -> None:
    rows = make_rows(4)
    long = TokenisedDataset(rows.examples, np.array([10, 10, 10, 4000]), "long")
    with pytest.raises(FailedPrecondition, match="4000 tokens; the base model reads at most 2048"):
        Session(make_spec(tiny, tmp_path), make_parameters(), long, None)


def test_a_run_that_turns_is_told_and_stopped_when_asked(tiny: BaseWeights, tmp_path: Path) -> None:
    found = {}
    for stop in (False, True):
        spec = make_spec(tiny, tmp_path / str(stop), stop_early=stop)
        parameters = make_parameters(epoch_count=30, batch_size=8, learning_rate=1e-2)
        checkpointing, progress = run(Session(spec, parameters, make_rows(8), make_rows(8, seed=5)), spec)
        notes = [line.message for line in progress if line.kind == "note"]
        assert any("validation loss has risen" in note for note in notes)
        found[stop] = (len(losses(progress)), checkpointing.checkpoints[-1].step)
    assert found[False] == (30, 30)
    assert found[True][0] == found[True][1] < 30


def test_adapters_on_a_part_of_the_projections_leave_the_rest_alone(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    spec = spec.model_copy(
        update={"parameters": spec.parameters.model_copy(update={"target_modules": ["v_proj", "up_proj"]})}
    )
    session = Session(spec, make_parameters(epoch_count=10), make_rows(8), None)
    checkpointing, progress = run(session, spec)
    assert losses(progress)[-1] < losses(progress)[0]
    names = read_adapter(Path(spec.run_folder) / checkpointing.checkpoints[-1].folder).tensors
    assert {name.split(".")[-3] for name in names} == {"v_proj", "up_proj"}


def test_a_rank_beyond_the_room_of_a_matrix_gives_the_same_step(tiny: BaseWeights, tmp_path: Path) -> None:
    """Three projections of rank 32 need more free columns than a matrix keeps: the copying path."""
    spec = make_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(rank=32, epoch_count=1), make_rows(8), None)
    _, progress = run(session, spec)
    narrow = make_spec(tiny, tmp_path / "narrow")
    other = Session(narrow, make_parameters(rank=4, epoch_count=1), make_rows(8), None)
    _, small = run(other, narrow)
    assert losses(progress)[0] == pytest.approx(
        losses(small)[0], rel=1e-6
    )  # B is zero, so the first loss is the base's


def test_all_values_of_an_adapter_are_one_vector(tiny: BaseWeights, tmp_path: Path) -> None:
    session = Session(make_spec(tiny, tmp_path), make_parameters(), make_rows(8), None)
    adapter = session.adapter
    assert isinstance(adapter, LoraAdapter)
    assert adapter.shape == AdapterShape(4, 8.0)
    assert sum(t.numel() for _, t in adapter.named_tensors()) == adapter.values.numel()
    assert adapter.values.data_ptr() == next(adapter.named_tensors())[1].data_ptr()
