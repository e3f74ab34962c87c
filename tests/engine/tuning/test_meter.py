"""What a run says of its speed."""

from __future__ import annotations

from pathlib import Path

from sarto.contract.common import BaseWeights
from sarto.engine.tuning.loop import Meter
from sarto.engine.tuning.session import Session
from sarto.engine.tuning.trainer import StepOutcome
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec


def test_no_share_of_the_ceiling_exceeds_one_however_low_it_was_measured() -> None:
    meter = Meter(flops_per_token=1e6, flops_per_target=0.0, peak_flops=1.0)
    meter.start()
    shares = [
        meter.metrics(step, 1, StepOutcome(1.0, {"accuracy": 0.5}, 3, 3, 10, 8, 1e-3, 1.0), 5) for step in (1, 2, 3)
    ]
    assert all(0 < each.flop_utilisation <= 1 for each in shares)
    assert shares[0].flop_utilisation == 1


def test_a_beginning_that_examples_share_counts_once_as_computed(tiny: BaseWeights, tmp_path: Path) -> None:
    session = Session(make_spec(tiny, tmp_path), make_parameters(), make_rows(), None)
    outcome = session.trainer.step()
    examples = make_parameters().batch_size
    assert outcome.rendered_tokens - outcome.computed_tokens >= 8 * (examples - 1)
