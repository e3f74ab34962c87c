"""Reinforcement tuning's formulas by values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sarto.contract.common import ReinforcementParameters, TuningParameters
from sarto.engine.dataset.default_parameters import DataShape, choose
from sarto.engine.tuning.methods.reinforcement import Answer, advantages, rows_of_groups, token_losses
from sarto.engine.tuning.packing import TokenizedExample
from sarto.engine.tuning.schedule import Schedule
from sarto.errors import InvalidArgument

NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [1.4997, -0.4999, -0.4999, -0.4999]),
        ([1, 1, 0, 0], [0.8659, 0.8659, -0.8659, -0.8659]),
        ([0.5, 0.5, 0.5], [0, 0, 0]),
        ([NAN, 1, 0, 0], [0, 1.1545, -0.5773, -0.5773]),
        ([None, 1, 0, 0], [0, 1.1545, -0.5773, -0.5773]),
        ([None, 1], [0, 0]),
        ([1], [0]),
    ],
)
def test_advantages_compare_the_answers_of_a_group(rewards: list[float | None], expected: list[float]) -> None:
    assert advantages(rewards) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.5, 1, -1.2), (0.5, 1, -0.5), (1.5, -1, 1.5), (0.5, -1, 0.8)]
)
def test_the_loss_is_clipped_where_the_ratio_has_gone_far_enough(ratio: float, advantage: float, loss: float) -> None:
    one = torch.tensor([math.log(ratio)], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    weights = torch.tensor([float(advantage)], dtype=torch.float64)
    found, _ = token_losses(one, zero, one, weights, clip=0.2, kl_weight=0.01)
    assert float(found) == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize(("logprob", "reference", "distance"), [(-1, -1.2, 0.018731), (-1, -0.5, 0.148721)])
def test_the_distance_to_the_initial_model_is_estimated_without_bias(
    logprob: float, reference: float, distance: float
) -> None:
    one = torch.tensor([float(logprob)], dtype=torch.float64, requires_grad=True)
    other, zero = torch.tensor([float(reference)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    loss, found = token_losses(one, one.detach(), other, zero, clip=0.2, kl_weight=2.0)
    assert float(found) == pytest.approx(distance, abs=1e-6)
    assert float(loss.detach()) == pytest.approx(2 * distance, abs=2e-6)
    loss.sum().backward()
    # d/dlp [r (e^d - d - 1)] at r = 1 is (e^d - d - 1) - (e^d - 1) = -d
    assert float(one.grad) == pytest.approx(-2.0 * (reference - logprob))  # type: ignore[arg-type]


def test_answers_become_rows_and_failed_ones_do_not() -> None:
    prompt = TokenizedExample(np.array([1, 2, 3], np.uint32), np.zeros(3, bool), 7)
    answers = [Answer([4, 9], [-0.5, -0.25], False, 1.0), Answer([5], [-1.0], True, None), Answer([6], [-2.0], True, 0)]
    rows = rows_of_groups([prompt], [answers])
    assert [row.tokens.tolist() for row in rows] == [[1, 2, 3, 4, 9], [1, 2, 3, 6]]
    assert [row.loss_mask.tolist() for row in rows] == [[False] * 3 + [True] * 2, [False] * 3 + [True]]
    assert rows[0].reference == pytest.approx(-rows[1].reference) and rows[0].reference > 0
    assert [row.line for row in rows] == [7, 7]
    assert rows[0].values is not None and rows[0].values.tolist() == [-0.5, -0.25]


def given(**fields: object) -> TuningParameters:
    own = {name: fields.pop(name) for name in list(fields) if name in ReinforcementParameters.model_fields}
    sampling = ReinforcementParameters.model_validate({"reward": {}} | own)
    return TuningParameters.model_validate({"rank": 4, "alpha": 8.0, "reinforcement": sampling} | fields)


def test_defaults_follow_the_machine_and_the_prompts() -> None:
    chosen = choose(DataShape(500, 20, 30), given(batch_size=32), 135_000_000)
    assert chosen.total_steps == 110 and chosen.warmup_steps == 10
    chosen = choose(DataShape(40, 20, 30), given(), 135_000_000, device="cpu")
    assert (chosen.batch_size, chosen.samples_per_prompt, chosen.max_output_tokens) == (8, 8, 512)
    assert chosen.total_steps == 50, "at most ten passes"
    assert (chosen.evaluate_interval, chosen.checkpoint_interval) == (5, 5)
    assert "without an accelerator" in chosen.reasons["samples_per_prompt"]
    chosen = choose(DataShape(5000, 20, 30), given(), 135_000_000, device="cuda")
    assert (chosen.batch_size, chosen.samples_per_prompt, chosen.max_output_tokens) == (32, 16, 32_768)
    assert chosen.total_steps == 110 and chosen.epoch_count == 1
    chosen = choose(DataShape(100, 20, 30), given(step_count=30, evaluate_interval=4), 135_000_000)
    assert (chosen.total_steps, chosen.evaluate_interval, chosen.checkpoint_interval) == (30, 4, 16)
    assert choose(DataShape(100, 20, 30), given(epoch_count=3), 135_000_000).total_steps == 38


def test_numbers_that_do_not_fit_the_data_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="at most 500 are allowed"):
        choose(DataShape(5000, 20, 30), given(epoch_count=1), 135_000_000)
    with pytest.raises(InvalidArgument, match="samplesPerPrompt is 3 x 8"):
        choose(DataShape(50, 20, 30), given(batch_size=3), 135_000_000)


def test_steps_continue_across_the_end_of_an_epoch() -> None:
    schedule = Schedule(5, 2, 2, 1.0, 1, steps=4, evaluate_every=3, checkpoint_every=3)
    assert [schedule.places(step) for step in range(1, 5)] == [
        [(1, 0), (1, 1)], [(1, 2), (1, 3)], [(1, 4), (2, 0)], [(2, 1), (2, 2)],
    ]  # fmt: skip
    assert schedule.total_steps == 4
    assert schedule.evaluation_steps(1, 1) == schedule.checkpoint_steps(last_only=True) == {3, 4}
    assert [schedule.epoch(step) for step in range(1, 5)] == [1, 1, 1, 2]
