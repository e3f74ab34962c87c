"""The sampler is the trainer: their probabilities are equal, steps learn what is rewarded, and a difference is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sarto.contract.common import BaseWeights
from sarto.engine.tuning.methods.reinforcement import PolicyLoss, Sampled, rows_of_groups
from sarto.engine.tuning.packing import take
from sarto.engine.tuning.sampled_trainer import SampledTrainer
from sarto.engine.tuning.session import Session
from sarto.errors import FailedPrecondition
from tests.engine.reinforcement.conftest import SimpleRollout, rewarded_session, rewarded_spec


def first_is_small(tokens: list[int]) -> float:
    """A property of about half of the tiny base's answers."""
    return float(tokens[0] < 128)


def rollout_of(session: Session) -> SimpleRollout:
    assert isinstance(session.trainer, SampledTrainer)
    assert isinstance(session.trainer.rollout, SimpleRollout)
    return session.trainer.rollout


def policy_loss(session: Session) -> PolicyLoss:
    assert isinstance(session.trainer.loss, PolicyLoss)
    return session.trainer.loss


def test_sampled_probabilities_are_those_of_a_plain_forward_pass_also_after_ten_steps(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run"), first_is_small, steps=12, rate=5e-3)
    for number in range(1, 13):
        outcome = session.trainer.step()
        assert outcome.measured["mismatch"] < 1e-5
        assert policy_loss(session).worst < 1e-4
        if number == 1:
            assert outcome.measured["kl"] == pytest.approx(0, abs=1e-6)
    assert outcome.measured["kl"] > 0
    rollout, prompts = rollout_of(session), take(session.training.examples, range(2))
    for prompt, group in zip(prompts, rollout.sample(99, prompts).groups, strict=True):
        answer = group[0]
        tokens = torch.tensor([*prompt.tokens.tolist(), *answer.tokens])
        logs = session.logits(tokens).float().log_softmax(-1)
        found = logs[len(prompt.tokens) - 1 : -1].gather(1, tokens[len(prompt.tokens) :, None])[:, 0]
        assert found.tolist() == pytest.approx(answer.logprobs, abs=1e-3)


def test_the_first_step_has_the_loss_of_the_advantages_alone(tiny: BaseWeights, tmp_path: Path) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run"), first_is_small)
    prompts = take(session.training.examples, session.trainer.indices(1))
    outcome = session.trainer.step()
    sampled = rollout_of(session).last
    assert sampled is not None
    rows = rows_of_groups(prompts, sampled.groups)
    lengths = [int(row.loss_mask.sum()) for row in rows]
    expected = -sum(row.reference * length for row, length in zip(rows, lengths, strict=True)) / sum(lengths)
    assert outcome.loss == pytest.approx(expected, abs=1e-6)
    assert outcome.gradient_norm > 0
    assert outcome.supervised_tokens == sum(lengths)


def test_equal_rewards_without_a_distance_leave_the_weights_bit_equal(tiny: BaseWeights, tmp_path: Path) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run", kl_weight=0.0), lambda tokens: 1.0)
    before = session.adapter.values.clone()
    session.trainer.step()
    session.trainer.step()
    assert torch.equal(session.adapter.values, before)


def test_gradients_are_finite_differences(tiny: BaseWeights, tmp_path: Path) -> None:
    """The derivative of log p A + w p / p_old (e^d - d - 1) at the point where the samples were drawn."""
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run", kl_weight=0.5), first_is_small, rate=1e-2)
    for _ in range(3):  # away from the start, so that the distance has a gradient
        session.trainer.step()
    trainer, rollout, values = session.trainer, rollout_of(session), session.adapter.values
    prompts = take(session.training.examples, range(4))
    sampled = rollout.sample(77, prompts)
    rows, loss = rows_of_groups(prompts, sampled.groups), policy_loss(session)
    batches = trainer.method.plan(rows, trainer.memory.token_budget)

    def surrogate() -> float:
        """The objective with the old probabilities held where they were drawn."""
        total = 0.0
        with torch.no_grad():
            for batch in batches:
                references = loss._references(batch, trainer.memory).double()
                logprobs = -_losses(session, batch).double()
                packed = torch.empty_like(batch.references)
                packed[batch.order] = batch.references
                weights = packed.repeat_interleave(torch.tensor(batch.counts))
                ratio, gap = (logprobs - batch.values).exp(), references - logprobs
                total += float((-ratio * weights + 0.5 * ratio * (gap.exp() - gap - 1)).sum())
        return total / trainer.method.units(rows)

    trainer.gradients(rows)
    gradients = session.adapter.gradients.clone()
    for index in gradients.abs().topk(20).indices.tolist():
        before, step = float(values[index]), 2e-3
        sides = []
        for side in (step, -step):
            values[index] = before + side
            sides.append(surrogate())
        values[index] = before
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(gradients[index]), rel=1e-2)


