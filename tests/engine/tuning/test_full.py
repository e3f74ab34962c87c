"""Full tuning learns, refuses what does not fit, and goes on exactly where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sarto.contract.common import BaseWeights, TuningParameters
from sarto.contract.tuning_run import RunSpec
from sarto.engine.models.load import read_config
from sarto.engine.serving.parity import certify
from sarto.engine.tuning.checkpointing import Checkpointing
from sarto.engine.tuning.placement import full_bytes, place_full
from sarto.engine.tuning.progress_log import ProgressLog
from sarto.engine.tuning.session import Session
from sarto.errors import ResourceExhausted, Unimplemented
from tests.engine.operands import LookBehind, fresh_memory, no_warnings
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec
from tests.engine.tuning.test_learning import losses, run
from tests.parity.test_parity import rows as example_rows

pytestmark = no_warnings
FULL = TuningParameters(rank=0, alpha=0.0, is_full=True)


def full_spec(base: BaseWeights, folder: Path, **fields: object) -> RunSpec:
    return make_spec(base, folder, **({"parameters": FULL} | fields))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twenty_examples_are_memorised_in_ten_epochs(tiny: BaseWeights, tmp_path: Path, dtype: str) -> None:
    spec = full_spec(tiny, tmp_path / "run", dtype=dtype)
    parameters = make_parameters(rank=0, alpha=0.0, epoch_count=10, batch_size=1, learning_rate=1e-2)
    keeper, progress = run(Session(spec, parameters, make_rows(20, longest=12), None), spec)
    assert losses(progress)[0] > 5.0
    assert max(losses(progress)[-5:]) < 0.1
    assert len(keeper.checkpoints) == 10
    assert "model.safetensors" in keeper.checkpoints[-1].files


def test_a_rate_of_zero_leaves_the_base(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = full_spec(tiny, tmp_path / "run", export_last_checkpoint_only=True)
    keeper, _ = run(Session(spec, make_parameters(rank=0, epoch_count=3, learning_rate=0.0), make_rows(8), None), spec)
    stored = load_file(Path(tiny.folder) / "model.safetensors")
    found = load_file(Path(spec.run_folder) / keeper.checkpoints[-1].folder / "model.safetensors")
    assert all(torch.equal(found[name], stored[name].float()) for name in stored)


def test_the_forecast_of_memory_and_the_words_of_the_run_are_those_of_full_tuning(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    session = Session(full_spec(tiny, tmp_path), make_parameters(rank=0), make_rows(8), None)
    details = session.parameters.details
    assert details["trained_parameters"] == session.adapter.values.numel()
    assert "adapter_parameters" not in details
    assert details["base_placement"] == "all weights in float32 with gradients and moments"


def test_weights_that_do_not_fit_are_refused_with_the_numbers(tiny: BaseWeights) -> None:
    config = read_config(Path(tiny.folder))
    needed = full_bytes(135_000_000, torch.bfloat16)
    assert needed == 18 * 135_000_000
    with pytest.raises(ResourceExhausted, match=r"needs about 0 MiB .* and 0 MiB are free; an adapter"):
        place_full(config, torch.float32, 1000, ranks=1, always_shard=False)
    with pytest.raises(Unimplemented, match="does not shard"):
        place_full(config, torch.float32, 1 << 40, ranks=2, always_shard=True)


def test_a_resumed_run_has_the_same_bytes(tiny: BaseWeights, tmp_path: Path) -> None:
    """Also with a resume point that is read in pieces."""
    parameters, rows = make_parameters(rank=0, epoch_count=3, learning_rate=1e-3), make_rows(8)
    whole = full_spec(tiny, tmp_path / "whole", dtype="bfloat16")
    expected, _ = run(Session(whole, parameters, rows, None), whole)
    resume = tmp_path / "resume"
    resume.mkdir()
    for attempt, stop in ((1, 3), (2, 6)):
        spec = full_spec(tiny, tmp_path / str(attempt), dtype="bfloat16")
        Path(spec.run_folder).mkdir()
        session = Session(spec, parameters, rows, None)
        keeper = Checkpointing(Path(spec.run_folder), resume, session.fingerprint(), 0.0, base=tiny)
        journal = ProgressLog(Path(spec.run_folder), resume / f"history-{attempt}.jsonl", session.method)
        if attempt == 1:
            keeper.resume(session.trainer, journal)
            while session.trainer.completed < stop:
                session.trainer.step()
            keeper.save_if_due(session.trainer, journal)
        else:
            session.tune(journal, keeper)
        journal.close()
    last = load_file(tmp_path / "2" / keeper.checkpoints[-1].folder / "model.safetensors")
    first = load_file(Path(whole.run_folder) / expected.checkpoints[-1].folder / "model.safetensors")
    assert all(torch.equal(last[name], first[name]) for name in first)
    assert keeper.checkpoints[-1].files == expected.checkpoints[-1].files


def test_a_checkpoint_is_served_with_the_numbers_of_training(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = full_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(rank=0, learning_rate=1e-3), make_rows(8), None)
    keeper, _ = run(session, spec)
    served = tiny.fully_tuned(str(Path(spec.run_folder) / keeper.checkpoints[-1].folder))
    found = certify(served, None, example_rows(3), session.logits, dtype=torch.float32, device=torch.device("cpu"))
    assert found.passed and found.max_logit_difference < 1e-3
    of_base = certify(tiny, None, example_rows(3), session.logits, dtype=torch.float32, device=torch.device("cpu"))
    assert not of_base.passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_tuning_has_the_same_numbers_in_poisoned_memory(tiny: BaseWeights, tmp_path: Path, dtype: str) -> None:
    found = []
    for is_poisoned in (False, True):
        spec = full_spec(tiny, tmp_path / str(is_poisoned), dtype=dtype)
        with fresh_memory(is_poisoned), LookBehind():
            session = Session(spec, make_parameters(rank=0, learning_rate=1e-3), make_rows(8, longest=60), None)
            _, progress = run(session, spec)
        found.append((losses(progress), session.adapter.values.clone()))
    assert found[0][0] == found[1][0]
    assert torch.isfinite(found[0][1]).all() and torch.equal(found[0][1], found[1][1])
