"""A tuning that goes apart is no silent success."""

from __future__ import annotations

from pathlib import Path

import pytest

from sarto.contract.common import BaseWeights
from sarto.engine.tuning import divergence
from sarto.engine.tuning.session import Session
from sarto.errors import FailedPrecondition
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec
from tests.engine.tuning.test_learning import losses, run

MEMORISING = {"batch_size": 8, "rank": 16, "learning_rate": 2e-2}


def warnings(session: Session, spec: object) -> list[str]:
    _, progress = run(session, spec)  # type: ignore[arg-type]
    first, last = divergence.rise(losses(progress))
    assert last < first + divergence.HOPELESS_NATS
    return [line.message for line in progress if line.kind == "warning"]


def test_a_tuning_that_learns_has_no_warning(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    assert warnings(Session(spec, make_parameters(epoch_count=4), make_rows(8), None), spec) == []


def test_a_hopeless_tuning_fails_with_its_numbers_and_what_to_do(tiny: BaseWeights, tmp_path: Path) -> None:
    good = make_spec(tiny, tmp_path / "good")
    checkpointing, progress = run(
        Session(good, make_parameters(epoch_count=150, **MEMORISING), make_rows(8), None), good
    )
    assert losses(progress)[-1] < 1.0
    parent = str(Path(good.run_folder) / checkpointing.checkpoints[-1].folder)
    spec = make_spec(tiny, tmp_path / "run", parent_adapter=parent)
    session = Session(spec, make_parameters(epoch_count=8, **MEMORISING | {"learning_rate": 30.0}), make_rows(8), None)
    with pytest.raises(FailedPrecondition, match=r"training diverged: its loss was .*perplexity .*smaller learning"):
        run(session, spec)


def test_a_first_step_that_no_number_can_hold_is_one_clear_error(tiny: BaseWeights, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path / "run")
    session = Session(spec, make_parameters(epoch_count=1, learning_rate=1e300), make_rows(8), None)
    with pytest.raises(FailedPrecondition, match=r"first step cannot be computed .*1e\+300; try a smaller"):
        run(session, spec)


def test_the_beginning_is_compared_with_the_last_steps() -> None:
    assert divergence.rise([2.0]) == (2.0, 2.0)
    assert divergence.rise([2.0, 9.0, 4.0, 6.0]) == (2.0, 5.0)
    assert divergence.rise([2.0] * 90 + [3.0] * 10) == (2.0, 3.0)
    assert "perplexity 1e+06" in divergence.words(2.0, 13.8156, 0.06)