def _losses(session: Session, batch: object) -> torch.Tensor:
    from sarto.engine.tuning.methods.target_losses import target_losses

    return target_losses(session.decoder, session.adapter, batch, session.trainer.memory)[0]  # type: ignore[arg-type]


def test_what_is_rewarded_is_learned_unless_the_distance_forbids_it(tiny: BaseWeights, tmp_path: Path) -> None:
    gains = []
    for kl_weight in (0.01, 10.0):
        spec = rewarded_spec(tiny, tmp_path / f"run-{kl_weight}", kl_weight=kl_weight)
        session = rewarded_session(spec, first_is_small, steps=30, tokens=3, rate=1e-2)
        rollout, prompts = rollout_of(session), take(session.validation.examples, range(8))  # type: ignore[union-attr]
        before = rollout.evaluate(0, prompts)["reward"]
        assert 0.2 <= before <= 0.8
        for _ in range(30):
            session.trainer.step()
        gains.append(rollout.evaluate(0, prompts)["reward"] - before)
    assert gains[0] >= 0.2
    assert abs(gains[1]) <= 0.1


def test_a_sampler_that_differs_from_the_trainer_stops_the_job_before_it_learns(
    tiny: BaseWeights, tmp_path: Path
) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run"), first_is_small)
    session.trainer.step()
    rollout = rollout_of(session)

    def stale(number: int, prompts: object) -> Sampled:
        """Samples as if serving had other weights than training: the planted mismatch."""
        adapter = rollout.sampler.adapter
        present = adapter.values.clone()
        adapter.values.add_(0.02)
        sampled = SimpleRollout.sample(rollout, number, prompts)  # type: ignore[arg-type]
        adapter.values.copy_(present)
        return sampled

    rollout.sample = stale  # type: ignore[method-assign]
    before = session.adapter.values.clone()
    with pytest.raises(FailedPrecondition, match="Step 2: the log-probabilities of sampler and trainer differ"):
        session.trainer.step()
    assert torch.equal(session.adapter.values, before)


def test_the_same_seed_draws_the_same_answers_alone_and_in_a_group(tiny: BaseWeights, tmp_path: Path) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run"), first_is_small)
    rollout, prompts = rollout_of(session), take(session.training.examples, range(8))
    together = rollout.sample(5, prompts).groups
    assert rollout.sample(5, prompts[:1]).groups[0] == together[0]
    assert len({tuple(answer.tokens) for answer in together[0]}) > 1
    assert rollout.sample(6, prompts).groups != together


def test_the_base_is_as_it_was_after_serving_gave_it_back(tiny: BaseWeights, tmp_path: Path) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run"), first_is_small)
    tokens = torch.arange(12)
    before = session.logits(tokens)
    rollout_of(session).sample(1, take(session.training.examples, range(2)))
    assert torch.equal(session.logits(tokens), before)


def test_answers_may_be_longer_than_the_first_block_of_the_cache(tiny: BaseWeights, tmp_path: Path) -> None:
    session = rewarded_session(rewarded_spec(tiny, tmp_path / "run"), first_is_small, tokens=150)
    outcome = session.trainer.step()
    assert outcome.measured["mismatch"] < 1e-5
    sampled = rollout_of(session).last
    assert sampled is not None and max(len(a.tokens) for group in sampled.groups for a in group) > 128
