"""When things happen in a run."""

from __future__ import annotations

import pytest

from sarto.contract.tuning_run import EvalMetrics
from sarto.engine.tuning.schedule import Schedule, turned


def make(epochs: int, examples: int = 100, warmup: int = 5) -> Schedule:
    return Schedule(examples, 8, epochs, 1e-3, warmup)


def test_the_last_step_of_an_epoch_may_be_smaller() -> None:
    schedule = make(3)
    assert (schedule.steps_per_epoch, schedule.total_steps) == (13, 39)
    assert [schedule.epoch(step) for step in (1, 13, 14, 39)] == [1, 1, 2, 3]


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    schedule = make(3)
    rates = [schedule.rate(step) for step in range(1, schedule.total_steps + 1)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == rates[4] == pytest.approx(1e-3)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)
    assert make(1, warmup=0).rate(1) < 1e-3


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [1]),
        (4, [1, 2, 3, 4]),
        (9, list(range(1, 10))),
        (10, list(range(1, 11))),
        (25, [2, 5, 8, 10, 12, 15, 18, 20, 22, 25]),
        (100, list(range(10, 101, 10))),
    ],
)
def test_checkpoints_come_once_an_epoch_or_about_ten_times_and_always_at_the_end(
    epochs: int, expected: list[int]
) -> None:
    assert sorted(step // 13 for step in make(epochs).checkpoint_steps(False)) == expected
    assert make(epochs).checkpoint_steps(True) == {13 * epochs}


def test_evaluations_come_at_epoch_ends_and_between_them_when_they_are_cheap() -> None:
    schedule = make(2)
    assert schedule.evaluation_steps(1000, 10_000) == {13, 26}
    between = schedule.evaluation_steps(30_000, 1000)
    assert {13, 26} < between
    assert len(between) == 8
    assert make(2, examples=8).evaluation_steps(10_000, 10) == {1, 2}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.0], False),
        ([1.0, 1.1], False),
        ([1.0, 1.1, 1.2], True),
        ([1.0, 1.2, 1.1], False),
        ([2.0, 1.0, 1.5, 1.6], True),
    ],
)
def test_a_run_has_turned_when_the_loss_keeps_rising(losses: list[float], expected: bool) -> None:
    found = [EvalMetrics(step=i, epoch=1, loss=loss, accuracy=0, supervised_tokens=1) for i, loss in enumerate(losses)]
    assert turned(found) is expected
