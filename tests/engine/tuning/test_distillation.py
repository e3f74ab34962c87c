"""Distillation at token level: its loss by hand-computed values, its gradient, and what it compares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sarto.contract.common import BaseWeights, JudgeModel, Teaching, TuningParameters
from sarto.engine.tuning.methods.distillation import divergence
from sarto.engine.tuning.methods.teacher_values import LISTED
from sarto.engine.tuning.packing import take
from sarto.engine.tuning.session import Session
from sarto.errors import InvalidArgument
from tests.engine.tuning.conftest import make_parameters, make_rows, make_spec
from tests.engine.tuning.test_preference import learnt
from tests.tiny import make_tiny_base


def listed(teacher: Tensor, count: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The teacher's most probable tokens and their log-probabilities, with that of all others."""
    z = (teacher.float() / temperature).log_softmax(1)
    logs, ids = z.topk(count, 1)
    return ids, torch.cat([logs, z.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)], 1)


def apart(teacher: Tensor, student: Tensor, count: int, temperature: float = 1.0) -> Tensor:
    """With the identity for a head, hidden states are logits."""
    width = student.shape[1]
    ids, logs = listed(teacher, count, temperature)
    return divergence(student, torch.eye(width), ids, logs, temperature, width)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.266217), (2.0, 0.313684)])
def test_the_divergence_has_the_values_of_the_specification(temperature: float, value: float) -> None:
    teacher, student = torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 3)
    assert apart(teacher, student, 3, temperature).item() == pytest.approx(value, abs=5e-7)
    assert apart(teacher, teacher, 3, temperature).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_listed_tokens_and_a_rest_lose_little_of_the_divergence(temperature: float) -> None:
    random = torch.Generator().manual_seed(1)
    teacher, student = (3 * torch.randn(40, 500, generator=random) for _ in range(2))
    p, q = ((z / temperature).double().log_softmax(1) for z in (teacher, student))
    whole = (p.exp() * (p - q)).sum(1) * temperature**2
    part = apart(teacher, student, LISTED, temperature).double()
    assert (part <= whole + 1e-5).all()
    close = teacher + 0.1 * torch.randn(40, 500, generator=random)
    q = (close / temperature).double().log_softmax(1)
    whole = (p.exp() * (p - q)).sum(1) * temperature**2
    assert (whole - apart(teacher, close, LISTED, temperature).double()).abs().max() < 1e-2


@pytest.mark.parametrize("count", [5, 12])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_gradient_is_that_of_finite_differences(count: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(2)
    teacher, student = (2 * torch.randn(4, 12, generator=random) for _ in range(2))
    student.requires_grad_()
    apart(teacher, student, count, temperature).sum().backward()
    assert student.grad is not None
    for row, token in ((0, 0), (1, 5), (2, 11), (3, 7)):
        step = torch.zeros(4, 12)
        step[row, token] = 0.02
        higher, lower = (
            apart(teacher, student.detach() + sign * step, count, temperature).double().sum() for sign in (1, -1)
        )
        assert student.grad[row, token].item() == pytest.approx(((higher - lower) / 0.04).item(), abs=2e-3, rel=1e-2)


def test_a_wider_output_of_the_teacher_or_of_the_student_is_cut() -> None:
    teacher, student = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0, 9.0]])
    ids, logs = listed(teacher, 3)
    assert divergence(student, torch.eye(4), ids, logs, 1.0, 3).item() == pytest.approx(0.266217, abs=5e-7)


def token_session(base: BaseWeights, folder: Path, model: JudgeModel, **teaching: Any) -> Session:
    given = Teaching(teacher="t", model=model, level="token", **teaching)
    spec = make_spec(base, folder, method="distillation", data_format="auto", teaching=given)
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    return Session(spec, make_parameters(), make_rows(10, seed=3), None)


def losses(session: Session) -> tuple[float, float]:
    """Loss and divergence over all rows."""
    sums = session.trainer.sums(session.training.examples)
    return sums.loss / sums.units, sums.measured[1] / sums.units


def test_a_student_that_is_its_teacher_has_no_divergence(tiny: BaseWeights, tmp_path: Path) -> None:
    session = token_session(tiny, tmp_path, JudgeModel(base=tiny))
    assert losses(session)[1] == pytest.approx(0, abs=1e-6)


def test_the_loss_is_the_weighed_cross_entropy_and_the_divergence(tiny: BaseWeights, tmp_path: Path) -> None:
    folder = learnt(tiny, tmp_path / "teacher")
    model = JudgeModel(base=tiny, adapter_folder=str(folder), adapter_digest="a")
    found = {
        weight: losses(token_session(tiny, tmp_path / f"w{weight}", model, loss_weight=weight))
        for weight in (0.0, 1.0, 0.5)
    }
    (only, kl), (both, _), (half, _) = found.values()
    assert only == pytest.approx(kl, rel=1e-5) and kl > 0.01
    assert half == pytest.approx((both + only) / 2, rel=1e-5)


def test_the_gradient_of_the_adapter_is_that_of_finite_differences(tiny: BaseWeights, tmp_path: Path) -> None:
    model = JudgeModel(base=tiny, adapter_folder=str(learnt(tiny, tmp_path / "teacher")), adapter_digest="a")
    session = token_session(tiny, tmp_path, model, loss_weight=0.5, generation={"temperature": 1.5})
    rows = take(session.training.examples, range(10))
    with torch.no_grad():
        session.adapter.values.add_(0.05 * torch.randn(session.adapter.values.shape, generator=torch.manual_seed(0)))
    session.trainer.gradients(rows)
    gradients = session.adapter.gradients.clone()
    for at in gradients.abs().topk(20).indices.tolist():
        measured = []
        for sign in (1, -1):
            session.adapter.values[at] += sign * 1e-2
            sums = session.trainer.sums(session.training.examples)
            measured.append(sums.loss / sums.units)
            session.adapter.values[at] -= sign * 1e-2
        assert (measured[0] - measured[1]) / 2e-2 == pytest.approx(gradients[at].item(), rel=1e-2, abs=1e-4)


def test_the_values_do_not_depend_on_how_rows_are_packed(tiny: BaseWeights, tmp_path: Path) -> None:
    model = JudgeModel(base=tiny, adapter_folder=str(learnt(tiny, tmp_path / "teacher")), adapter_digest="a")
    session = token_session(tiny, tmp_path, model)
    packed = losses(session)
    session.trainer.memory = replace(session.memory, token_budget=1)
    assert losses(session) == pytest.approx(packed, abs=1e-5)


def test_full_tuning_learns_from_answers_alone(tiny: BaseWeights, tmp_path: Path) -> None:
    given = Teaching(teacher="t", model=JudgeModel(base=tiny), level="token")
    parameters = TuningParameters(rank=0, alpha=0.0, is_full=True, learning_rate=1e-3)
    spec = make_spec(tiny, tmp_path, method="distillation", data_format="auto", teaching=given, parameters=parameters)
    with pytest.raises(InvalidArgument, match="a student with an adapter"):
        Session(spec, make_parameters(rank=0), make_rows(4), None)


def test_a_teacher_on_another_base_with_a_wider_output(tiny: BaseWeights, tmp_path: Path) -> None:
    other = make_tiny_base(tmp_path / "other", "qwen2")
    session = token_session(tiny, tmp_path / "job", JudgeModel(base=other))
    assert np.isfinite(losses(session)).all() and losses(session)[1] > 0
